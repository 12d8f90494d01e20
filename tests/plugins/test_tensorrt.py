"""The plugins as TensorRT's builder and runtime drive them: what they compute is what the kernels compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.graph.operators import DOMAIN, SIGNATURES, VERSION
from tests.plugins import exact, kernels
from tests.plugins.emulated import EXAMPLES
from tests.plugins.kernels import TYPES
from tests.plugins.tensorrt_host import TYPES as NUMPY
from tests.plugins.tensorrt_host import Attributes, Declared, Told, declared, drive

Array = np.ndarray[Any, Any]
LIMITS = {"fp16": 2e-3, "bf16": 1.6e-2}
PACKED = {"int8": np.int8, "int32": np.int32}


@dataclasses.dataclass
class Case:
    """A plugin, what goes in, and what the same kernel gives when it is called without TensorRT."""

    name: str
    attributes: Attributes
    inputs: list[Declared]
    expected: list[Array]
    exact: Array
    """Of the first output of floats, in float64."""

    def drive(self, **changed: Any) -> Told:
        return drive(self.name, self.attributes, self.inputs, **changed)


def batched(x: Array, batch: int, tokens: int) -> Array:
    return x.reshape(batch, tokens, *x.shape[1:])


def grown(inputs: list[Declared], tokens: int) -> list[Declared]:
    """Those whose second axis is the tokens, in a profile that goes on to more of them."""
    s = inputs[0].shape[1]
    return [
        dataclasses.replace(each, largest=(each.shape[0], tokens, *each.shape[2:]))
        if len(each.shape) > 1 and each.shape[:2] == inputs[0].shape[:2] and s < tokens
        else each
        for each in inputs
    ]


def routing_case(dtype: str = "fp16", batch: int = 1, tokens: int = 3, seed: int = 0) -> Case:
    random = np.random.default_rng(seed)
    x = exact.activations(random, (batch * tokens, 64), TYPES[dtype])
    weight = random.standard_normal((24, 64)).astype(np.float32) / 8
    bias = random.permutation(np.linspace(0, 1, 24)).astype(np.float32)
    answer = kernels.routing(x, weight, bias, 5).arrays
    logits = x.astype(np.float64) @ weight.T.astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    chosen = np.take_along_axis(p, answer["indices"], -1)
    return Case(
        "MoERouting", {"k": 5, "norm_min": 1e-12},
        [declared(batched(x, batch, tokens)), declared(weight), declared(bias)],
        [batched(answer["indices"], batch, tokens), batched(answer["scores"], batch, tokens)],
        batched(chosen / chosen.sum(-1, keepdims=True), batch, tokens),
    )  # fmt: skip


def linear_case(
    dtype: str = "fp16", batch: int = 1, tokens: int = 3, seed: int = 0,
    n: int = 40, bits: int = 4, block_size: int = 32, packed: str = "int8",
) -> Case:  # fmt: skip
    random = np.random.default_rng(seed)
    x = exact.activations(random, (batch * tokens, 2 * block_size), TYPES[dtype])
    data, scales = exact.weights(random, (n, 2 * block_size), bits, block_size)
    answer = kernels.linear(x, data, scales, bits, block_size).arrays
    return Case(
        "QuantizedLinear", {"N": n, "K": 2 * block_size, "bits": bits, "block_size": block_size},
        [declared(batched(x, batch, tokens)), declared(data.view(PACKED[packed])), declared(scales)],
        [batched(answer["y"], batch, tokens)],
        batched(x.astype(np.float64) @ exact.dequantized(data, scales, bits).T, batch, tokens),
    )  # fmt: skip


def experts_case(
    dtype: str = "fp16", batch: int = 1, tokens: int = 3, seed: int = 0,
    bits: int = 4, block_size: int = 32, packed: str = "int8",
) -> Case:  # fmt: skip
    random = np.random.default_rng(seed)
    experts, hidden, width, k = 6, 2 * block_size, block_size, 3
    x = exact.activations(random, (batch * tokens, hidden), TYPES[dtype])
    indices = np.array([random.permutation(experts)[:k] for _ in range(len(x))], np.int64).reshape(-1, k)
    scores = random.dirichlet(np.ones(k), len(x)).astype(TYPES[dtype]).reshape(-1, k)
    gate_up, gate_up_scales = exact.weights(random, (experts, 2 * width, hidden), bits, block_size)
    down, down_scales = exact.weights(random, (experts, hidden, width), bits, block_size)
    weights = (gate_up, gate_up_scales, down, down_scales)
    answer = kernels.experts(x, indices, scores, weights, bits, block_size).arrays
    matrices = exact.dequantized(gate_up, gate_up_scales, bits), exact.dequantized(down, down_scales, bits)
    return Case(
        "MoEExperts", {"num_experts": experts, "k": k, "bits": bits, "block_size": block_size},
        [
            *(declared(batched(each, batch, tokens)) for each in (x, indices, scores)),
            declared(gate_up.view(PACKED[packed])), declared(gate_up_scales),
            declared(down.view(np.int32)), declared(down_scales),
        ],
        [batched(answer["y"], batch, tokens)],
        batched(exact.experts(x, indices, scores, *matrices), batch, tokens),
    )  # fmt: skip


def attention_case(
    dtype: str = "fp16", batch: int = 2, tokens: int = 3, seed: int = 0, before: int = 7, rows: int = 16
) -> Case:
    random = np.random.default_rng(seed)
    heads, kv, d = 4, 2, 32
    query, key, value = (
        exact.activations(random, (batch, tokens, n * d), TYPES[dtype]) for n in (heads, kv, kv)
    )
    past_key, past_value = (exact.activations(random, (batch, kv, rows, d), TYPES[dtype]) for _ in range(2))
    angles = np.arange(rows)[:, None] * 500000.0 ** (-2 * np.arange(d // 2) / d)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = np.tile(np.arange(before, before + tokens), (batch, 1)).astype(np.int64)
    seqlens_k = np.full(batch, before + tokens - 1, np.int32)
    answer = kernels.attention(
        query, key, value, (past_key, past_value), cos, sin, positions, seqlens_k, heads, rows, d**-0.5
    ).arrays
    expected = np.empty((batch, tokens, heads * d))
    for b, s in np.ndindex(batch, tokens):
        seen = before + s + 1
        turn = cos[positions[b, s]].astype(np.float64), sin[positions[b, s]].astype(np.float64)
        turned = exact.turned(query[b, s].reshape(heads, d).astype(np.float64), *turn)
        cached = (answer[f"present_{one}"][b, :, :seen].astype(np.float64) for one in ("key", "value"))
        expected[b, s] = exact.attention(turned, *cached, d**-0.5).ravel()
    return Case(
        "CachedAttention", {"num_heads": heads, "kv_num_heads": kv, "scale": d**-0.5},
        [
            *map(declared, (query, key, value, past_key, past_value, cos, sin, positions, seqlens_k)),
            declared(np.array(before + tokens, np.int32)),
        ],
        [answer["output"], answer["present_key"], answer["present_value"]],
        expected,
    )  # fmt: skip


CASES = {
    "MoERouting": routing_case, "MoEExperts": experts_case,
    "QuantizedLinear": linear_case, "CachedAttention": attention_case,
}  # fmt: skip


def checked(case: Case, dtype: str, **changed: Any) -> Told:
    told = case.drive(**changed)
    assert told.errors == [] and told["enqueue"] == ["0"]
    for mine, theirs in zip(told.outputs, case.expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()
    floats = next(each for each in told.outputs if each.dtype == TYPES[dtype])
    assert exact.error(floats, case.exact) < LIMITS[dtype]
    return told


def test_are_listed_with_the_attributes_of_their_functions() -> None:
    listed = drive("QuantizedLinear", {}, [], ())["creator"]
    kinds = {"": "5", ":float": "1"}  # of PluginFieldType: kINT32 and kFLOAT32
    for name, line in zip(CASES, listed, strict=True):
        attributes = [each.partition(":") for each in SIGNATURES[name][2].split()]
        words = " ".join(f"{one}:{kinds[colon + kind]}" for one, colon, kind in attributes)
        assert line == f"{DOMAIN}::{name} {VERSION} {words}"


@settings(EXAMPLES, max_examples=6)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    dtype=st.sampled_from(list(TYPES)),
    seed=st.integers(0, 2**32),
)
@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_kernels_compute(name: str, batch: int, tokens: int, dtype: str, seed: int) -> None:
    """In a profile that goes on to more tokens."""
    case = CASES[name](dtype=dtype, batch=batch, tokens=tokens, seed=seed)
    limit = 16 if name == "CachedAttention" else 40
    checked(dataclasses.replace(case, inputs=grown(case.inputs, limit)), dtype)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("bits", "block_size", "tokens"), [(4, 128, 17), (8, 64, 2)])
@pytest.mark.parametrize("name", ["MoEExperts", "QuantizedLinear"])
def test_weights_are_bytes_or_words(name: str, bits: int, block_size: int, tokens: int, packed: str) -> None:
    checked(CASES[name](tokens=tokens, bits=bits, block_size=block_size, packed=packed), "fp16")  # type: ignore[operator]


def test_the_cache_may_be_one_buffer() -> None:
    case = attention_case()
    told = checked(case, "fp16", share={1: 3, 2: 4})
    assert [line.split()[2] for line in told["output"]] == ["-1", "3", "4"]
    assert told["interface"] == ["PLUGIN_V3ONE_BUILD 2"]  # which has the aliases


@pytest.mark.parametrize("name", CASES)
def test_says_what_it_takes(name: str) -> None:
    case = CASES[name]()
    told = case.drive(commands=("create", "build"))
    assert told["core"] == [f"{DOMAIN}::{name} {VERSION}"]
    text = " ".join(f"{key}={np.float32(value):.9g}" for key, value in case.attributes.items())  # type: ignore[arg-type]
    assert told["metadata"] == told["timing"] == [text]
    formats = told["formats"]
    packed = {"MoEExperts": (3, 5), "QuantizedLinear": (1,)}.get(name, ())
    for i, taken in enumerate(case.inputs):
        wanted = "int32 int8" if i in packed else taken.dtype
        assert formats[i] == ("bf16 fp16" if i == 0 else wanted)
    outputs = [f"{line.split()[0]} {line.split()[1]}" for line in told["output"]]
    assert formats[len(case.inputs) :] == [each.split()[0] for each in outputs]
    kinds = {"int64": "int64", "float16": "fp16"}
    assert outputs == [f"{kinds[y.dtype.name]} {','.join(map(str, y.shape))}" for y in case.expected]


@pytest.mark.parametrize("name", CASES)
def test_cut_short_it_is_refused(name: str) -> None:
    """Each length of what was serialised, but the whole."""
    (line,) = CASES[name]().drive(commands=("create", "reload"))["reloaded"]
    size = int(line.split()[-1])
    assert size > 30 and line == f"1, refused {size} of {size}, told {size}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch", "tokens"), [(0, 3), (2, 0)])
def test_no_token_is_no_work(name: str, batch: int, tokens: int) -> None:
    """But that a present that is another buffer becomes the past."""
    checked(CASES[name](batch=batch, tokens=tokens), "fp16")


@pytest.mark.parametrize(
    ("place", "wrong"), [("indices", 6), ("indices", -1), ("indices", 2**40), ("scores", np.nan)]
)
def test_an_index_that_is_no_experts_or_a_score_that_is_nan_is_told_with_the_next_call(
    place: str, wrong: float
) -> None:
    """The kernels find it, and nothing waits for them; its token is NaN, the others are as they were."""
    case = experts_case(tokens=4)
    values = case.inputs[1 if place == "indices" else 2].values
    assert values is not None
    values[0, 2, 1] = wrong
    told = case.drive(commands=("create", "build", "attach", "run", "run", "detach"))
    said = "an index was no expert's, or a score was NaN; its tokens became NaN"
    assert told["enqueue"] == ["0", "0"]
    # the second run's, as the context ends
    assert told.errors == [f"MoEExperts: in an earlier call {said}"] * 2
    (y,) = told.outputs
    assert np.isnan(y[0, 2].astype(np.float32)).all()
    assert (y[0, [0, 1, 3]] == case.expected[0][0, [0, 1, 3]]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_routing_of_what_is_no_number_stays_in_range(value: float) -> None:
    case = routing_case(tokens=3)
    assert case.inputs[0].values is not None
    case.inputs[0].values[0, 1, 5] = value
    indices, scores = case.drive().outputs
    assert indices.min() >= 0 and indices.max() < 24 and np.isnan(scores[0, 1].astype(np.float32)).all()


def test_a_position_outside_the_tables_is_told_with_the_next_call() -> None:
    case = attention_case()
    assert case.inputs[7].values is not None
    case.inputs[7].values[1, 0] = 16
    told = case.drive(commands=("create", "build", "attach", "run", "run", "detach"))
    said = "a position was outside cos and sin, or a row outside the cache; its tokens became NaN"
    assert told.errors == [f"CachedAttention: in an earlier call {said}"] * 2
    assert np.isnan(told.outputs[0][1, 0].astype(np.float32)).all()
    assert (told.outputs[0][0] == case.expected[0][0]).all()


ATTRIBUTES = [
    ("MoERouting", "k", 0, "the attribute k is 0; it must be positive"),
    ("MoERouting", "k", 17, "k is 17; it must be 1 to 16, and at most the 128 experts"),
    ("MoERouting", "k", None, "the attribute k has no value"),
    ("MoERouting", "k", 2.0, "the attribute k is not an integer"),
    ("MoERouting", "norm_min", 1, "the attribute norm_min is not a float"),
    ("MoERouting", "norm_min", np.nan, "the attribute norm_min is not finite"),
    ("MoEExperts", "bits", 3, "bits is 3; it must be 4 or 8"),
    ("MoEExperts", "k", 17, "k is 17; it must be 1 to 16"),
    ("MoEExperts", "num_experts", -6, "the attribute num_experts is -6; it must be positive"),
    ("QuantizedLinear", "block_size", 48, "block_size is 48; it must be 32, 64 or 128"),
    ("QuantizedLinear", "K", 100, "K is 100; it must be a multiple of the block, 32"),
    ("QuantizedLinear", "N", 2**31, "the attribute N is 2147483648; that is out of range"),
    ("CachedAttention", "num_heads", 5, "5 heads do not share 2 key-value heads evenly"),
]


@pytest.mark.parametrize(("name", "attribute", "value", "message"), ATTRIBUTES)
def test_refuses_attributes(name: str, attribute: str, value: int | float | None, message: str) -> None:
    case = CASES[name]()
    told = drive(name, {**case.attributes, attribute: value}, [], ("create",))
    assert told["created"] == ["0"] and told.errors[-1] == f"{name}: {message}"


@pytest.mark.parametrize("name", CASES)
def test_refuses_to_be_made_without_one_of_its_attributes(name: str) -> None:
    attributes = CASES[name]().attributes
    for missing in attributes:
        given = {key: value for key, value in attributes.items() if key != missing}
        told = drive(name, given, [], ("create",))
        assert told["created"] == ["0"] and told.errors[-1] == f"{name}: the attribute {missing} is missing"


INPUTS = [
    ("MoERouting", 0, "fp32", None, "hidden is fp32; it must be fp16 or bf16"),
    ("MoERouting", 1, "fp16", None, "weight is fp16; it must be fp32"),
    ("MoERouting", 1, "fp32", (24, 63), "weight has the shape [24, 63] in fp32; it must be [24, 64]"),
    ("MoERouting", 2, "fp32", (23,), "bias has the shape [23] in fp32; it must be [24]"),
    ("MoERouting", 0, "fp16", (1, 64), "hidden has 2 dimensions; it must have 3"),
    ("MoEExperts", 1, "int32", None, "indices is int32; it must be int64"),
    ("MoEExperts", 2, "bf16", None, "scores is bf16; it must be fp16"),
    ("MoEExperts", 1, "int64", (1, 3, 4), "indices has the shape [1, 3, 4] in int64; it must be [1, 3, 3]"),
    ("MoEExperts", 3, "uint8", None, "gate_up is uint8; it must be int8 or int32 (packed)"),
    ("MoEExperts", 3, "int32", None, "gate_up has the shape [6, 64, 32] in int32; it must be [6, 64, 8]"),
    ("MoEExperts", 4, "fp16", (6, 64, 3), "gate_up_scales has the shape [6, 64, 3] in fp16; it must be [6, 64, 2]"),
    ("MoEExperts", 5, "int8", (6, 64, 8), "down has the shape [6, 64, 8] in int8; it must be [6, 64, 16]"),
    ("QuantizedLinear", 0, "fp16", (1, 3, 96), "x has the shape [1, 3, 96] in fp16; it must be [1, 3, 64]"),
    ("QuantizedLinear", 2, "bf16", None, "scales is bf16; it must be fp16"),
    ("CachedAttention", 0, "fp16", (2, 3, 130), "query has the shape [2, 3, 130] in fp16; it must be [2, 3, D·4]"),
    ("CachedAttention", 0, "fp16", (2, 17, 128), "key has the shape [2, 3, 64] in fp16; it must be [2, 17, 64]"),
    ("CachedAttention", 4, "fp16", (2, 2, 15, 32),
     "past_value has the shape [2, 2, 15, 32] in fp16; it must be [2, 2, 16, 32]"),
    ("CachedAttention", 8, "int64", None, "seqlens_k is int64; it must be int32"),
    ("CachedAttention", 9, "int32", (1,), "total_sequence_length has 1 dimensions; it must have 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "index", "dtype", "shape", "message"), INPUTS)
def test_refuses_inputs(
    name: str, index: int, dtype: str, shape: tuple[int, ...] | None, message: str
) -> None:
    """Each of the steps that is given them says so, and nothing is read."""
    case = CASES[name]()
    shape = case.inputs[index].shape if shape is None else shape
    case.inputs[index] = Declared(dtype, shape)
    told = case.drive(commands=("create", "build", "attach", "run"))
    assert f"{name}: {message}" in told.errors
    assert told["configure"] == ["-1"] and told["shape"] == ["-1"] and told["enqueue"] == ["-1"]


def test_refuses_shapes_that_the_kernels_do_not_take() -> None:
    """Found by their own checks, before anything runs."""
    case = attention_case(rows=16)
    case.inputs = grown(case.inputs, 17)
    told = case.drive(commands=("create", "build"))
    assert told["configure"] == ["-1"]
    assert told.errors[0] == "CachedAttention: 17 new rows do not fit into a cache of 16"
    experts = experts_case()
    experts.inputs[0] = Declared("fp16", (1, 3, 50))
    experts.inputs[3] = Declared("int8", (6, 64, 25))
    experts.inputs[4] = Declared("fp16", (6, 64, 2))
    told = experts.drive(commands=("create", "build"))
    assert (
        told.errors[0]
        == "MoEExperts: gate_up_scales has the shape [6, 64, 2] in fp16; it must be [6, 64, 50/32]"
    )


@pytest.mark.parametrize("name", CASES)
def test_refuses_another_number_of_inputs(name: str) -> None:
    case = CASES[name]()
    count = len(case.inputs)
    case.inputs.append(declared(np.zeros(1, np.float32)))
    told = case.drive(commands=("create", "build", "attach"))
    outputs = len(case.expected)
    said = f"{name}: it has {count} inputs and {outputs} outputs, and was given {count + 1} and {outputs}"
    assert told["types"] == told["shapes"] == told["configure"] == ["-1"] and set(told.errors) == {said}
    assert not any(told["formats"])


@pytest.mark.parametrize("name", CASES)
def test_refuses_what_has_no_memory(name: str) -> None:
    for i in range(len(CASES[name]().inputs)):
        case = CASES[name]()
        case.inputs[i] = dataclasses.replace(case.inputs[i], values=None)
        told = case.drive()
        assert told["enqueue"] == ["-1"] and told.errors[-1].endswith("has no memory")


def test_without_its_workspace_nothing_is_launched() -> None:
    """`build` is what asks for it."""
    case = routing_case()
    told = case.drive(commands=("create", "build", "attach", "run"))
    assert told["workspace"] == [str(3 * 24 * 4)]
    told = case.drive(commands=("create", "build without workspace", "attach", "run"))
    assert told["enqueue"] == ["-1"]
    assert told.errors == ["MoERouting: the workspace has 0 bytes; routing needs 288"]


SHAPES = st.lists(st.integers(0, 70), max_size=5).map(tuple)


@settings(EXAMPLES, max_examples=25)
@given(data=st.data(), name=st.sampled_from(list(CASES)))
def test_whatever_the_inputs_nothing_outside_them_is_touched(data: st.DataObject, name: str) -> None:
    """One to three inputs of another shape or dtype: a step either works or says why not."""
    case = CASES[name]()
    for i in data.draw(st.sets(st.integers(0, len(case.inputs) - 1), min_size=1, max_size=3)):
        dtype = data.draw(st.sampled_from(["fp16", "bf16", "fp32", "int8", "int32", "int64"]))
        shape = data.draw(SHAPES | st.just(case.inputs[i].shape))
        random = np.random.default_rng(0)
        values = random.integers(0, 5, shape).astype(NUMPY[dtype])
        case.inputs[i] = Declared(dtype, shape, values)
    told = case.drive(commands=("create", "build", "attach", "run", "detach"))
    failed = sum(told[step] == ["-1"] for step in ("types", "shapes", "configure", "shape", "enqueue"))
    assert len(told.errors) >= failed
