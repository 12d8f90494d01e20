"""`python3 kit.pyz`, or `python -m ernie_export.kit`: written so that every Python 3 can read why it does not do."""

import hashlib
import json
import os
import sys

OLDEST = (3, 11)


def start() -> int:
    try:
        if sys.version_info < OLDEST:
            told("This kit needs Python {}.{} or newer, here is {}.{}".format(*OLDEST, *sys.version_info[:2]),
                 "Run it with a newer one.")  # fmt: skip
        here = os.path.dirname(os.path.abspath(__file__))
        if os.path.isfile(here):  # a zip file, which Python reads without asking whether it is whole
            require_itself(here)
        from ernie_export.kit.program import main

        return main(sys.argv[1:])
    except KeyboardInterrupt:
        return 130


def require_itself(path: str) -> None:
    """That this very program is the one that the kit's manifest lists."""
    try:
        with open(os.path.join(os.path.dirname(path), "manifest.json"), "rb") as file:
            listed = json.load(file)["files"][os.path.basename(path)]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # what is wrong with the manifest, the program tells
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != listed:
            told(f"The program {path} is not the one that the kit's manifest lists",
                 "Fetch the kit again.")  # fmt: skip


def told(cause: str, remedy: str) -> None:
    sys.stderr.write(f"error: {cause}. {remedy}\n")
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(start())
