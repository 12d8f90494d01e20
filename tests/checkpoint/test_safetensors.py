from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import save, save_file

from ernie_export.checkpoint.safetensors import TensorFile
from ernie_export.errors import UserError

STORED = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
shapes = st.just(()) | array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Name → array of any bits: NaN, infinities and denormals too."""
    found = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=6)):
        dtype = STORED[draw(st.sampled_from(sorted(STORED)))]
        bits = draw(arrays(f"uint{8 * dtype.itemsize}", draw(shapes)))
        found[name] = bits.view(dtype)
    return found


@given(stored=tensors())
def test_what_the_library_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    path.unlink(missing_ok=True)  # views of the last example may still look at the old file
    stored.pop("__metadata__", None)
    save_file(stored, path, {"format": "pt"})
    file = TensorFile(path)
    assert set(file.tensors) == set(stored)
    for name, array in stored.items():
        read, info = file.array(name), file.tensors[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert STORED[info.dtype] == array.dtype and info.shape == array.shape
        assert read.tobytes() == array.tobytes() == b"".join(file.pieces(name))
        assert not read.flags.writeable
        assert info.nbytes == array.nbytes


def test_an_array_is_a_view_and_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, path)
    array = TensorFile(path).array("a")
    assert not array.flags.owndata
    path.unlink()
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_type_that_is_not_read_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(2, np.int64)}, path)
    assert TensorFile(path).tensors["a"].dtype == "I64"


def test_offsets_need_not_be_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'  # 54 bytes
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32(2.5).tobytes())
    assert TensorFile(path).array("a").tolist() == [2.5]


WHOLE = save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)})
TWIN = b'"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}'
TWINS = b"{" + TWIN + b"," + TWIN + b"}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no whole safetensors file (it has 0 bytes, "),
        (WHOLE[:-1], "is no whole safetensors file (its tensors take 32 bytes, and there are 31)"),
        (WHOLE[:40], "is no whole safetensors file"),
        (WHOLE + b"x", "its tensors take 32 bytes, and there are 33"),
        (b"\xff" * 64, "header too large"),
        (WHOLE.replace(b"[0,24]", b"[0,99]"), "is no whole safetensors file"),
        (WHOLE.replace(b"[2,3]", b"[2,9]"), "is no whole safetensors file"),
        (len(TWINS).to_bytes(8, "little") + TWINS + b"\0\0", "its header names a twice"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS pointer, not the weights",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        TensorFile(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is no file"):
        TensorFile(tmp_path)


@given(
    cut=st.none() | st.integers(0, len(WHOLE)),
    changes=st.dictionaries(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), max_size=4),
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int | None, changes: dict[int, int]
) -> None:
    content = bytearray(WHOLE)
    for at, byte in changes.items():
        content[at] = byte
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content[:cut])
    try:
        file = TensorFile(path)
    except UserError:
        return
    for name, info in file.tensors.items():
        assert info.offset + info.nbytes <= len(content)
        if info.dtype in STORED:
            assert file.array(name).nbytes == info.nbytes
