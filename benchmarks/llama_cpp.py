"""llama.cpp and ernie-export side by side: speed on the same synthetic weights, quality on ernie-nano.

    python benchmarks/llama_cpp.py                        # all 28 layers of the 21B, and the quality
    python benchmarks/llama_cpp.py --layers 2 4 --no-quality
    python benchmarks/llama_cpp.py --llama DIR --work DIR # where llama.cpp is (or will be) built, where models go

llama.cpp is built from the source in PyPI's llama-cpp-python (6 minutes on two cores; needs cmake and g++),
its AMX kernels switched off: built by GCC 12 they crash.  Its own llama-quantize makes Q4_0 and Q4_K_M, its
own llama-bench measures them; ours are measured in the same rounds, each in a process of its own, one after
the other, and the best of the rounds counts on both sides.  The memory's bandwidth is read before and after each:
on a shared machine it changes with the seconds, and a round's share is of the mean of its two.  Before each, its
files are dropped from memory and read again, so that both find them in pages as large as the system makes them.
Random weights are rounded to nearest even where the recipe calibrates: that changes numbers, not what is read or
computed.  Models of more than four layers repeat the layers of those of four (deeper.py): 28 need 46 GB of disk and
16 GB of memory.  `--prepare` makes the
models and measures nothing; what is there already is used.

What is not measured (`--no-quality`, `--layers` without a number) is kept from the results that are there.

Quality: the KL divergence of every format from transformers in fp32, on held-out text, the same token ids for
all.  The control, llama.cpp on fp32 weights, tells how exact the conversion is.  Writes results/llama_cpp.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deeper
import gguf_file
import numpy as np

from ernie_export import pipeline
from ernie_export.bench import bench, opening
from ernie_export.calibrating import calibration_text
from ernie_export.checkpoint import embedded, shapes, synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.checkpoint.layout import tensor_shapes
from ernie_export.generate.windows import Windows
from ernie_export.plan import machine
from ernie_export.plan.setting import Setting
from ernie_export.plan.traffic import traffic
from ernie_export.progress import Silent
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "llama_cpp.json"
SDIST = "llama-cpp-python==0.3.36"
FORMATS = ("Q4_0", "Q4_K_M")
PROMPT, TOKENS, CONTEXT = 512, 64, 4096
LONG = 32  # tokens written at the end of the context, to compare with as many at its beginning
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() == "x86_64" else ""
WANTED = {"decode": 1.25, "prefill": 1.35}
OURS = """
import json, sys, time
from pathlib import Path
import numpy as np
from ernie_export.bench.memory import held
from ernie_export.engine.open import open_engine

folder, threads, prompt, tokens, repeats = Path(sys.argv[1]), *map(int, sys.argv[2:])
begun = time.perf_counter()
engine = open_engine(folder, threads=threads)
opening = time.perf_counter() - begun
session = engine.start(1, 1024)
ids = np.random.default_rng(0).integers(0, engine.info.vocab_size, (repeats + 1, prompt + tokens)).tolist()
prefill, decode = [], []
for row in ids:
    session.truncate(0, 0)
    begun = time.perf_counter()
    session.feed([row[:prompt]])
    prefill.append(prompt / (time.perf_counter() - begun))
    session.truncate(0, 0)
    session.feed([row[:1]])
    begun = time.perf_counter()
    for token in row[prompt:]:
        session.feed([[token]])
    decode.append(tokens / (time.perf_counter() - begun))
# The first warms up, as llama-bench does.
print(json.dumps({"prefill": max(prefill[1:]), "decode": max(decode[1:]), "opening_seconds": opening,
                  "anonymous_bytes": held().anonymous}))
