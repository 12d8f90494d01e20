"""The operators of our domain as ONNX knows them: schemas for the trace, and how PyTorch's become nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

DOMAIN = "ernie"
VERSION = 1
#: Overloads: of `MoEExperts` whose weights are floats, and of all three whose codes are small floats, by their format.
FLOAT, FP8, NVFP4 = "float", "fp8", "nvfp4"

FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
#: Signature and attributes by operator; a `?` marks an input that may be left out, a trailing type its dtypes.
SIGNATURES: dict[str, tuple[str, str, str]] = {
    "MoERouting": ("hidden weight bias", "indices scores", "k norm_min:float"),
    "MoEExperts": (
        "hidden indices scores gate_up gate_up_scales? down down_scales? gate_up_matrix_scales? down_matrix_scales?",
        "y",
        "num_experts k bits block_size",
    ),
    "QuantizedLinear": ("x weight scales matrix_scales?", "y", "N K bits block_size"),
    "QuantizedEmbedding": ("ids weight scales matrix_scales?", "y", "bits block_size"),
    "CachedAttention": (
        "query key value past_key past_value cos sin position_ids seqlens_k total_sequence_length",
        "output present_key present_value",
        "num_heads kv_num_heads scale:float",
    ),
}


@cache
def opset() -> Any:
    """The domain as an onnxscript opset, its schemas registered."""
    import onnx
    from onnxscript import values

    for name in SIGNATURES:
        onnx.defs.register_schema(schema(name))
    return values.Opset(DOMAIN, VERSION)


def schema(name: str) -> Any:
    from onnx.defs import OpSchema

    anything = [*FLOATS, "tensor(float8e4m3fn)", "tensor(uint8)", "tensor(int32)", "tensor(int64)"]
    inputs, outputs, attributes = (part.split() for part in SIGNATURES[name])

    def parameter(word: str) -> Any:
        kind = OpSchema.FormalParameterOption
        option = kind.Optional if word.endswith("?") else kind.Single
        return OpSchema.FormalParameter(word.rstrip("?"), "T_" + word.rstrip("?"), param_option=option)

    def attribute(word: str) -> Any:
        kind = OpSchema.AttrType.FLOAT if word.endswith(":float") else OpSchema.AttrType.INT
        return OpSchema.Attribute(word.removesuffix(":float"), kind, required=True)

    words = dict.fromkeys(word.rstrip("?") for word in inputs + outputs)
    return OpSchema(
        name, DOMAIN, VERSION,
        inputs=[parameter(word) for word in inputs],
        outputs=[parameter(word) for word in outputs],
        type_constraints=[(f"T_{word}", anything, "") for word in words],
        attributes=[attribute(word) for word in attributes],
    )  # fmt: skip


def translations() -> dict[Any, Callable[..., Any]]:
    """PyTorch's operators (model/operators.py) → the function that emits their node."""
    import torch

    from ernie_export.model import operators as _registers_them  # noqa: F401

    op, ops = opset(), torch.ops.ernie

    def given(optional: tuple[Any, ...]) -> list[Any]:
        return [value for value in optional if value is not None]

    def routing(hidden: Any, weight: Any, bias: Any, k: int, norm_min: float) -> Any:
        return op.MoERouting(hidden, weight, bias, k=k, norm_min=norm_min)

    def experts(
        hidden: Any, indices: Any, scores: Any, gate_up: Any, gate_up_scales: Any, down: Any, down_scales: Any,
        bits: int, block_size: int, *matrix_scales: Any,
    ) -> Any:  # fmt: skip
        return op.MoEExperts(
            hidden, indices, scores, gate_up, gate_up_scales, down, down_scales, *given(matrix_scales),
            num_experts=gate_up.shape[0], k=indices.shape[-1], bits=bits, block_size=block_size,
        )  # fmt: skip

    def experts_float(hidden: Any, indices: Any, scores: Any, gate_up: Any, down: Any) -> Any:
        return experts(hidden, indices, scores, gate_up, None, down, None, 0, 0)

    def linear(x: Any, weight: Any, scales: Any, bits: int, block_size: int, *matrix_scales: Any) -> Any:
        n, packed = weight.shape
        return op.QuantizedLinear(
            x,
            weight,
            scales,
            *given(matrix_scales),
            N=n,
            K=packed * 8 // bits,
            bits=bits,
            block_size=block_size,
        )

    def embedding(ids: Any, weight: Any, scales: Any, bits: int, block_size: int, *matrix_scales: Any) -> Any:
        return op.QuantizedEmbedding(
            ids, weight, scales, *given(matrix_scales), bits=bits, block_size=block_size
        )

    def attention(*arguments: Any) -> Any:
        *tensors, num_heads, kv_num_heads, scale = arguments
        return op.CachedAttention(*tensors, num_heads=num_heads, kv_num_heads=kv_num_heads, scale=scale)

    return {
        ops.moe_routing.default: routing,
        ops.moe_experts.default: experts,
        ops.moe_experts_float.default: experts_float,
        ops.quantized_linear.default: linear,
        ops.quantized_embedding.default: embedding,
        ops.cached_attention.default: attention,
    }
