"""Does a bundle suit this device, and is its engine right here: asked before it becomes the active one.

The engine is tried in a process of its own, so that one which crashes or hangs takes nothing with it.
It is given the prompts of the bundle's self-check, and held to what the checkpoint's own model said.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ernie_export.bundle.manifest import Manifest
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.distribute.policy import Policy
from ernie_export.engine.compatibility import memory, require_compatible
from ernie_export.engine.info import EngineInfo
from ernie_export.errors import UserError, WorkError
from ernie_export.plan.plan import peak_memory
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate.asking import Tried, tried
from ernie_export.validate.gates import evaluate
from ernie_export.validate.selfcheck import SelfCheck

CONTEXT = 4096
"""Tokens for which there must be memory, or the bundle's own most."""
WITHIN = 600.0
"""Seconds for opening and the trial."""
_TRIED = TypeAdapter(Tried)


def require_suited(bundle: Path, manifest: Manifest) -> None:
    """That the engine is one this device can run, and fits into its free memory.

    Raises:
        UserError: it is for another kind of device.
        WorkError: it does not fit now.
    """
    target, info = Target.find(manifest.target), EngineInfo.read(bundle)
    if target.runtime != info.runtime:
        raise UserError(
            f"{bundle} is for {target.name}, which runs {target.runtime}, and its engine is for {info.runtime}",
            "Fetch or build it again.",
        )
    require_compatible(bundle, info)
    config, recipe = ErnieConfig.read(bundle), Recipe.read(bundle / "recipe.toml")
    longest = recipe.context or config.max_position_embeddings
    context = min(longest, CONTEXT)
    needed, free = peak_memory(config, target, recipe, context), memory(info)[1]
    if needed > free:
        raise WorkError(
            f"The bundle needs {size(needed)} of memory with {context:,} tokens of context, "
            f"and {size(free)} are free",
            "Stop what else runs here, or install one with fewer bits; `ernie-export plan` tells what fits.",
        )


def try_out(bundle: Path, policy: Policy, within: float = WITHIN) -> Tried:
    """What was seen of an engine that passed its self-check, and the policy's limits.

    Raises:
        UserError: the bundle holds no self-check, or a damaged one.
        WorkError: it crashed, hangs, answers otherwise than the checkpoint's own model, is too slow, or leaves
            too little memory.
    """
    check = SelfCheck.read(bundle)
    command = [sys.executable, "-m", "ernie_export.device.trial", str(bundle)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=within, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise WorkError(
            f"The engine did not answer within {within:.0f} s", "Install another bundle."
        ) from error
    if ran.returncode:
        told = ran.stderr.strip().splitlines()
        how = told[-1][:300] if told else f"it ended with {ran.returncode}"
        raise WorkError(f"The engine fails on this device ({how})", "Install another bundle.")
    try:
        seen = _TRIED.validate_json(ran.stdout.splitlines()[-1])
    except (ValidationError, IndexError) as error:
        raise WorkError("The engine's trial told nothing", "Install another bundle.") from error
    _require_right(check, seen)
    _require_within(policy, seen)
    return seen


def _require_right(check: SelfCheck, tried: Tried) -> None:
    shown = {name: bound for name, bound in check.about.bounds.items() if name in tried.metrics}
    failed = [result for result in evaluate(tried.metrics, shown) if not result.passed]
    if failed:
        raise WorkError(
            "The engine does not answer here as the checkpoint's own model does: its "
            + "; ".join(result.message for result in failed),
            "Install another bundle; nothing was changed.",
        )


def _require_within(policy: Policy, tried: Tried) -> None:
    if policy.max_token_ms is not None and tried.token_ms > policy.max_token_ms:
        raise WorkError(
            f"The engine takes {tried.token_ms:.1f} ms a token, and {policy.max_token_ms:g} ms are allowed",
            "Install one with fewer bits, stop what else runs here, or allow more (--max-token-ms).",
        )
    if tried.memory_free < policy.memory_headroom * tried.memory:
        raise WorkError(
            f"The engine leaves {size(tried.memory_free)} of {size(tried.memory)} of memory, "
            f"and the policy wants {policy.memory_headroom:.0%} to stay free",
            "Install one with fewer bits, stop what else runs here, or lower `memory_headroom` in the policy.",
        )


if __name__ == "__main__":
    from ernie_export.engine.open import open_engine

    bundle = Path(sys.argv[1])
    seen = tried(SelfCheck.read(bundle), lambda probes: open_engine(bundle, probes))
    sys.stdout.buffer.write(_TRIED.dump_json(seen))
