"""The plan for cpu against what really happens: a synthetic model, opened and run in every format.

    python benchmarks/plan_memory.py        # writes benchmarks/results/plan_memory.json and prints the table
    python benchmarks/plan_memory.py --recipe int4   # measures one anew; what the file holds of others stays

The shape is that of the 21B with everything halved, and ernie-nano's, where the runtime's own memory
is most of it.  Each engine is opened in a process of its own, fed prompts that fill its cache but for a
few tokens, and decodes those; what the process held at its highest (VmHWM of /proc/self/status) stands
beside the plan.  A whole build, validation included, is measured by its anonymous memory (RssAnon,
sampled).  Needs 4 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ernie_export.checkpoint import embedded, shapes, synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.json_file import read_object
from ernie_export.plan import machine
from ernie_export.plan.building import building
from ernie_export.plan.memory import memory
from ernie_export.plan.setting import Setting
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.taken import LEAST_SM
from ernie_export.target import Target

RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
HALF = {
    "hidden_size": 1280,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "moe_num_experts": 32,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "vocab_size": 25856,
    "max_position_embeddings": 4096,
}
DECODED = 8
CONTEXT = 2048
OPEN_AND_RUN = """
import json, sys
from pathlib import Path
from ernie_export.engine.open import open_engine

def highest():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

folder, batch, prompt, decoded = Path(sys.argv[1]), *map(int, sys.argv[2:])
engine = open_engine(folder)
opening = highest()
session = engine.start(batch, prompt + decoded)
vocab = engine.info.vocab_size
fed = session.feed([[(7919 * (row + 1) * at) % vocab for at in range(prompt)] for row in range(batch)])
for _ in range(decoded):
    fed = session.feed([[5]] * batch)
print(json.dumps({"opening": opening, "running": highest()}))
"""
#: How the programs below begin: `highest` is the anonymous memory of this process, sampled, by what `stage` says.
WATCHED = """
import json, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
from ernie_export.bench.memory import held
from ernie_export.recipe import Recipe
from ernie_export.target import Target

highest, stage = {}, "open"

def watch():
    while True:
        highest[stage] = max(highest.get(stage, 0), held().anonymous)
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
"""
BUILD = (
    WATCHED
    + """
from ernie_export import pipeline

stage = "trace"
STAGES = {"Trace the graph": "trace", "Calibrate": "calibration", "Quantize and write": "weights"}

class Stages:
    @contextmanager
    def step(self, title, total=None, unit=""):
        global stage
        if not (stage == "calibration" and title == "Quantize and write"):
            stage = STAGES.get(title, "validation")
        yield self
        if stage == "weights":
            stage = "validation"  # whatever it loads before it tells of its first step
    def advance(self, amount=1):
        pass

highest.pop("open")
recipe = Recipe.find(sys.argv[2]).model_copy(update={"gates": {}, "context": int(sys.argv[3])})
pipeline.build(Path(sys.argv[1]), Target.find("cpu"), recipe, Path(sys.argv[4]), progress=Stages())
print(json.dumps(highest))
"""
)


def synthesize(folder: Path, layers: int) -> Path:
    """The half-size checkpoint."""
    shape = folder / "shape"
    shape.mkdir()
    config = read_object(shapes.folder("21b") / "config.json") | HALF
    (shape / "config.json").write_text(json.dumps(config))
    synthetic.synthesize(str(shape), folder / "checkpoint", Silent(), layers)
    return folder / "checkpoint"


def build(checkpoint_folder: Path, recipe: Recipe, context: int, output: Path) -> Path:
    """Graph, weights and engine.json as a build writes them, without validating."""
    from ernie_export import pipeline

    checkpoint = Checkpoint.open(checkpoint_folder)
    recipe = recipe.model_copy(update={"context": context})
    output.mkdir()
    work = pipeline.Work(output, Silent())
    pipeline.write_graph(work, checkpoint, recipe, Target.find("cpu"))
    pipeline.write_weights(work, checkpoint, recipe)
    pipeline.write_texts(work, checkpoint, recipe, Target.find("cpu"))
    return work.folder


def run(program: str, *arguments: object) -> dict[str, int]:
    """The JSON that a program prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(ran.stdout)
    return found


