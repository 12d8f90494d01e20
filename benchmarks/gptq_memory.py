"""Memory and time of calibration at the 21B's layer size.

    python benchmarks/gptq_memory.py                   # 3 layers, 9 GB of disk, some minutes

The weight files of a synthetic checkpoint are made by the recipe int4-gptq, on as many tokens as it asks
for.  The tokens are random, so this says nothing of quality.  A process of its own makes them; its RssAnon is
sampled, which mapped files do not count to, and stands beside what `plan` says of it.  Results:
benchmarks/results/gptq_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import build_memory

from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.checkpoint import synthetic
from ernie_export.plan.building import building
from ernie_export.plan.setting import Setting
from ernie_export.progress import Silent
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "gptq_memory.json"
ALLOWED = 10 << 30
CALIBRATE = (
    build_memory.TOLD
    + """
import numpy as np
from ernie_export.generate.windows import Windows

recipe = Recipe.find("int4-gptq").model_copy(update={"context": int(sys.argv[3])})
settings = recipe.calibration
shape = settings.tokens // settings.window, settings.window
text = Windows(np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, shape), "random tokens")
pipeline.write_graph(work, checkpoint, recipe, target)
pipeline.make_weights(work, checkpoint, recipe, text)
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a large disk"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        folder = Path(name)
        build_memory.require_room(folder, build_memory.needed(given.layers))
        print(f"{given.layers} layers: writing a checkpoint", flush=True)
        synthetic.synthesize("21b", folder / "checkpoint", Silent(), given.layers)
        print(f"{given.layers} layers: calibrating", flush=True)
        found = build_memory.watched(
            CALIBRATE, folder / "checkpoint", folder / "partial", build_memory.CONTEXT
        )
        if found["failed"]:
            raise SystemExit(f"it failed: {found['failed']}")
        record = CalibrationRecord.read(folder / "partial" / "bundle")
        assert record
    experts = [tensor for tensor in record.tensors if ".experts." in tensor.name]
    calibrate = next(stage for stage in found["stages"] if stage["title"] == "Calibrate")
    planned, recipe = plan_of(given.layers), Recipe.find("int4-gptq").calibration
    assert recipe
    result = {
        "layers": given.layers,
        "tokens": recipe.tokens,
        "peak": found["peak"],
        "planned": planned,
        "ratio": planned / found["peak"],
        "seconds_a_layer": calibrate["seconds"] / given.layers,
        "fewest_tokens_of_an_expert": min(tensor.tokens for tensor in experts),
        "experts_rounded_to_nearest": sum(len(tensor.rounded) for tensor in experts) // 2,
        "cores": len(os.sched_getaffinity(0)),
        "machine": environment.machine(),
        "software": environment.software(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{size(found['peak'])} at the most, {size(planned)} planned, {size(ALLOWED)} are allowed; "
        f"{result['seconds_a_layer']:.0f} s a layer"
    )
    if found["peak"] > ALLOWED:
        raise SystemExit("that is too much")


def plan_of(layers: int) -> int:
    """What `plan` says of the calibration."""
    config, recipe = build_memory.of_depth(layers), Recipe.find("int4-gptq")
    setting = Setting(parts=recipe.parts, context=build_memory.CONTEXT, batch=1, prompt=512)
    planned = building(config, Target.find("cpu"), setting, 0, recipe.calibration).calibration
    assert planned
    return planned


if __name__ == "__main__":
    main()
