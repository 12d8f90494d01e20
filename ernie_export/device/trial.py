"""Does a bundle suit this device, and does it work here: asked before it becomes the active one.

The engine is tried in a process of its own, so that one which crashes or hangs takes nothing with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from ernie_export.bundle.manifest import Manifest
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.errors import UserError, WorkError
from ernie_export.plan import machine
from ernie_export.plan.memory import memory
from ernie_export.plan.plan import setting_of
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target

CONTEXT = 4096
"""Tokens for which there must be memory, or the bundle's own most."""
PROMPT, TOKENS = 16, 4
"""Tokens that the trial feeds and then decodes."""
WITHIN = 600.0
"""Seconds for opening and the trial."""


def require_suited(bundle: Path, manifest: Manifest) -> None:
    """That the engine is one this device can run, and fits into its free memory.

    Raises:
        UserError: it is for another kind of device.
        WorkError: it does not fit now.
    """
    target = Target.find(manifest.target)
    if target.runtime != "onnxruntime-cpu":
        raise UserError(
            f"{bundle} is for {target.name}, whose engines this version cannot run",
            "Install one for this device.",
        )
    config, recipe = ErnieConfig.read(bundle), Recipe.read(bundle / "recipe.toml")
    longest = recipe.context or config.max_position_embeddings
    setting = setting_of(config, recipe, min(longest, CONTEXT), 1, min(longest, CONTEXT, 512))
    needed, free = memory(config, target, setting).peak, machine.memory()[1]
    if needed > free:
        raise WorkError(
            f"The bundle needs {size(needed)} of memory with {setting.context:,} tokens of context, "
            f"and {size(free)} are free",
            "Stop what else runs here, or install one with fewer bits; `ernie-export plan` tells what fits.",
        )


def try_out(bundle: Path, within: float = WITHIN) -> dict[str, float]:
    """Seconds to open, to prefill and for a token, of an engine that answered with finite logits.

    Raises:
        WorkError: it crashed, was too slow, or its logits are no numbers.
    """
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
    answer: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def _try(bundle: Path) -> dict[str, float]:
    import numpy as np

    from ernie_export.engine.open import open_engine

    begun = time.perf_counter()
    engine = open_engine(bundle)
    opened = time.perf_counter()
    session = engine.start()
    prompt = [
        1 + number % (engine.info.vocab_size - 1)
        for number in range(min(PROMPT, engine.info.max_context - 1))
    ]
    fed = session.feed([prompt])
    prefilled = time.perf_counter()
    logits = [fed.logits[0]]
    for _ in range(min(TOKENS, engine.info.max_context - len(prompt))):
        logits.append(session.feed([[int(logits[-1][-1].argmax())]]).logits[0])
    decoded = time.perf_counter()
    if not all(np.isfinite(each).all() for each in logits):
        raise WorkError("Its logits are not all finite", "Install another bundle.")
    steps = max(len(logits) - 1, 1)
    return {"open": opened - begun, "prefill": prefilled - opened, "token": (decoded - prefilled) / steps}


if __name__ == "__main__":
    print(json.dumps(_try(Path(sys.argv[1]))))
