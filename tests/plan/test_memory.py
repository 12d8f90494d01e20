from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine import onnxruntime
from ernie_export.plan import machine
from ernie_export.plan.measured import CPU_PIECE, CPU_SCORES, GPU_OVERHEAD
from ernie_export.plan.memory import Memory, memory
from ernie_export.plan.setting import Setting
from ernie_export.plan.weights import bytes_by_part, weight_files
from ernie_export.recipe import Parts, Recipe
from ernie_export.target import Target

HIGHEST = """
import sys
from pathlib import Path
from ernie_export.engine.open import open_engine

engine = open_engine(Path(sys.argv[1]))
session = engine.start(1, 512)
session.feed([[at % 1000 for at in range(500)]])
session.feed([[5]])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


def of(config: ErnieConfig, target: str, parts: Parts, **use: int) -> Memory:
    setting = Setting(parts=parts, **({"context": 4096, "batch": 1, "prompt": 512} | use))
    return memory(config, Target.find(target), setting)


@pytest.mark.parametrize("name", ["int4", "fp16"])
def test_within_15_percent_of_what_an_engine_takes(name: str, nano: Path, bundle) -> None:
    native = machine.native_operators() is not None
    planned = of(
        ErnieConfig.read(nano), "cpu", Recipe.find(name).parts, context=512, prompt=500, native=native
    )
    ran = subprocess.run(
        [sys.executable, "-c", HIGHEST, bundle(name)], check=True, capture_output=True, text=True
    )
    assert planned.peak == pytest.approx(int(ran.stdout), rel=0.15)


def test_a_gpu_holds_weights_as_their_files_do(the_21b: ErnieConfig, int4_fp16_head: Parts) -> None:
    found = of(the_21b, "l4", int4_fp16_head)
    files = bytes_by_part(weight_files(the_21b, int4_fp16_head, 4096))
    assert {part: size for part, size in files.items() if part != "padding"} == {
        part: size for part, size in found.weights.items() if part != "padding"
    }
    assert found.overhead == GPU_OVERHEAD
    assert found.kv_cache == 4096 * 28 * 2 * 4 * 128 * 2
    assert found.running == sum(found.weights.values()) + found.kv_cache + found.activations + found.overhead
    assert found.opening < found.running == found.peak


def test_the_cpu_holds_the_cache_and_fp16_layers_as_fp32(the_21b: ErnieConfig) -> None:
    gpu, cpu = (of(the_21b, target, Recipe.find("fp16").parts) for target in ("l4", "cpu"))
    assert cpu.kv_cache == 2 * gpu.kv_cache
    assert cpu.weights["experts"] == 2 * gpu.weights["experts"]
    assert cpu.weights["attention"] == 4 * gpu.weights["attention"]
    assert cpu.weights["head"] == 2 * gpu.weights["embedding"] and gpu.weights["head"] == 0
    assert cpu.weights["embedding"] == gpu.weights["embedding"]
    assert cpu.opening > sum(cpu.weights.values())  # fp16 turns to fp32 before the first form goes


def test_native_operators_hold_the_cache_as_fp16_and_copy_no_weight(
    the_21b: ErnieConfig, int4_everywhere: Parts
) -> None:
    own, native = (of(the_21b, "cpu", int4_everywhere, context=32768, native=has) for has in (False, True))
    gpu = of(the_21b, "h100", int4_everywhere, context=32768)
    assert native.weights == gpu.weights and native.kv_cache == gpu.kv_cache == own.kv_cache / 2
    assert native.opening < own.opening / 10 and native.overhead == own.overhead
    assert native.activations > own.activations  # pieces are cut for GroupQueryAttention's scores
    floats = Recipe.find("fp16").parts
    assert of(the_21b, "cpu", floats, native=True) == of(the_21b, "cpu", floats)
    assert of(the_21b, "h100", int4_everywhere, native=True, context=32768) == gpu


@pytest.mark.parametrize("target", ["cpu", "h100"])
def test_the_cache_grows_with_context_and_batch_and_activations_with_the_prompt(
    target: str, the_21b: ErnieConfig, int4_everywhere: Parts
) -> None:
    one = of(the_21b, target, int4_everywhere)
    half, more = (of(the_21b, target, int4_everywhere, **use) for use in ({"context": 2048}, {"batch": 3}))
    fed = of(the_21b, target, int4_everywhere, prompt=256)
    assert (2 * half.kv_cache, more.kv_cache) == (one.kv_cache, 3 * one.kv_cache)
    assert half.activations == one.activations > fed.activations
    assert fed.kv_cache == one.kv_cache and fed.weights == one.weights == more.weights


def test_all_float_experts_are_run_at_once_on_the_cpu(the_21b: ErnieConfig) -> None:
    exact, packed = (of(the_21b, "cpu", Recipe.find(name).parts) for name in ("fp32", "int4"))
    assert exact.activations > 4 * packed.activations


def test_a_long_prompt_is_fed_in_pieces_on_the_cpu(the_21b: ErnieConfig, int4_everywhere: Parts) -> None:
    one, long = (of(the_21b, "cpu", int4_everywhere, prompt=prompt) for prompt in (CPU_PIECE, 4096))
    far = of(the_21b, "cpu", int4_everywhere, context=131072)
    assert far.activations < one.activations == long.activations < 200_000_000


def test_rows_of_one_shape_take_a_second_block_on_the_cpu(
    the_21b: ErnieConfig, int4_everywhere: Parts
) -> None:
    one, two, four = (of(the_21b, "cpu", int4_everywhere, batch=batch).activations for batch in (1, 2, 4))
    assert two == 2 * one and four - two == 2 * 4 * the_21b.vocab_size


def test_pieces_are_those_of_the_engine() -> None:
    assert (CPU_PIECE, CPU_SCORES) == (onnxruntime.PIECE, onnxruntime.SCORES)


def test_a_dense_model_has_no_experts(int4_everywhere: Parts) -> None:
    config = ErnieConfig.read(shapes.folder("0.3b"))
    for target in ("cpu", "l4"):
        found = of(config, target, int4_everywhere)
        assert found.weights["experts"] == found.weights["router"] == 0 < found.weights["dense"]