"""


@dataclass(frozen=True)
class Llama:
    folder: Path
    """The unpacked source distribution; `build` in it holds the programs."""

    @property
    def source(self) -> Path:
        return self.folder / "vendor" / "llama.cpp"

    @property
    def gguf_py(self) -> Path:
        return self.source / "gguf-py"

    def program(self, name: str) -> Path:
        return self.folder / "build" / "bin" / name

    def run(self, name: str, *arguments: object) -> str:
        command = [str(self.program(name)), *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{name} fails ({ran.returncode}):\n{ran.stderr[-2000:]}")
        return ran.stdout


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def built(folder: Path) -> Llama:
    """llama.cpp's programs in `folder`, and our own llama_logits; what is there is used as it is."""
    llama = Llama(folder)
    if not llama.source.is_dir():
        say(f"fetch {SDIST}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", name]
            subprocess.run([*pip, SDIST], check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(name).glob("*.tar.gz"))) as archive:
                archive.extractall(name, filter="data")
            (inside,) = (path for path in Path(name).iterdir() if path.is_dir())
            shutil.copytree(inside, folder, dirs_exist_ok=True)
    if not all(llama.program(name).exists() for name in ("llama-bench", "llama-quantize")):
        say("build llama.cpp")
        flags = [
            "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
            "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_COMMIT=none", "-DLLAMA_BUILD_NUMBER=1",
            f"-DCMAKE_C_FLAGS={NO_AMX}", f"-DCMAKE_CXX_FLAGS={NO_AMX}",
        ]  # fmt: skip
        build = folder / "build"
        subprocess.run(["cmake", "-S", llama.source, "-B", build, *flags], check=True, stdout=sys.stderr)
        targets = ["--target", "llama-bench", "llama-quantize", "--parallel", str(os.cpu_count())]
        subprocess.run(["cmake", "--build", build, *targets], check=True, stdout=sys.stderr)
    if not llama.program("llama_logits").exists():
        compile_logits(llama)
    return llama


