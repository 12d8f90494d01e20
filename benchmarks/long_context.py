"""What a long context costs: memory beside the KV cache while a prompt is read, and the time of a token over it.

    python benchmarks/long_context.py                   # writes benchmarks/results/long_context.json
    python benchmarks/long_context.py --bundle DIR      # of a bundle that is there; else one is made

The model has the layers of the 21B, four of them, random weights.  Each length is measured in a process of its own,
with the native operators and with ONNX Runtime's: a prompt that fills the cache but for a few tokens, then those.
What the process held of its own at its highest (RssAnon, sampled), less the cache that the plan counts and what it
held when it had opened, is what a prompt of that length needs beside both.  Needs 8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_memory import build

from ernie_export.bench.memory import Highest, held
from ernie_export.bench.speed import feed
from ernie_export.checkpoint import synthetic
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan import machine
from ernie_export.plan.memory import kv_cache
from ernie_export.plan.setting import Setting
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "long_context.json"
LENGTHS = (128, 1024, 4096, 8192, 32768)
OWN = 8192
"""The longest that ONNX Runtime's operators are waited for."""
LAYERS, RECIPE, TOKENS = 4, "int4-small", 16


def measure(bundle: Path, length: int) -> dict[str, Any]:
    """In this process, which has opened nothing before."""
    from ernie_export.engine.open import open_engine

    config, recipe = ErnieConfig.read(bundle), Recipe.read(bundle / "recipe.toml")
    native = machine.native_operators() is not None
    prompt = length - TOKENS
    setting = Setting(parts=recipe.parts, context=length, batch=1, prompt=prompt, native=native)
    planned = kv_cache(config, Target.find("cpu"), setting)
    engine = open_engine(bundle)
    session = engine.start(1, length)
    feed(engine, session, 1, 0)  # what is set up once, of the threads
    session.truncate(0, 0)
    opened = held().anonymous
    with Highest() as highest:
        prefill = feed(engine, session, prompt, 0)
        times = [feed(engine, session, 1, number) for number in range(TOKENS)]
    return {
        "native_operators": native,
        "tokens": length,
        "kv_cache": planned,
        "opened": opened,
        "highest_anonymous": highest.anonymous,
        "beside": highest.anonymous - planned - opened,
        "prefill_seconds": prefill,
        "token_seconds": statistics.median(times),
    }


def measure_elsewhere(bundle: Path, length: int, native: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--bundle", str(bundle), "--one", str(length)]
    switch = {} if native else {machine.SWITCH: "0"}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | switch)
    found: dict[str, Any] = json.loads(ran.stdout)
    print(
        "{tokens:6} tokens: {kv_cache:13,} of cache, {beside:13,} beside; "
        "{prefill_seconds:7.1f} s, {token_seconds:.4f} s a token, ".format(**found)
        + f"{'native' if native else 'ONNX Runtime'}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.bundle, given.one)))
        return
    with tempfile.TemporaryDirectory() as name:
        bundle = given.bundle
        if bundle is None:
            synthetic.synthesize("21b", Path(name) / "checkpoint", Silent(), LAYERS)
            recipe = Recipe.find(RECIPE)
            bundle = build(Path(name) / "checkpoint", recipe, max(given.lengths), Path(name) / "bundle")
        kinds = [True, False] if machine.native_operators() else [False]
        result = {
            "layers": ErnieConfig.read(bundle).num_hidden_layers,
            "recipe": Recipe.read(bundle / "recipe.toml").name,
            "threads": len(os.sched_getaffinity(0)),
            "bandwidth": machine.bandwidth(),
            "machine": environment.machine(),
            "software": environment.software(),
            "rows": [
                measure_elsewhere(bundle, length, native)
                for native in kinds
                for length in given.lengths
                if native or length <= OWN
            ],
        }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
