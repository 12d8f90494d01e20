"""The plan of a checkpoint, a recipe and a target: does it fit, what takes how much, how fast can it be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from ernie_export.errors import UserError
from ernie_export.plan import machine
from ernie_export.plan.building import Building, building
from ernie_export.plan.changes import Change, changes, furthest
from ernie_export.plan.measured import CPU_PIECE, GPU_OVERHEAD, MIB, RTX_PIECE
from ernie_export.plan.memory import Memory, memory
from ernie_export.plan.native import runs_natively
from ernie_export.plan.setting import Setting
from ernie_export.plan.traffic import Traffic, traffic
from ernie_export.plan.weights import Part, bytes_by_part, weight_files
from ernie_export.taken import require_taken

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

NATIVE = "native operators read every matrix where it lies in its file; the KV cache is fp16"
OWN = (
    "the KV cache is fp32; every matrix is copied into the order of the kernels when the engine opens, fp16 ones "
    "as fp32, the embedding is read from its file"
)
PROMPT = 512
"""Tokens of a prompt, if nothing else is said."""


class Plan(BaseModel):
    """What `ernie-export plan --json` prints. Sizes in bytes; GB are 10⁹."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    checkpoint: str
    target: str
    recipe: str
    setting: Setting
    fits: bool
    available: int
    """Memory that the engine may have."""
    needed: int
    """At the highest point of opening or running."""
    weight_files: dict[Part, int]
    """On disk."""
    memory: Memory
    building: Building
    traffic: list[Traffic]
    """At batch 1, and at the planned batch where that is another."""
    bandwidth: float | None
    """Bytes a second."""
    changes: list[Change]
    """What would make it fit, the smallest change first."""
    furthest: Change
    """Every change there is, where those do not do: the least that can be needed."""
    assumptions: dict[str, str]
    """What the numbers rest on, by what it is about."""


def plan(
    config: ErnieConfig,
    target: Target,
    recipe: Recipe,
    checkpoint: str,
    context: int | None = None,
    batch: int = 1,
    prompt: int = PROMPT,
) -> Plan:
    """Plan from the config alone; a context that is not given is the recipe's or the checkpoint's.

    For a target without figures, cpu, this machine's memory and bandwidth are measured.

    Raises:
        UserError: the target does not take a format of the recipe, the recipe does not fit the shape, or the
            context is more than the checkpoint promises.
    """
    require_taken(target, recipe)
    setting = setting_of(config, recipe, context, batch, prompt)
    available = available_on(target)
    bandwidth = bandwidth_of(target)
    need = memory(config, target, setting)
    files = bytes_by_part(weight_files(config, setting.parts, setting.context))

    def needs(setting: Setting) -> int:
        return memory(config, target, setting).peak

    fits = need.peak <= available
    return Plan(
        checkpoint=checkpoint,
        target=target.name,
        recipe=recipe.name,
        setting=setting,
        fits=fits,
        available=available,
        needed=need.peak,
        weight_files=files,
        memory=need,
        building=building(config, target, setting, sum(files.values()), recipe.calibration),
        traffic=[
            traffic(config, target, setting.model_copy(update={"batch": rows}), bandwidth)
            for rows in sorted({1, setting.batch})
        ],
        bandwidth=bandwidth,
        changes=[] if fits else changes(config, setting, available, needs),
        furthest=furthest(config, setting, needs),
        assumptions=assumptions(config, target, setting, bandwidth)
        | ({"bits": "as the recipe writes them; a build chooses them for its budget"} if recipe.bits else {}),
    )


def setting_of(config: ErnieConfig, recipe: Recipe, context: int | None, batch: int, prompt: int) -> Setting:
    promised = config.max_position_embeddings
    context = context or recipe.context or promised
    if context > promised:
        raise UserError(
            f"A context of {context} is asked for, the checkpoint promises {promised}",
            f"Ask for at most {promised}.",
        )
    return Setting(
        parts=recipe.parts,
        context=context,
        batch=batch,
        prompt=min(prompt, context),
        native=machine.native_operators() is not None,
    )


