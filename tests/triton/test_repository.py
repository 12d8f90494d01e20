"""Triton's schema reads the configuration, ONNX Runtime has what it says, and driven as it says the model is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from ernie_export.engine.info import EngineInfo
from ernie_export.errors import UserError
from ernie_export.reference.transformers_model import Reference
from ernie_export.triton.repository import make_repository

BuiltBundle = Callable[[str], Path]
DTYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP16": "tensor(float16)", "TYPE_INT64": "tensor(int64)"}
CONTEXT = 96


@pytest.fixture(scope="module")
def model(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    return make_repository(bundle("fp32"), repository, "ernie", CONTEXT, sequences=8)


@pytest.fixture(scope="module")
def config(schema: Any, model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.fixture(scope="module")
def session(model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model / "1/model.onnx/model.onnx", providers=["CPUExecutionProvider"])


def test_what_it_declares_is_what_the_graph_has(
    schema: Any, config: Any, session: onnxruntime.InferenceSession
) -> None:
    assert (config.name, config.backend, config.max_batch_size) == ("ernie", "onnxruntime", 1)
    batching = config.sequence_batching
    assert batching.oldest.max_candidate_sequences == 8
    states = batching.state
    declared_in = {each.name: each for each in config.input} | {each.input_name: each for each in states}
    declared_out = {each.name: each for each in config.output} | {each.output_name: each for each in states}
    for declared, there in ((declared_in, session.get_inputs()), (declared_out, session.get_outputs())):
        assert set(declared) == {value.name for value in there}
        for value in there:
            said = declared[value.name]
            assert DTYPES[schema.DataType.Name(said.data_type)] == value.type
            for size, real in zip(said.dims, value.shape[1:], strict=True):
                cached = value.name.startswith(("past", "present")) and size == CONTEXT
                assert size == real or (isinstance(real, str) and (size == -1 or cached))
    for state in states:
        (initial,) = state.initial_state
        assert initial.zero_data and list(initial.dims) == list(state.dims)
        assert initial.data_type == state.data_type and state.use_same_buffer_for_input_output


def test_driven_as_it_says_it_equals_transformers(
    config: Any, session: onnxruntime.InferenceSession, nano: Path
) -> None:
    """As the server does it: each state's output of a request is its input of the next; zeros at the start."""
    ids = np.random.default_rng(5).integers(3, 1536, (1, 40))
    want = Reference.open(nano).run(ids).logits[0]
    types = {value.name: value.type for value in session.get_inputs()}
    numbers = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    states = {
        state.input_name: np.zeros((1, *state.initial_state[0].dims), numbers[types[state.input_name]])
        for state in config.sequence_batching.state
    }
    outputs = [state.output_name for state in config.sequence_batching.state]
    at = 0
    for step in (17, 1, 1, 20, 1):
        asked = {
            "input_ids": ids[:, at : at + step],
            "attention_mask": np.ones((1, at + step), np.int64),
            "position_ids": np.arange(at, at + step)[None],
        }
        assert set(asked) == {each.name for each in config.input}
        logits, *presents = session.run(["logits", *outputs], asked | states)
        states = dict(zip(states, presents, strict=True))
        at += step
        assert logits.shape == (1, *config.output[0].dims)
        assert np.abs(logits[0, 0] - want[at - 1]).max() < 1e-4


def test_weights_take_no_room_twice(model: Path, bundle: BuiltBundle) -> None:
    for path in (bundle("fp32") / "weights").iterdir():
        assert path.samefile(model / "1/model.onnx/weights" / path.name)


def test_the_same_bundle_gives_the_same_bytes(model: Path, bundle: BuiltBundle, tmp_path: Path) -> None:
    again = make_repository(bundle("fp32"), tmp_path, "ernie", CONTEXT, sequences=8)
    for name in ("config.pbtxt", "1/model.onnx/model.onnx"):
        assert (again / name).read_bytes() == (model / name).read_bytes()


def test_what_is_refused(bundle: BuiltBundle, tmp_path: Path) -> None:
    whole = bundle("fp32")
    for name, context, said in (
        ("../out", None, "is no name of a model"),
        ("ernie", 1 << 20, "holds at most"),
        ("there", None, "exists"),
    ):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=said):
            make_repository(whole, tmp_path, name, context)
    other = tmp_path / "other"
    other.mkdir()
    info = EngineInfo.read(whole).model_copy(update={"runtime": "onnxruntime-rtx"})
    (other / "engine.json").write_bytes(info.to_bytes())
    with pytest.raises(
        UserError, match=r"onnxruntime-rtx, which Triton has no backend for.* target cuda or cpu, or"
    ):
        make_repository(other, tmp_path / "repository", "ernie")
    assert not (tmp_path / "repository/ernie").exists()
