"""Write the text that comes along for calibration: files that ernie-nano learnt from, none that is held out.

python benchmarks/ernie_nano/calibration.py --text DIR --output ernie_export/calibrate/calibration.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import corpus


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="the _sources folder of python3.11-doc")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    text = "\n".join(corpus.load(args.text).calibration)
    args.output.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(text):,} characters")


if __name__ == "__main__":
    main()
