"""Faults of the weights: those that are stored, and those that the checkpoint has."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.validate.fault import BOTH, FP32, GPTQ, INT4, Fault
from tests.validate.planting import Array, Plant, mapped, stored, tensor


def swapped_experts(values: Array) -> Array:
    values[[2, 5]] = values[[5, 2]]
    return values


def two_experts_swapped(folder: Path) -> None:
    for kind in ("gate_up", "down"):
        for scales in ("", "_scales"):
            if not scales or mapped(folder, f"layers.3.experts.{kind}").dtype == np.uint8:
                stored(f"layers.3.experts.{kind}{scales}", swapped_experts)(folder)


def zero_expert(values: Array) -> Array:
    values[7] = 0x88 if values.dtype == np.uint8 else 0  # two zero levels a byte
    return values


def up_before_gate(values: Array) -> Array:
    return values.reshape(len(values), -1, 2, values.shape[-1])[:, :, ::-1].reshape(values.shape)


def gate_up_swapped(folder: Path) -> None:
    stored("layers.4.experts.gate_up", up_before_gate)(folder)
    if mapped(folder, "layers.4.experts.gate_up").dtype == np.uint8:
        stored("layers.4.experts.gate_up_scales", up_before_gate)(folder)


def norms_swapped(folder: Path) -> None:
    first, second = (mapped(folder, f"layers.2.{name}_norm.weight") for name in ("input", "post_attention"))
    first[...], second[...] = second.copy(), first.copy()


def rope_of(theta: float) -> Plant:
    def plant(folder: Path) -> None:
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            table = mapped(folder, f"rope.{name}")
            positions, half = table.shape
            frequencies = theta ** (-np.arange(half) / half)
            table[...] = function(np.arange(positions)[:, None] * frequencies)

    return plant


def neighbour(folder: Path) -> None:
    shutil.copyfile(folder / "weights" / "layer-002.bin", folder / "weights" / "layer-003.bin")


def one_more(codes: Array) -> Array:
    return (((codes & 15) + 1) & 15) | ((((codes >> 4) + 1) & 15) << 4)


def one_code(values: Array) -> Array:
    if values.dtype == np.uint8:
        values[9, 3, 17] ^= 0x04
    else:
        values[9, 3, 17] *= 1.01
    return values


def with_nan(values: Array) -> Array:
    values.reshape(-1)[11] = np.nan
    return values


def giant_channel(checkpoint: Path) -> None:
    def enlarge(weight: Array) -> Array:
        weight[5] *= 3e5
        return weight

    tensor(checkpoint, "model.layers.2.mlp.shared_experts.down_proj.weight", enlarge)


def giant_inside(checkpoint: Path) -> None:
    """One expert's up a lot larger and its down smaller: only between the two is anything large."""
    expert = "model.layers.2.mlp.experts.14."
    tensor(checkpoint, f"{expert}up_proj.weight", lambda weight: weight * 2000)
    tensor(checkpoint, f"{expert}down_proj.weight", lambda weight: weight / 200)


def giant_weight(checkpoint: Path) -> None:
    def enlarge(weight: Array) -> Array:
        weight[3, 5] = 1e5
        return weight

    tensor(checkpoint, "model.layers.2.self_attn.k_proj.weight", enlarge)


def nan_in_checkpoint(checkpoint: Path) -> None:
    tensor(checkpoint, "model.layers.4.self_attn.o_proj.weight", with_nan)


def roll(values: Array) -> Array:
    return np.roll(values, 1, axis=-1)


PLACED, BLOCK = "weights.misplaced", "weights.block_error"

FAULTS = [
    Fault("correction bias dropped", PLACED, "layers.3.router.bias", stored("layers.3.router.bias", np.zeros_like)),
    Fault("two experts swapped", PLACED, "layers.3.experts.gate_up (expert ", two_experts_swapped, (*BOTH, *GPTQ)),
    Fault(
        "one expert zero", PLACED, "layers.5.experts.down (expert 7 of layer 5)",
        stored("layers.5.experts.down", zero_expert),
    ),
    Fault("gate and up of the experts swapped", PLACED, "layers.4.experts.gate_up", gate_up_swapped, (*BOTH, *GPTQ)),
    Fault("two norms swapped", PLACED, "layers.2.input_norm.weight", norms_swapped),
    Fault("RoPE of another theta", PLACED, "rope.cos", rope_of(10000)),
    Fault(
        "scales shifted by one block", PLACED, "layers.2.experts.gate_up",
        stored("layers.2.experts.gate_up_scales", roll), (*INT4, *GPTQ),
    ),
    Fault(
        "nibbles swapped", PLACED, "layers.3.shared.gate.weight",
        stored("layers.3.shared.gate.weight", lambda v: v >> 4 | v << 4), (*INT4, *GPTQ),
    ),
    Fault(
        "codes off by one", PLACED, "layers.0.mlp.up.weight", stored("layers.0.mlp.up.weight", one_more), (*INT4, *GPTQ)
    ),
    Fault(
        "one scale zero", BLOCK, "layers.1.experts.down",
        stored("layers.1.experts.down_scales", lambda v: v * (np.arange(v.size).reshape(v.shape) != 77)),
        (*INT4, *GPTQ),
    ),
    Fault("weights of the neighbour", PLACED, "layers.3.", neighbour, (*BOTH, *GPTQ)),
    Fault(
        "one weight of one expert a little off", PLACED, "layers.4.experts.gate_up (expert 9 of layer 4)",
        stored("layers.4.experts.gate_up", one_code),
    ),
    Fault(
        "one calibrated weight of one expert off", PLACED, "layers.4.experts.gate_up (expert 9 of layer 4)",
        stored("layers.4.experts.gate_up", one_code), GPTQ,
    ),
    Fault(
        "NaN in one scale", PLACED, "layers.1.attention.q.weight", stored("layers.1.attention.q.scales", with_nan),
        INT4,
    ),
    Fault(
        "NaN in one weight", PLACED, "layers.1.attention.q.weight", stored("layers.1.attention.q.weight", with_nan),
        FP32,
    ),
    Fault("fp16 overflow: activations", "activations.largest", "layers.2.shared.down", recipes=("fp16",),
          checkpoint=giant_channel),
    Fault("fp16 overflow: inside an expert", "activations.largest", "layers.2.experts.inner", recipes=("fp16",),
          checkpoint=giant_inside),
    Fault("fp16 overflow: a weight", "error", "model.layers.2.self_attn.k_proj.weight", recipes=("fp16",),
          checkpoint=giant_weight),
    Fault("NaN in the checkpoint", "error", "model.layers.4.self_attn.o_proj.weight", recipes=INT4,
          checkpoint=nan_in_checkpoint),
]  # fmt: skip
