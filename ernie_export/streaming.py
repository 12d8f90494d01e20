"""The checkpoint through quantization into the weight files, one after the other, on all cores.

The jobs of a file run on every core; the next file's follow them at once, so that none is idle while a
finished file is synced and its digest made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_export.errors import WorkError
from ernie_export.graph import weight_writer
from ernie_export.graph.weights import WeightFile, read_layout, sources_of
from ernie_export.graph.write import FILE
from ernie_export.partial import Made, Work, digest_of
from ernie_export.plan.weights import weight_files
from ernie_export.progress import Step
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.graph.weight_writer import Pack
    from ernie_export.recipe import Parts, Recipe

#: Files under way at once: one whose jobs run, one that is being synced.
FILES = 2
WHY = {
    "checkpoint": "from another checkpoint, or this one has changed since",
    "layout": "by another recipe",
    "calibration": "by another calibration",
    "software": "by other versions of the software",
}


def prepare(
    work: Work, checkpoint: Checkpoint, parts: Parts, context: int, tell: Callable[[str], None], **more: str
) -> None:
    """Before any work: say what an earlier build left that is used or made anew, and see that the rest has room.

    `more`: what else the files depend on, each with a digest.

    Raises:
        WorkError: the disk is too small.
    """
    files = weight_files(checkpoint.config, parts, context)
    made_from = {file.path: inputs(file, checkpoint) | more for file in files}
    standing = {file.path for file in files if work.stands(file.path, made_from[file.path])}
    left = [file for file in files if file.path not in standing]
    reasons = dict.fromkeys(work.differs_in(file.path, made_from[file.path]) for file in left)
    for file in left:
        work.forget(file.path)
    if standing:
        there = sum(file.size for file in files if file.path in standing)
        tell(
            f"An earlier build is taken up: {len(standing)} of {len(files)} weight files are there "
            f"({size(there)}), {len(left)} are left"
        )
    for reason in reasons:
        if reason:
            tell(f"What an earlier build left was made {WHY.get(reason, 'otherwise')}: it is made anew")
    require_room(work.folder, sum(file.size for file in left))


def require_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise WorkError(
            f"the weights need {size(wanted)}, {folder} has room for {size(free)}",
            f"Free {size(wanted - free)}, or name an --output on another disk; "
            "the build goes on where it stopped.",
        )


def write_weights(work: Work, checkpoint: Checkpoint, recipe: Recipe, **more: str) -> None:
    """Make the files that the graph refers to and that are not there yet; `more` as in `prepare`.

    Raises:
        UserError: a weight fits no number of its format, or the checkpoint changed while it was read.
    """
    files, parts = read_layout(work.folder / FILE), recipe.parts
    left = [file for file in files if not work.stands(file.path, inputs(file, checkpoint) | more)]
    total = sum(bytes_read(file, checkpoint) for file in left)
    cores = len(os.sched_getaffinity(0))
    with (
        work.progress.step("Quantize and write", total, "B") as step,
        ThreadPoolExecutor(cores) as pool,
        ThreadPoolExecutor(FILES) as drivers,
    ):
        futures = [
            drivers.submit(make_weight_file, work, checkpoint, parts, file, pool, step, None, **more)
            for file in files
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            drivers.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(cancel_futures=True)
            raise


def make_weight_file(
    work: Work,
    checkpoint: Checkpoint,
    parts: Parts,
    file: WeightFile,
    pool: Executor,
    step: Step,
    pack: Pack | None = None,
    **more: str,
) -> None:
    """Make one file, unless it stands; `pack` quantizes a matrix, and `more` says what it depends on."""

    def writer(target: Path) -> Made:
        sha256 = weight_writer.write(file, checkpoint, parts, target, pool, step.advance, pack)
        return Made(sha256, {name: checkpoint.digest(name) for name in sources_of(file, checkpoint)})

    # The digests of a file that stands need not be made again: its inputs name the same checkpoint.
    sources = work.make(file.path, inputs(file, checkpoint) | more, writer)
    checkpoint.digests |= {name: sha256 for name, sha256 in sources.items() if name in checkpoint.tensors}


def inputs(file: WeightFile, checkpoint: Checkpoint) -> dict[str, str]:
    """What a weight file is made from; its layout tells the format of every tensor in it."""
    return {"checkpoint": checkpoint.opened_as, "layout": digest_of(repr(file))}


def bytes_read(file: WeightFile, checkpoint: Checkpoint) -> int:
    return sum(checkpoint.tensors[name].nbytes for name in sources_of(file, checkpoint))
