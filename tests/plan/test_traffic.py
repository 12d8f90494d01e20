"""The figures of a 21B that reads its weights once a token: what its memory's bandwidth allows."""

from __future__ import annotations

import pytest

from ernie_export.checkpoint import shapes
from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.plan.setting import Setting
from ernie_export.plan.traffic import Traffic, traffic
from ernie_export.recipe import LayerParts, PartFormat, Parts, Recipe
from ernie_export.target import Target


def of(config: ErnieConfig, target: str, parts: Parts, batch: int = 1, context: int = 4096) -> Traffic:
    found = Target.find(target)
    bandwidth = found.bandwidth.gb_per_s * 1e9 if found.bandwidth else 30e9
    setting = Setting(parts=parts, context=context, batch=batch, prompt=512)
    return traffic(config, found, setting, bandwidth)


def test_a_token_reads_2_12_gb_with_an_fp16_head_and_1_73_gb_without(
    the_21b: ErnieConfig, int4_fp16_head: Parts, int4_everywhere: Parts
) -> None:
    """The published sums leave out the routers, 18 MB in fp32."""
    for parts, published in ((int4_fp16_head, 2.12e9), (int4_everywhere, 1.73e9)):
        read = of(the_21b, "h100", parts).weights
        matrices = sum(read[part] for part in ("experts", "attention", "shared", "dense", "head"))
        assert matrices == pytest.approx(published, rel=0.003)
        assert read["router"] == pytest.approx(17.7e6, rel=0.01)
        assert read["embedding"] < 10_000


@pytest.mark.parametrize(
    ("target", "fp16_head", "int4_head"),
    [
        ("jetson-orin-nx-16gb", 48, 59),
        ("jetson-agx-orin-32gb", 97, 119),
        ("jetson-agx-orin-64gb", 97, 119),
        ("jetson-thor-t4000", 129, 158),
        ("jetson-thor-t5000", 129, 158),
        ("gb10", 129, 158),
        ("l4", 142, 174),
        ("a10", 283, 348),
        ("l40s", 408, 501),
        ("rtx-4090", 476, 584),
        ("rtx-5090", 846, 1038),
        ("rtx-pro-6000", 846, 1038),
        ("a100-80gb", 962, 1181),
        ("h100", 1581, 1941),
        ("h200", 2265, 2781),
    ],
)
def test_tokens_a_second_that_bandwidth_allows(
    target: str,
    fp16_head: int,
    int4_head: int,
    the_21b: ErnieConfig,
    int4_fp16_head: Parts,
    int4_everywhere: Parts,
) -> None:
    for parts, published in ((int4_fp16_head, fp16_head), (int4_everywhere, int4_head)):
        ceiling = of(the_21b, target, parts).tokens_per_second
        assert ceiling == pytest.approx(published, rel=0.015)  # the routers are the difference


def test_more_rows_share_experts(the_21b: ErnieConfig, int4_everywhere: Parts) -> None:
    one, eight, many = (of(the_21b, "h100", int4_everywhere, batch) for batch in (1, 8, 1000))
    assert one.experts_read == 6
    assert eight.experts_read == pytest.approx(64 * (1 - (58 / 64) ** 8)) and 34 < eight.experts_read < 36
    assert many.experts_read == pytest.approx(64)
    assert eight.weights["attention"] == one.weights["attention"]
    assert one.bytes < eight.bytes < 8 * one.bytes
    assert one.tokens_per_second and eight.tokens_per_second
    assert one.tokens_per_second < eight.tokens_per_second < 8 * one.tokens_per_second


def test_a_full_cache_is_read_too(the_21b: ErnieConfig, int4_everywhere: Parts) -> None:
    found = of(the_21b, "l4", int4_everywhere, batch=2, context=1000)
    assert found.kv_cache == 2 * 1000 * 28 * 2 * 4 * 128 * 2
    assert found.tokens_per_second_at_full_context == pytest.approx(
        2 * 300e9 / (found.bytes + found.kv_cache), rel=1e-6
    )


def test_float_experts_are_all_run_on_the_cpu(the_21b: ErnieConfig) -> None:
    fp16, int4 = Recipe.find("fp16").parts, Recipe.find("int4").parts
    assert of(the_21b, "cpu", fp16).experts_read == 64
    assert of(the_21b, "cpu", int4).experts_read == of(the_21b, "h100", fp16).experts_read == 6
    on_cpu, on_gpu = of(the_21b, "cpu", fp16).weights, of(the_21b, "h100", fp16).weights
    assert on_cpu["attention"] == 2 * on_gpu["attention"]  # held as fp32


def test_float_experts_of_one_layer(the_21b: ErnieConfig) -> None:
    parts = Recipe.find("int4").parts
    mixed = parts.model_copy(update={"layers": {"1": LayerParts(experts=PartFormat(format="fp16"))}})
    found = of(the_21b, "cpu", mixed)
    assert found.experts_read == (64 + 26 * 6) / 27
    fp16 = 64 * 3 * 2560 * 1536 * 4  # held as fp32
    assert found.weights["experts"] == pytest.approx(
        fp16 + of(the_21b, "cpu", parts).weights["experts"] * 26 / 27
    )


def test_a_dense_model_reads_no_experts(int4_everywhere: Parts) -> None:
    config = ErnieConfig.read(shapes.folder("0.3b"))
    setting = Setting(parts=int4_everywhere, context=64, batch=2, prompt=8)
    found = traffic(config, Target.find("cpu"), setting, None)
    assert found.experts_read == 0 < found.bytes and found.tokens_per_second is None
