"""One weight file from the mapped checkpoint: a job a matrix, in pieces of rows.

What is in memory at once are the pieces that are being quantized, however large the model is. A
tensor's digest is made just before it is quantized, while its pages are there: the fingerprint needs
it, and so the checkpoint is read from the disk once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ernie_export.errors import UserError
from ernie_export.graph.weights import (
    Stored,
    WeightFile,
    expert_matrix,
    form_of,
    matrix_sources,
    plain,
    source_of,
)
from ernie_export.quantize.formats import NotFinite, Packed, matrix_scale, quantize, stored_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ernie_export.checkpoint.checkpoint import Checkpoint
    from ernie_export.recipe import PartFormat, Parts

    Array = NDArray[Any]
    #: (name of the initializer, number of the expert or None, the whole matrix [N, K], format) → its stored form.
    Pack = Callable[[str, int | None, Array, PartFormat], Packed]

#: Weights that are packed at once.
PIECE = 1 << 21
#: Weights of a job, where a matrix is not an expert's.
JOB = 1 << 25


def write(
    file: WeightFile,
    checkpoint: Checkpoint,
    parts: Parts,
    target: Path,
    pool: Executor,
    advance: Callable[[int], None] = lambda _bytes: None,
    pack: Pack | None = None,
) -> str:
    """Quantize and write one file; return its SHA-256.

    `pool` runs the jobs, several at once; `advance` gets the bytes of the checkpoint that a job is done
    with. `pack` quantizes a matrix in place of `quantize`, and is called from several threads.

    Raises:
        UserError: a weight is NaN or infinite, or too large for its format; or the checkpoint changed
            since it was opened.
    """
    with target.open("wb") as stream:
        stream.truncate(file.size)
        writer = Writer(stream.fileno(), file, checkpoint, parts, advance, pack)
        finish([pool.submit(job) for job in writer.jobs()])
        os.fsync(stream.fileno())
    checkpoint.require_unchanged()
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def finish(jobs: list[Future[Any]]) -> None:
    """Wait for all; the first that failed is told, when none runs any more."""
    try:
        for job in jobs:
            job.result()
    except BaseException:
        # A cancelled job that its pool forgot never ends: only those that run are waited for.
        wait([job for job in jobs if not job.cancel()])
        raise


@dataclass(frozen=True)
class Writer:
    descriptor: int
    file: WeightFile
    checkpoint: Checkpoint
    parts: Parts
    advance: Callable[[int], None]
    pack: Pack | None

    def jobs(self) -> Iterator[Callable[[], object]]:
        """In the order of the file; a digest stands before what reads the same tensor."""
        places = {stored.name: stored for stored in self.file.tensors}
        digested = set[str]()
        for stored in self.file.tensors:
            if stored.name.endswith("scales"):
                continue
            matrix = [places[name] for name in stored_names(stored.name) if name in places]
            for number, sources in matrix_sources(stored.name, self.checkpoint):
                for source in sources:
                    if source not in digested:
                        digested.add(source)
                        yield partial(self.checkpoint.digest, source)
                yield from self.jobs_of(matrix, number)

    def jobs_of(self, matrix: list[Stored], number: int | None) -> Iterator[Callable[[], object]]:
        """`matrix`: where its data lie, its scales and its own scale, as far as it has them."""
        stored = matrix[0]
        form = form_of(stored.name, self.parts)
        if form is None:
            yield partial(self.put_plain, stored)
        elif number is not None or self.pack:
            yield partial(self.put_matrix, matrix, number, form)
        else:
            rows, columns = self.checkpoint.tensors[source_of(stored.name, self.checkpoint)].shape
            for begin, end in pieces(rows, columns, JOB):
                yield partial(self.put_matrix, matrix, None, form, begin, end)

    def put_plain(self, stored: Stored) -> None:
        self.checkpoint.require_unchanged()
        values = plain(stored, self.checkpoint).astype(stored.dtype, copy=False)
        put(self.descriptor, stored.offset, values)
        if not stored.name.startswith("rope."):
            self.advance(self.checkpoint.tensors[source_of(stored.name, self.checkpoint)].nbytes)

    def put_matrix(
        self,
        places: list[Stored],
        number: int | None,
        form: PartFormat,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """Rows `begin` to `end` of a matrix, or all of an expert's, which lies behind those before it."""
        self.checkpoint.require_unchanged()
        stored = places[0]
        if number is None:
            source = source_of(stored.name, self.checkpoint)
            matrix = self.checkpoint.array(source)
        else:
            source, matrix = expert_matrix(stored.name, number, self.checkpoint)
        first = (number or 0) * len(matrix)
        rows, columns = matrix.shape
        scale = matrix_scale(matrix, form)
        whole = [(0, rows)] if self.pack else pieces(rows, columns, PIECE, begin, end)
        for top, bottom in whole:
            try:
                if self.pack:
                    packed = self.pack(stored.name, number, matrix, form)
                else:
                    packed = quantize(matrix[top:bottom], form, scale)
            except NotFinite as error:
                raise UserError(
                    f"{source} holds NaN, infinity or a number too large for {form.format}",
                    "Fetch the checkpoint again, or store that part in fp32.",
                ) from error
            for place, values in zip(places, (packed.data, packed.scales), strict=False):
                assert values is not None
                put_rows(self.descriptor, place, first + top, values)
            if packed.matrix_scale is not None:
                put_rows(self.descriptor, places[-1], number or 0, packed.matrix_scale)
            self.advance(matrix[top:bottom].nbytes)


def pieces(
    rows: int, columns: int, weights: int, begin: int = 0, end: int | None = None
) -> Iterator[tuple[int, int]]:
    """First row and the row behind the last, of so many weights at most, or of one row."""
    end = rows if end is None else end
    step = max(1, weights // columns)
    for top in range(begin, end, step):
        yield top, min(top + step, end)


def put_rows(descriptor: int, stored: Stored, row: int, array: Array) -> None:
    put(descriptor, stored.offset + row * array.shape[-1] * array.itemsize, array)


def put(descriptor: int, offset: int, array: Array) -> None:
    left = array.reshape(-1).view(np.uint8).data
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done
