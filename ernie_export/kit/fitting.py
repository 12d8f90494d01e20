"""Whether a kit can be built here: the runtime, the machine, its memory and its disk, asked before the work."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.engine import cuda, found
from ernie_export.engine.compatibility import memory, mismatches
from ernie_export.engine.tensorrt_variants import VARIANTS
from ernie_export.errors import UserError, WorkError
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.engine.found import Found
    from ernie_export.kit.contents import Contents

CONTEXT = 4096
"""Tokens for which there must be memory, or the engine's own most."""


def require_fit(contents: Contents, output: Path, context: int) -> Found:
    """What the machine has, where that is what the kit needs.

    Raises:
        UserError: it is not the machine that the kit is for, or lacks the runtime.
        WorkError: there is too little memory or disk now.
    """
    requires = contents.info.requires
    assert requires
    problem = found.version_of("numpy")[1]  # asked first: a runtime that lacks it prints of it what it likes
    if problem and requires.architecture in (None, platform.machine()):
        raise UserError(
            f"{contents.folder} needs numpy, which does not load here ({problem})",
            f"Get it: {requires.install}.",
        )
    here = found.find(requires.module)
    for mismatch in mismatches(contents.folder, requires, here):
        raise mismatch
    problem = found.version_of(cuda.PACKAGE)[1] if requires.module in VARIANTS else ""
    if problem:
        raise UserError(
            f"{contents.folder} needs CUDA Python, which does not load here ({problem})", cuda.INSTALL
        )
    needed, free = needs(contents, context), memory(contents.info, here)[1]
    if needed > free:
        raise WorkError(
            f"The engine needs {size(needed)} of memory with {context:,} tokens of context, and {size(free)} are free",
            less(contents, context),
        )
    writes = contents.plan["disk"]
    if os.stat(output.parent).st_dev != os.stat(contents.folder).st_dev:
        writes += sum(entry.size for entry in contents.files.values())  # they cannot be shared
    if writes > (room := shutil.disk_usage(output.parent).free):
        raise WorkError(
            f"The build writes {size(writes)} to {output.parent}, where {size(room)} are free",
            "Free some space, or name an --output on another disk.",
        )
    return here


def context_of(contents: Contents, asked: int | None) -> int:
    """Tokens of context to make room for.

    Raises:
        UserError: more are asked for than the engine holds, or so few that nothing could be measured.
    """
    most = contents.info.max_context
    least = contents.plan["memory"][0]["context"]
    if asked is not None and not least <= asked <= most:
        raise UserError(
            f"A context of {asked} was asked for, this kit takes {least} to {most}", "Ask for one of these."
        )
    return asked or min(most, CONTEXT)


def needs(contents: Contents, context: int) -> int:
    """Bytes of memory, of the nearest context that was planned and is not less."""
    rooms = contents.plan["memory"]
    return int(next((room["bytes"] for room in rooms if room["context"] >= context), rooms[-1]["bytes"]))


def less(contents: Contents, context: int) -> str:
    """What to change where there is too little memory."""
    least = contents.plan["memory"][0]
    shorter = ""
    if least["context"] < context:
        shorter = f" ask for less with --context {least['context']} (it needs {size(least['bytes'])}),"
    return (
        f"Stop what else runs here,{shorter} or build a kit with fewer bits: "
        f"`ernie-export plan --target {contents.target}` tells what fits."
    )
