"""A bundle goes on from a prompt, on the kernels: `python -m plugins.torch BUNDLE "What is a list?"`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ernie_export.errors import ErnieExportError
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from plugins.torch.engine import TorchEngine
from plugins.torch.library import Library

ACTIVATIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m plugins.torch", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a folder that `ernie-export build` wrote, for any target")
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--activations", choices=ACTIVATIONS, default="fp16")
    parser.add_argument("--cache-bits", type=int, choices=(16, 8), default=16)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the emulated kernels")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu runs the emulated kernels, slowly")
    try:
        library = Library.built(torch.device(arguments.device))
        engine = TorchEngine(
            arguments.bundle, library, ACTIVATIONS[arguments.activations], arguments.cache_bits
        )
        tokenizer = TextTokenizer.read(arguments.bundle)
        stream = tokenizer.stream()
        generate(
            engine,
            [tokenizer.encode(arguments.prompt)],
            arguments.max_tokens,
            Sampling(),
            tokenizer.stop_ids,
            lambda _, token: print(stream.push(token), end="", flush=True),
        )
        print(stream.finish())
    except ErnieExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
