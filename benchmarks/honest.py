"""No false alarm: builds with nothing wrong in them, of other shapes, seeds and weights, must pass their gates.

    python benchmarks/honest.py [--resume]   # writes benchmarks/results/honest.json, prints a row a build

Each is the real build, gates and all.  Of ernie-nano's, `ernie-export validate` is then run by itself, as
a user would, and its time is noted beside the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ernie_export import pipeline
from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.synthetic import synthesize
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate.report import Report

RESULTS = Path(__file__).parent / "results" / "honest.json"
ALL = ("fp32", "fp16", "int8", "int4")

SMALL = {
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "use_bias": False,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
}  # fmt: skip
MOE = SMALL | {
    "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "moe_layer_interval": 1,
    "moe_use_aux_free": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "like-21b": MOE | {
        "vocab_size": 2048, "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "moe_num_experts": 16,
        "moe_k": 6, "moe_intermediate_size": 128, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_end_index": 3,
    },
    "like-300b": MOE | {
        "vocab_size": 1536, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 5,
        "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": False, "moe_num_experts": 32,
        "moe_k": 8, "moe_intermediate_size": 256, "moe_num_shared_experts": 0, "moe_layer_start_index": 3,
        "moe_layer_end_index": 4,
    },
    "like-0.3b": SMALL | {
        "architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "vocab_size": 2048,
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True,
    },
    "few-experts": MOE | {
        "vocab_size": 1536, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False, "moe_num_experts": 4,
        "moe_k": 1, "moe_intermediate_size": 256, "moe_num_shared_experts": 1, "moe_layer_start_index": 0,
        "moe_layer_end_index": 2,
    },
}  # fmt: skip

Make = Callable[[Path], Path]
"""A checkpoint in an empty folder."""


def published() -> Make:
    return lambda work: embedded.folder()


def random(shape: str, seed: int) -> Make:
    """Weights with the scales and outliers of trained ones, which know nothing."""

    def make(work: Path) -> Path:
        source = work / shape
        source.mkdir()
        (source / "config.json").write_text(json.dumps(SHAPES[shape]))
        synthesize(str(source), work / "checkpoint", Silent(), seed=seed)
        return work / "checkpoint"

    return make


def changed(change: Callable[[dict[str, Any], Any], dict[str, Any]], seed: int) -> Make:
    """ernie-nano, its tensors changed: a trained model that is another one."""

    def make(work: Path) -> Path:
        import torch
        from safetensors.torch import load_file, save_file

        folder = work / "checkpoint"
        folder.mkdir()
        for path in embedded.folder().iterdir():
            if path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
        (weights,) = embedded.folder().glob("*.safetensors")
        tensors = change(load_file(weights), torch.Generator().manual_seed(seed))
        save_file(tensors, folder / weights.name, {"format": "pt"})
        return folder

    return make


def nudged(tensors: dict[str, Any], generator: Any) -> dict[str, Any]:
    """Each weight off by about 1 %, as by some more training."""
    import torch

    return {
        name: (values * (1 + 0.01 * torch.randn(values.shape, generator=generator))).to(values.dtype)
        for name, values in tensors.items()
    }


def renumbered(tensors: dict[str, Any], generator: Any) -> dict[str, Any]:
    """The experts of each layer in another order, their routers' rows with them: the same function."""
    import torch

    found = dict(tensors)
    for name, router in tensors.items():
        if name.endswith("mlp.gate.weight"):
            block = name.removesuffix("gate.weight")
            order = torch.randperm(len(router), generator=generator)
            found[name] = router[order].clone()
            (bias,) = (key for key in tensors if key.startswith(block) and key.endswith("correction_bias"))
            found[bias] = tensors[bias][..., order].clone()
            for new, old in enumerate(order.tolist()):
                for kind in ("gate", "up", "down"):
                    expert = f"{block}experts.{{}}.{kind}_proj.weight"
                    found[expert.format(new)] = tensors[expert.format(old)]
    return found


def in_fp32(tensors: dict[str, Any], generator: Any) -> dict[str, Any]:
    """Stored in fp32, no weight of which is a bf16."""
    import torch

    return {
        name: values.float() * (1 + 1e-4 * torch.rand(values.shape, generator=generator))
        for name, values in tensors.items()
    }


BUILDS: list[tuple[str, Make, tuple[str, ...]]] = [
    ("like-21b, seed 0", random("like-21b", 0), ALL),
    ("like-21b, seed 1", random("like-21b", 1), ("int4",)),
    ("like-300b, seed 0", random("like-300b", 0), ALL),
    ("like-300b, seed 1", random("like-300b", 1), ("int8",)),
    ("like-0.3b, seed 0", random("like-0.3b", 0), ALL),
    ("few-experts, seed 0", random("few-experts", 0), ("fp32", "int4")),
    ("ernie-nano", published(), ALL),
    ("ernie-nano, nudged", changed(nudged, 1), ("int8", "int4")),
    ("ernie-nano, experts renumbered", changed(renumbered, 2), ("int4",)),
    ("ernie-nano, in fp32", changed(in_fp32, 3), ("fp16",)),
]


def rows(work: Path, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """A row for each build that is not done."""
    for number, (name, make, recipes) in enumerate(BUILDS):
        if left := [recipe for recipe in recipes if (name, recipe) not in done]:
            place = work / str(number)
            place.mkdir()
            checkpoint = make(place)
            for recipe in left:
                output = place / recipe
                found = pipeline.build(checkpoint, Target.find("cpu"), Recipe.find(recipe), output)
                timing = timed(output) if name == "ernie-nano" and found.verdict == "passed" else {}
                yield {"checkpoint": name, **of_report(found.report_data), **timing}


def of_report(report: Report) -> dict[str, Any]:
    gated = {gate.name for gate in report.gates}
    return {
        "recipe": report.recipe,
        "verdict": report.verdict,
        "fault": report.fault,
        "alarms": {gate.name: gate.value for gate in report.gates if not gate.passed},
        "measured": {
            name: float(f"{report.metrics[name]:.3g}") for name in sorted(gated & {*report.metrics})
        },
        "notes": report.notes,
    }


def timed(bundle: Path) -> dict[str, Any]:
    """`ernie-export validate` of a bundle, whole, in a process of its own."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "ernie_export", "validate", str(bundle), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {
        "validate_seconds": round(time.perf_counter() - begun, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def shown(row: dict[str, Any]) -> str:
    took = f", validate {row['validate_seconds']} s" if "validate_seconds" in row else ""
    alarms = "".join(f"\n    {name} = {value}" for name, value in row["alarms"].items())
    return f"{row['checkpoint']}, {row['recipe']}: {row['verdict']}{took}{alarms}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    found: list[dict[str, Any]] = []
    if parser.parse_args().resume and RESULTS.exists():
        found = json.loads(RESULTS.read_text())["rows"]
    done = {(row["checkpoint"], row["recipe"]) for row in found}
    with tempfile.TemporaryDirectory() as work:
        os.environ["ERNIE_EXPORT_CACHE"] = f"{work}/cache"
        for row in rows(Path(work), done):
            found.append(row)
            print(shown(row), flush=True)
            write(found)
    alarms = sum(row["verdict"] == "failed" for row in found)
    print(f"{len(found)} builds, {alarms} false alarms")
    return int(alarms > 0)


def write(found: list[dict[str, Any]]) -> None:
    alarms = sum(row["verdict"] == "failed" for row in found)
    cores = len(os.sched_getaffinity(0))
    result = {"builds": len(found), "false_alarms": alarms, "cores": cores, "rows": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