def compare_use(checkpoint: Path, recipe: Recipe, engine: Path, batch: int, prompt: int) -> dict[str, Any]:
    """The plan of that use of the engine, and what was measured of it."""
    config, target = Checkpoint.open(checkpoint).config, Target.find("cpu")
    native = machine.native_operators() is not None
    setting = Setting(parts=recipe.parts, context=prompt + DECODED, batch=batch, prompt=prompt, native=native)
    planned = memory(config, target, setting)
    measured = run(OPEN_AND_RUN, engine, batch, prompt, DECODED)
    return {
        "recipe": recipe.name,
        "native_operators": native,
        "batch": batch,
        "prompt": prompt,
        "planned_opening": planned.opening,
        "measured_opening": measured["opening"],
        "planned": planned.peak,
        "measured": measured["running"],
        "ratio": planned.peak / measured["running"],
    }


def compare_build(checkpoint: Path, recipe: Recipe, output: Path) -> list[dict[str, Any]]:
    """Each stage of a whole build, as planned and as measured."""
    config, target = Checkpoint.open(checkpoint).config, Target.find("cpu")
    native = machine.native_operators() is not None
    setting = Setting(parts=recipe.parts, context=CONTEXT, batch=1, prompt=512, native=native)
    planned = building(config, target, setting, 0, recipe.calibration).model_dump()
    measured = run(BUILD, checkpoint, recipe.name, CONTEXT, output)
    return [
        {
            "recipe": recipe.name,
            "stage": stage,
            "planned": planned[stage],
            "measured": highest,
            "ratio": planned[stage] / highest,
        }
        for stage, highest in measured.items()
    ]


def measure(
    checkpoint: Path, work: Path, names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    uses: list[dict[str, Any]] = []
    builds: list[dict[str, Any]] = []
    work.mkdir()
    for recipe in map(Recipe.find, names):
        engine = build(checkpoint, recipe, CONTEXT, work / recipe.name)
        for batch, prompt in ((1, 128), (1, 512), (1, CONTEXT - DECODED), (4, 512)):
            uses.append(compare_use(checkpoint, recipe, engine, batch, prompt))
            print(
                "{recipe:5} {batch} × {prompt:4}: {planned:13,} {measured:13,} ×{ratio:.3f}".format(
                    **uses[-1]
                )
            )
        builds += compare_build(checkpoint, recipe, work / f"{recipe.name}-bundle")
        for row in builds[-3:]:
            print("{recipe:5} {stage:10}: {planned:13,} {measured:13,} ×{ratio:.3f}".format(**row))
    return uses, builds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    taken = [name for name in Recipe.names() if name not in LEAST_SM]
    parser.add_argument("--layers", type=int, default=4, help="of the half-size model")
    parser.add_argument("--recipe", nargs="+", default=taken, help="which; all that a CPU takes")
    given = parser.parse_args()
    before = {each["shape"]: each for each in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    results = []
    with tempfile.TemporaryDirectory() as name:
        half = synthesize(Path(name), given.layers)
        for title, checkpoint in (
            (f"half of the 21B, {given.layers} layers", half),
            ("nano", embedded.folder()),
        ):
            print(title, flush=True)
            measured = dict(zip(KINDS, measure(checkpoint, Path(name) / title, given.recipe), strict=True))
            kept = before.get(title, {})
            for kind, rows in measured.items():
                measured[kind] = [r for r in kept.get(kind, []) if r["recipe"] not in given.recipe] + rows
            results.append({"shape": title, **measured})
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


KINDS = ("uses", "builds")


if __name__ == "__main__":
    main()