def compile_logits(llama: Llama) -> None:
    build = llama.folder / "build"
    libraries = [next(build.rglob(f"lib{name}.a")) for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
    includes = [f"-I{llama.source / 'include'}", f"-I{llama.source / 'ggml' / 'include'}"]
    command = ["g++", "-std=c++17", "-O2", *includes, str(HERE / "llama_logits.cpp"), *map(str, libraries)]
    command += ["-fopenmp", "-ldl", "-lpthread", "-o", str(llama.program("llama_logits"))]
    subprocess.run(command, check=True)


def parameters(config: ErnieConfig) -> int:
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def build_ours(
    checkpoint: Checkpoint, recipe: Recipe, context: int, folder: Path, text: Windows | None = None
) -> Path:
    """Graph, weights and small files as a build writes them; a synthetic model is not validated."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe.model_copy(update={"context": context})
    work, target = pipeline.Work(folder, Silent()), Target.find("cpu")
    pipeline.write_graph(work, checkpoint, recipe, target)
    pipeline.make_weights(work, checkpoint, recipe, text)
    pipeline.write_texts(work, checkpoint, recipe, target)
    return work.folder


def weights_bytes(engine: Path) -> int:
    """Of the weights; the RoPE tables are no weights."""
    return sum(path.stat().st_size for path in (engine / "weights").iterdir() if path.stem != "rope")


def require_disk(work: Path, config: ErnieConfig) -> None:
    """bf16 of four layers, then our INT4 and llama.cpp's two 4-bit files of all."""
    need, free = round(2.1 * parameters(config)), shutil.disk_usage(work).free
    say(f"{config.num_hidden_layers} layers need {size(need)} of disk, {size(free)} are free in {work}")
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    if free + there < need:
        raise SystemExit(
            f"{size(need - free - there)} too little: name a --work on another disk, or fewer --layers"
        )


def of_layers(layers: int) -> ErnieConfig:
    return ErnieConfig.read(shapes.folder("21b")).model_copy(update={"num_hidden_layers": layers})


def models(
    work: Path, layers: int, recipe: Recipe, llama: Llama, threads: int
) -> tuple[Path, dict[str, Path]]:
    """The same weights as our engine and as llama.cpp's files; what is there already is used."""
    folder = work / f"{layers}-layers"
    folder.mkdir(parents=True, exist_ok=True)
    require_disk(work, of_layers(layers))
    engine = folder / recipe.name / "bundle"
    quantized = {name: folder / f"{name}.gguf" for name in FORMATS}
    done = folder / f"{recipe.name}.done"
    if done.exists() and all(path.exists() for path in quantized.values()):
        return engine, quantized
    if layers <= deeper.SHALLOW:
        make_models(folder, layers, recipe, quantized, llama, threads)
    else:
        shallow, files = models(work, deeper.SHALLOW, recipe, llama, threads)
        say(f"{layers} layers out of {deeper.SHALLOW}")
        if not done.exists():
            shutil.rmtree(engine, ignore_errors=True)
            deeper.engine(shallow, engine, of_layers(layers), recipe, CONTEXT)
        for name, path in quantized.items():
            if not path.exists():
                beside = path.with_suffix(".part")
                deeper.gguf(files[name], beside, layers, llama.gguf_py)
                beside.rename(path)
    done.touch()
    return engine, quantized


def make_models(
    folder: Path, layers: int, recipe: Recipe, quantized: dict[str, Path], llama: Llama, threads: int
) -> None:
    checkpoint_folder, source = folder / "checkpoint", folder / "source.gguf"
    if not (checkpoint_folder / "config.json").exists():
        say("synthesize the checkpoint")
        synthetic.synthesize("21b", checkpoint_folder, Silent(), layers)
    checkpoint = Checkpoint.open(checkpoint_folder)
    say(f"build {recipe.name}")
    build_ours(checkpoint, recipe, CONTEXT, folder / recipe.name)
    if not all(path.exists() for path in quantized.values()):
        say("write GGUF")
        gguf_file.write(checkpoint, source, "Q4_0", "F16", llama.gguf_py, threads)
    del checkpoint
    shutil.rmtree(checkpoint_folder)
    for name, path in quantized.items():
        if not path.exists():
            say(f"llama-quantize {name}")
            beside = path.with_suffix(".part")
            llama.run("llama-quantize", "--allow-requantize", source, beside, name, threads)
            beside.rename(path)
    source.unlink(missing_ok=True)


def read_anew(files: list[Path]) -> None:
    """Into memory, in large pages: those of a file just written, or mapped and touched here and there, are small."""
    opening.drop(files)
    opening.read(files)


def run_ours(engine: Path, threads: int, repeats: int) -> dict[str, float]:
    read_anew(sorted(engine.rglob("*.bin")))
    arguments = [str(engine), *map(str, (threads, PROMPT, TOKENS, repeats))]
    ran = subprocess.run(
        [sys.executable, "-c", OURS, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def run_llama(llama: Llama, model: Path, threads: int, repeats: int) -> dict[str, float]:
    read_anew([model])
    told = llama.run(
        "llama-bench", "-m", model, "-p", PROMPT, "-n", TOKENS, "-t", threads, "-r", repeats, "-o", "json"
    )
    tests = {("prefill" if test["n_prompt"] else "decode"): test for test in json.loads(told)}
    return {name: max(test["samples_ts"]) for name, test in tests.items()}


def best(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(each[name] for each in rounds) for name in ("prefill", "decode")}


def measure(
    work: Path, layers: int, recipe: Recipe, llama: Llama, given: argparse.Namespace
) -> dict[str, Any]:
    threads = given.threads
    engine, quantized = models(work, layers, recipe, llama, threads)
    config = of_layers(layers)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in (recipe.name, *quantized)}
    for number in range(given.rounds):
        for name in runs:
            model = quantized.get(name)
            before = machine.bandwidth() or 0.0
            found = (
                run_llama(llama, model, threads, given.repeats)
                if model
                else run_ours(engine, threads, given.repeats)
            )
            found["bandwidth_before"], found["bandwidth_after"] = before, machine.bandwidth() or 0.0
            runs[name].append(found)
            speeds = f"prefill {found['prefill']:.1f}, decode {found['decode']:.2f} tokens/s"
            say(f"round {number + 1}, {layers} layers, {name}: {speeds}")
    native = machine.native_operators() is not None
    setting = Setting(parts=recipe.parts, context=TOKENS // 2, batch=1, prompt=1, native=native)
    reads = traffic(config, Target.find("cpu"), setting, None)
    count, beside = parameters(config), ("bandwidth_before", "bandwidth_after")
    bandwidth = max(each[when] for found in runs.values() for each in found for when in beside)
    result: dict[str, Any] = {
        "layers": layers,
        "parameters": count,
        "bandwidth": bandwidth,
        "models": {
            name: best(found) | {"bits_per_weight": 8 * stored / count, "rounds": found}
            for name, found in runs.items()
            for stored in [quantized[name].stat().st_size if name in quantized else weights_bytes(engine)]
        },
    }
    ours = result["models"][recipe.name]
    ours["bytes_a_token"] = reads.bytes + reads.kv_cache
    if bandwidth:
        moved = [ours["bytes_a_token"] * each["decode"] for each in ours["rounds"]]
        ours["share_of_highest_bandwidth"] = max(moved) / bandwidth
        ours["share_of_bandwidth"] = statistics.median(
            each / statistics.fmean(row[when] for when in beside)
            for each, row in zip(moved, ours["rounds"], strict=True)
        )
    result["times_the_better"] = {
        what: ours[what] / max(result["models"][name][what] for name in FORMATS) for what in WANTED
    }
    read_anew(sorted(engine.rglob("*.bin")))
    longer = bench.bench(engine, Silent(), [PROMPT], [PROMPT // 4, CONTEXT - LONG], LONG, 1, threads)
    plain = longer.model_dump(mode="json")
    result["opening"] = plain["opening"]
    result["decode_by_context"] = plain["decode"]
    return result


def slopes(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds a token of one layer more: what is the same at any depth (the head, and the last layer's
    feed-forward, which llama.cpp runs for the last token alone) drops out."""
    first, last = results[0], results[-1]
    more = last["layers"] - first["layers"]
    return {
        name: {
            what: (1 / last["models"][name][what] - 1 / first["models"][name][what]) / more for what in WANTED
        }
        for name in first["models"]
    }


def quality(llama: Llama, recipes: Sequence[Recipe], threads: int) -> list[dict[str, Any]]:
    from ernie_export.engine.open import open_engine
    from ernie_export.generate.tokenizer import TextTokenizer
    from ernie_export.reference.transformers_model import Reference
    from ernie_export.validate.metrics import compare_logits, logits_metrics
    from ernie_export.validate.sample import Sample, text_windows

    nano = embedded.folder()
    checkpoint = Checkpoint.open(nano)
    ids = text_windows(Sample(), TextTokenizer.read(nano).encode).ids
    reference = Reference.open(nano)
    want = [reference.run(window[None]).logits[0] for window in ids]
    count = parameters(checkpoint.config)

    def row(name: str, got: Sequence[Any], stored: int) -> dict[str, Any]:
        compared = [compare_logits(*pair, window) for *pair, window in zip(want, got, ids, strict=True)]
        metrics = logits_metrics(compared)
        named = ("logits.kl_mean", "logits.kl_p99", "logits.same_top1", "perplexity.ratio")
        found = {"name": name, "bits_per_weight": 8 * stored / count, **{key: metrics[key] for key in named}}
        say(f"{name}: {found['bits_per_weight']:.2f} bits a weight, KL {found['logits.kl_mean']:.2g}")
        return found

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for recipe in recipes:
            text = calibration_text(checkpoint, recipe, None)
            engine = build_ours(checkpoint, recipe, 2048, folder / recipe.name, text)
            opened = open_engine(engine, threads=threads)
            got = [opened.start().feed([window.tolist()], all_logits=True).logits[0] for window in ids]
            rows.append(row(recipe.name, got, weights_bytes(engine)))
        source = folder / "F32.gguf"
        gguf_file.write(checkpoint, source, "F32", "F32", llama.gguf_py, threads)
        tokens, logits = folder / "ids", folder / "logits"
        tokens.write_bytes(ids.astype(np.int32).tobytes())
        for name in ("F32", *FORMATS):
            model = folder / f"{name}.gguf"
            if not model.exists():
                llama.run("llama-quantize", source, model, name, threads)
            llama.run("llama_logits", model, tokens, logits, ids.shape[1], threads)
            got = list(np.fromfile(logits, np.float32).reshape(*ids.shape, -1))
            rows.append(row(f"llama.cpp {name}", got, model.stat().st_size))
    return rows


def show(results: dict[str, Any]) -> None:
    for result in results["speed"]:
        print(f"\n{result['layers']} layers, memory read at {result['bandwidth'] / 1e9:.1f} GB/s")
        print(f"{'':12}{'bits':>7}{'prefill':>10}{'decode':>10}  tokens/s")
        for name, model in result["models"].items():
            print(f"{name:12}{model['bits_per_weight']:7.2f}{model['prefill']:10.1f}{model['decode']:10.2f}")
        for what, times in result["times_the_better"].items():
            print(f"{what}: {times:.2f} times the better of llama.cpp's (wanted: {WANTED[what]})")
        ours = next(model for model in result["models"].values() if "share_of_bandwidth" in model)
        share, least = ours["share_of_bandwidth"], ours["share_of_highest_bandwidth"]
        print(
            f"decode moves {share:.0%} of the bandwidth beside it (wanted: 70%), {least:.0%} of the highest"
        )
        opened, (short, long) = result["opening"], result["decode_by_context"]
        cold = f"{opened['cold']['seconds']:.1f} s cold, reading its files {opened['reading']:.1f} s"
        print(f"opening: {opened['warm']['seconds']:.2f} s warm, {cold}")
        slower = long["seconds"] / short["seconds"]
        print(f"a token behind {long['context']} takes {slower:.2f} times one behind {short['context']}")
    for row in results["quality"]:
        print("{name:20}{bits_per_weight:7.2f} bits  KL {kl:.3g}  same top-1 {top:.2%}".format(
            **row, kl=row["logits.kl_mean"], top=row["logits.same_top1"]))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="*", default=[28], help="depths of the 21B to measure")
    parser.add_argument("--recipe", default="int4-small-gptq", help="ours, for the speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="in each round, after one to warm up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama", type=Path, default=Path("build/llama.cpp"), help="the built sdist")
    parser.add_argument("--work", type=Path, default=Path("build/llama-benchmark"), help="for the models")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="make the models, and measure nothing")
    parser.add_argument("--keep", action="store_true", help="leave the models in --work")
    given = parser.parse_args()
    llama, work = built(given.llama.absolute()), given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.find(given.recipe)
    if given.prepare:
        for layers in given.layers:
            models(work, layers, recipe, llama, given.threads)
        return
    speed = [measure(work, n, recipe, llama, given) for n in given.layers]
    earlier = json.loads(given.output.read_text()) if given.output.exists() else {}
    recipes = [Recipe.find(name) for name in Recipe.names() if name.startswith("int4")]
    results = {
        "machine": environment.machine(),
        "software": environment.software()
        | {"llama.cpp": SDIST, "llama.cpp flags": f"native {NO_AMX}".strip()},
        "threads": given.threads,
        "native_operators": machine.native_operators() is not None,
        "prompt": PROMPT,
        "decoded": TOKENS,
        "speed": speed or earlier.get("speed", []),
        "seconds_a_token_and_layer": slopes(speed) if len(speed) > 1 else None,
        "quality": earlier.get("quality", []) if given.no_quality else quality(llama, recipes, given.threads),
    }
    given.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    if not given.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
