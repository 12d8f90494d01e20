"""Memory and rate of a build of the 21B's shape, at two depths, and the peaks of other exporters beside it.

    python benchmarks/build_memory.py                      # 8 and 28 layers: 58 GB of disk, about half an hour
    python benchmarks/build_memory.py --layers 2 4         # a trial: 7 GB

A synthetic checkpoint is written, read once so that its pages are warm, built to INT4 in blocks of 128
as `ernie-export build` does it up to the validation, and removed. Each build runs in a process of its
own; RssAnon of /proc/PID/status is sampled, which mapped files do not count to. The peers export the
dense 0.3B shape, which is the largest that they take: onnxruntime-genai's builder to INT4, and
torch.onnx.export with the weights loaded, as transformers loads them. Results: benchmarks/results/build_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ernie_export.checkpoint import shapes, synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.weights import weight_files
from ernie_export.progress import Silent
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.validate import environment

RESULTS = Path(__file__).parent / "results" / "build_memory.json"
CONTEXT = 4096
SAMPLED = 0.005  # seconds
#: How the programs below begin: a Progress that prints of each step what it took.
TOLD = """
import json, sys, time
from contextlib import contextmanager
from pathlib import Path
from ernie_export import pipeline
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.recipe import Recipe
from ernie_export.target import Target

class Told:
    @contextmanager
    def step(self, title, total=None, unit=""):
        begun = time.perf_counter(), time.process_time()
        yield self
        took = time.perf_counter() - begun[0], time.process_time() - begun[1]
        print(json.dumps([title, *took, total]), flush=True)
    def advance(self, amount=1):
        pass

checkpoint, partial = Checkpoint.open(Path(sys.argv[1])), Path(sys.argv[2])
partial.mkdir()
work, target = pipeline.Work(partial, Told()), Target.find("cpu")
"""
BUILD = (
    TOLD
    + """
recipe = Recipe.find("int4").model_copy(update={"context": int(sys.argv[3])})
pipeline.prepare(work, checkpoint, recipe.parts, recipe.context, print)
pipeline.write_graph(work, checkpoint, recipe, target)
pipeline.write_weights(work, checkpoint, recipe)
pipeline.write_texts(work, checkpoint, recipe, target)
checkpoint.fingerprint(Told())
"""
)
GENAI = """
import runpy, sys
source, target = sys.argv[1:]
sys.argv[1:] = ["-i", source, "-o", target, "-p", "int4", "-e", "cpu", "-c", target + "-cache"]
sys.argv += ["--extra_options", "int4_block_size=128"]
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
TORCH = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits
with torch.no_grad():
    torch.onnx.export(Logits(), (torch.ones(1, 8, dtype=torch.long),), sys.argv[2], dynamo=True, external_data=True)
"""


def watched(program: str, *arguments: object) -> dict[str, Any]:
    """Run a program to its end: its highest RssAnon in bytes by the lines of JSON it printed, seconds, exit code."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    begun, highest, reached = time.perf_counter(), 0, []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
        seen = 0
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            if (now := os.fstat(out.fileno()).st_size) != seen:
                seen, highest = now, reached.append(highest) or 0
            time.sleep(SAMPLED)
        out.seek(0), err.seek(0)
        said = [json.loads(line) for line in out if line.startswith('["')]
        failure = err.read().strip().splitlines()[-1:] if process.returncode else []
    return {
        "peak": max([*reached, highest]),
        "seconds": time.perf_counter() - begun,
        "stages": [
            {"title": title, "seconds": seconds, "cpu_seconds": cpu, "bytes": total, "peak": peak}
            for (title, seconds, cpu, total), peak in zip(said, reached, strict=False)
        ],
        "failed": failure[0] if failure else None,
    }


def anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def of_depth(layers: int) -> ErnieConfig:
    config = ErnieConfig.read(shapes.folder("21b"))
    return config.model_copy(update={"num_hidden_layers": layers, "moe_layer_end_index": layers - 1})


def needed(layers: int) -> int:
    """Bytes of disk: the checkpoint and what is built of it."""
    config, parts = of_depth(layers), Recipe.find("int4").parts
    built = sum(file.size for file in weight_files(config, parts, CONTEXT))
    return synthetic.size_of(config) + built


def require_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        sys.exit(f"{folder} has room for {size(free)}, {size(wanted)} are needed: name another --work")


def read(folder: Path) -> None:
    """Bring the files into the page cache, as far as they fit."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def measure(layers: int, folder: Path) -> dict[str, Any]:
    """One depth: the checkpoint is made, built, and both are removed."""
    require_room(folder, needed(layers))
    checkpoint = folder / "checkpoint"
    print(f"{layers} layers: writing a checkpoint of {size(synthetic.size_of(of_depth(layers)))}", flush=True)
    synthetic.synthesize("21b", checkpoint, Silent(), layers)
    os.sync()  # the build is not to wait until this is on the disk
    read(checkpoint)
    print(f"{layers} layers: building", flush=True)
    found = watched(BUILD, checkpoint, folder / "partial", CONTEXT)
    shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "partial", ignore_errors=True)
    trace, weights = ({stage["title"]: stage for stage in found["stages"]}.get(t) for t in STAGES)
    if found["failed"] or not trace or not weights:
        sys.exit(f"the build failed: {found['failed']}")
    row = {
        "layers": layers,
        "input_bytes": weights["bytes"],
        "trace_seconds": trace["seconds"],
        "trace_peak": trace["peak"],
        "weights_seconds": weights["seconds"],
        "weights_cpu_seconds": weights["cpu_seconds"],
        "weights_peak": weights["peak"],
        "gb_per_second": weights["bytes"] / weights["seconds"] / 1e9,
        "peak": found["peak"],
    }
    print(
        f"{layers} layers: traced in {row['trace_seconds']:.0f} s with {size(row['trace_peak'])}, "
        f"{size(row['input_bytes'])} read at {row['gb_per_second']:.2f} GB/s with {size(row['weights_peak'])}",
        flush=True,
    )
    return row


STAGES = ("Trace the graph", "Quantize and write")


def measure_peers(folder: Path) -> list[dict[str, Any]]:
    checkpoint = folder / "dense"
    synthetic.synthesize("0.3b", checkpoint, Silent())
    weights = sum(Checkpoint.open(checkpoint).files.values())
    found = []
    for name, program, output in (
        ("onnxruntime-genai builder, INT4", GENAI, "genai"),
        ("torch.onnx.export, fp32", TORCH, "torch.onnx"),
    ):
        print(f"{name}: exporting {size(weights)}", flush=True)
        row = watched(program, checkpoint, folder / output)
        del row["stages"]
        found.append({"peer": name, "checkpoint_bytes": weights, "times": row["peak"] / weights, **row})
        print(f"{name}: {size(row['peak'])} in {row['seconds']:.0f} s {row['failed'] or ''}", flush=True)
    print("this exporter: the same checkpoint", flush=True)
    ours = watched(BUILD, checkpoint, folder / "partial", CONTEXT)
    del ours["stages"]
    found.append(
        {"peer": "ernie-export, INT4", "checkpoint_bytes": weights, "times": ours["peak"] / weights, **ours}
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 28])
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a large disk"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        folder = Path(name)
        require_room(folder, max(map(needed, given.layers)))
        builds = [measure(layers, folder) for layers in given.layers]
        peers = measure_peers(folder)
    result = {
        "machine": environment.machine(),
        "software": environment.software(),
        "cores": len(os.sched_getaffinity(0)),
        "builds": builds,
        "peers": peers,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {given.output}")


if __name__ == "__main__":
    main()
