"""Whether an engine can be opened here, asked before: runtimes answer a wrong one with a crash, or worse, not at all.

Every answer says what was found, what is needed, and what mends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export import regular_file
from ernie_export.digest import sha256_of
from ernie_export.engine import found
from ernie_export.engine.tensorrt_variants import VARIANTS
from ernie_export.errors import UserError
from ernie_export.plan import machine
from ernie_export.versions import is_version, numbers

if TYPE_CHECKING:
    from ernie_export.engine.found import Found
    from ernie_export.engine.info import EngineInfo
    from ernie_export.engine.requires import Binary, Requires

MANIFEST = "manifest.json"
#: e_machine of an ELF file's header.
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
TITLES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def require_compatible(folder: Path, info: EngineInfo) -> None:
    """That the engine in `folder` can be opened here. A bundle from before it was noted has nothing to check.

    Raises:
        UserError: the first thing that does not fit.
    """
    if info.requires is None:
        return
    here = found.find(info.requires.module)
    for mismatch in mismatches(folder, info.requires, here):
        raise mismatch


def runs_here(folder: Path, info: EngineInfo) -> bool:
    """Whether there is an engine at all, and nothing speaks against opening it on this machine."""
    if info.requires is None or info.requires.engine is None:
        return False
    return not any(mismatches(folder, info.requires, found.find(info.requires.module)))


def mismatches(folder: Path, requires: Requires, here: Found) -> Iterator[UserError]:
    """Everything that does not fit, what decides over the rest first."""
    yield from unfit(folder, requires, here)
    binaries = (
        (requires.plugin, "plugin library"),
        (requires.engine, "engine"),
        (requires.prefill, "engine for prompts"),
    )
    for binary, what in binaries:
        if binary:
            yield from _binary(folder, binary, what)
    if requires.plugin:
        yield from _plugin(folder / requires.plugin.path, here)
    yield from _checkpoint(folder, requires)


def unfit(what: object, requires: Requires, here: Found) -> Iterator[UserError]:
    """What of the machine does not suit `what`, whatever its files hold."""
    yield from _machine(what, requires, here)
    yield from _version(what, requires, here)
    yield from _provider(what, requires, here)
    if requires.sm or requires.cuda:
        yield from _gpu(what, requires, here)


def memory(info: EngineInfo, here: Found | None = None) -> tuple[int, int]:
    """Bytes in all, and those that an engine can have: of the GPU's own memory if it runs there, else the system's.

    What this process has mapped, an open engine's weights above all, is not free.
    """
    if info.requires and (info.requires.module in VARIANTS or info.requires.provider):
        here = here or found.find(info.requires.module)
        if here.gpu and not here.gpu.shares_memory:
            free = found.free_on_gpu()
            return here.gpu.memory, here.gpu.memory if free is None else free
    total, free = machine.memory()
    return total, max(free - machine.mapped(), 0)


def require_room(info: EngineInfo, batch: int, length: int) -> None:
    """That a cache of `batch` rows and `length` tokens is within what the engine was built for.

    Raises:
        UserError: it is not.
    """
    if not 1 <= length <= info.max_context:
        raise UserError(
            f"a cache of {length} tokens was asked for, the engine holds at most {info.max_context}",
            "Ask for fewer, or build with a larger `context` in the recipe.",
        )
    most = info.requires.batch if info.requires else None
    if most is not None and batch > most:
        raise UserError(
            f"{batch} rows at once were asked for, the engine takes at most {most}",
            "Ask for fewer, or build with a larger `batch` in the recipe.",
        )


def _machine(what: object, requires: Requires, here: Found) -> Iterator[UserError]:
    if requires.architecture not in (None, here.architecture):
        yield UserError(
            f"{what} is for {requires.architecture}, this machine is {here.architecture}",
            f"Copy it to the device that it is for, or build one for a target with {here.architecture} "
            "(`ernie-export targets`).",
        )


def _version(what: object, requires: Requires, here: Found) -> Iterator[UserError]:
    needs = f"{what} needs {TITLES[requires.module]} {' or '.join(requires.versions)}"
    if here.version is None:
        yield UserError(f"{needs}, which does not load here ({here.problem})", f"Get it: {requires.install}.")
    elif not any(is_version(here.version, each) for each in requires.versions):
        why = [reason for each, reason in requires.planned.items() if is_version(here.version, each)]
        yield UserError(
            f"{needs}, here is {here.version}{f' ({why[0]})' if why else ''}",
            f"Get what it needs: {requires.install}; or build it again for what is here.",
        )


def _provider(what: object, requires: Requires, here: Found) -> Iterator[UserError]:
    wanted = requires.provider
    if wanted and here.version and wanted not in here.providers:
        yield UserError(
            f"{what} needs ONNX Runtime with {wanted}, which {here.version} here does not have",
            f"Get it: {requires.install}.",
        )


def _gpu(what: object, requires: Requires, here: Found) -> Iterator[UserError]:
    where = f" on this {here.device}" if here.device else ""
    if here.cuda is None:
        yield UserError(
            f"{what} needs a driver for CUDA {requires.cuda}, and there is none{where}",
            "Install NVIDIA's driver, and look whether `nvidia-smi` lists the GPU; "
            "in a container, start it with `--gpus all`.",
        )
    elif requires.cuda and numbers(here.cuda)[0] < numbers(requires.cuda)[0]:
        yield UserError(
            f"{what} needs a driver for CUDA {requires.cuda}, the one here takes {here.cuda} at most",
            "Flash the device with the JetPack that the target lists (`ernie-export targets`)."
            if "Jetson" in here.device
            else f"Install a driver for CUDA {numbers(requires.cuda)[0]} (580 or newer).",
        )
    elif here.gpu is None:
        yield UserError(
            f"{what} needs a GPU, and the driver finds none{where}",
            "Look whether `nvidia-smi` lists it, and whether CUDA_VISIBLE_DEVICES hides it.",
        )
    elif requires.sm and here.gpu.sm not in requires.sm:
        yield UserError(
            f"{what} is for compute capability {' or '.join(requires.sm)}, {here.gpu.name} has {here.gpu.sm}",
            "Build a bundle for this GPU: `ernie-export targets` lists them by name.",
        )


def _binary(folder: Path, binary: Binary, what: str) -> Iterator[UserError]:
    path = folder / binary.path
    again = "Fetch or build the bundle again; `ernie-export verify` tells what else has changed."
    try:
        digest = sha256_of(path) if path.is_file() else ""
    except OSError as error:
        yield UserError(f"The {what} {path} cannot be read ({error.strerror})", again)
        return
    if not digest:
        yield UserError(f"{folder} lacks its {what} {binary.path}", again)
    elif digest != binary.sha256:
        yield UserError(
            f"The {what} {path} is not the one that was built: its SHA-256 begins with {digest[:12]}, "
            f"needed is {binary.sha256[:12]}",
            again,
        )


def _plugin(path: Path, here: Found) -> Iterator[UserError]:
    """What the file says of itself: a kit that was put together by hand has a digest that is right."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return  # told already
    machine = ELF_MACHINES.get(int.from_bytes(head[18:], "little"))
    if head.startswith(b"\x7fELF") and machine and machine != here.architecture:
        yield UserError(
            f"The plugin library {path} is for {machine}, this machine is {here.architecture}",
            "Build the kit for this target again; `make plugins` makes the libraries of both.",
        )


def _checkpoint(folder: Path, requires: Requires) -> Iterator[UserError]:
    """A bundle that is still being built has no manifest yet; what is wrong with a damaged one, `verify` tells."""
    try:
        said = json.loads(regular_file.read(folder / MANIFEST))["checkpoint"]["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if said != requires.checkpoint:
        yield UserError(
            f"The engine in {folder} is bound to the checkpoint {requires.checkpoint[:12]}, "
            f"its weights are of {str(said)[:12]}",
            "The files of two bundles were mixed: fetch or build it again.",
        )