def peak_memory(config: ErnieConfig, target: Target, recipe: Recipe, context: int) -> int:
    """Bytes at the highest point of opening or running one row of that many tokens."""
    return memory(config, target, setting_of(config, recipe, context, 1, PROMPT)).peak


def available_on(target: Target) -> int:
    """
    Raises:
        UserError: the target is for any card, so that there is nothing to plan with.
    """
    if target.memory is None and target.needs_gpu:
        raise UserError(
            f"The target {target.name} is for any card, and so has no memory of its own to plan with",
            "Say how much yours has, `--memory 24GB`, or plan for a card by its name: `--target l4`.",
        )
    if target.memory is None:
        return machine.memory()[1]
    return target.memory.bytes - (target.reserved.bytes if target.reserved else 0)


def bandwidth_of(target: Target) -> float | None:
    """Bytes a second; measured where the target is this machine, None where nobody knows it."""
    if target.bandwidth:
        return target.bandwidth.gb_per_s * 1e9
    return None if target.needs_gpu else machine.bandwidth()


def assumptions(
    config: ErnieConfig, target: Target, setting: Setting, bandwidth: float | None
) -> dict[str, str]:
    """All that the numbers rest on, in words, by what it is about."""
    said = {
        "use": f"{setting.batch} row{'s' * (setting.batch > 1)} of up to {setting.context:,} tokens, "
        f"prompts of up to {setting.prompt:,}",
        **(
            of_the_table(target)
            if target.needs_gpu
            else of_a_cpu(target, runs_natively(config, target, setting), bandwidth)
        ),
        "tokens/s": "the weights, and at a full context the cache, are read once a token at that bandwidth "
        "and nothing else takes time; no program reaches it",
    }
    if config.moe_num_experts and setting.batch > 1:
        said["experts"] = "each row chooses its own, independently and all equally often"
    said["build"] = (
        "on this machine, all its cores: measured with torch 2.13 and transformers 5.24 on shapes of 0.01 to "
        "3 B parameters; validation holds one layer of transformers' model in fp32, and the engine twice or, "
        "where that is more, layer by layer too"
    )
    if target.note:
        said["note"] = target.note
    return said


def of_a_cpu(target: Target, native: bool, bandwidth: float | None) -> dict[str, str]:
    """This machine's, but for what somebody names."""
    memory, rate = target.memory, target.bandwidth
    return {
        "memory": f"{memory.mib:,} MiB ({memory.source})" if memory else "what is free on this machine now",
        "bandwidth": f"{bandwidth / 1e9:.1f} GB/s, {rate.source if rate else 'measured now'}"
        if bandwidth
        else "unknown: too little memory is free to measure it",
        "engine": f"{NATIVE if native else OWN}, and prompts are fed in pieces of at most {CPU_PIECE} "
        "tokens: measured with ONNX Runtime 1.32",
    }


def of_the_table(target: Target) -> dict[str, str]:
    assert target.memory and target.reserved
    rate = target.bandwidth
    return {
        "memory": f"{target.memory.mib:,} MiB ({target.memory.source})",
        "reserved": f"{target.reserved.mib:,} MiB of it ({target.reserved.source})",
        "bandwidth": f"{rate.gb_per_s:g} GB/s ({rate.source})"
        if rate
        else "unknown: say it with --bandwidth",
        "engine": "assumed, for none has run on this target yet: weights as their files hold them, KV cache and "
        f"activations in fp16, {GPU_OVERHEAD // MIB} MiB for the runtime"
        + (
            f"; of a prompt {RTX_PIECE} tokens at once, by every expert of a layer, unpacked to fp16: what the builder "
            "asks for (benchmarks/rtx.py)"
            if target.runtime == "tensorrt_rtx"
            else ""
        ),
    }
