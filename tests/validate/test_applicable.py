"""Gates that apply to a checkpoint, and those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.recipe import Recipe
from ernie_export.validate.applicable import HALF, OVER_CACHE, applicable, in_half_precision, with_attention
from ernie_export.validate.gates import Limit

QUALITY = {
    "logits.kl_mean", "logits.kl_p99", "logits.same_top1", "routing.agreement", "perplexity.ratio",
    "greedy.agreement",
}  # fmt: skip


def left_out(config: ErnieConfig, recipe: str, perplexity: float | None) -> tuple[set[str], list[str]]:
    chosen = Recipe.find(recipe)
    metrics = {} if perplexity is None else {"perplexity.reference": perplexity}
    kept, notes = applicable(chosen.gates, config, chosen.parts, metrics)
    assert kept.items() <= chosen.gates.items()
    return {*chosen.gates} - {*kept}, notes


@pytest.fixture
def config(nano: Path) -> ErnieConfig:
    return ErnieConfig.read(nano)


def test_every_gate_applies_to_a_checkpoint_that_has_every_part(config: ErnieConfig) -> None:
    for recipe in Recipe.names():
        assert left_out(config, recipe, 20.0) == (set(), [])


def test_a_gate_on_a_part_that_is_not_there_does_not_apply(config: ErnieConfig) -> None:
    unshared = config.model_copy(update={"moe_num_shared_experts": 0})
    assert left_out(unshared, "int4", 20.0) == (
        {"operators.shared_error"},
        ["operators.shared_error does not apply: the checkpoint has no shared experts"],
    )
    no_dense = config.model_copy(update={"moe_layer_start_index": 0})
    assert left_out(no_dense, "int4", 20.0)[0] == {"operators.dense_error"}


@pytest.mark.parametrize("recipe", ["int8", "int4", "fp8", "nvfp4"])
def test_what_knows_nothing_has_no_quality_to_lose(config: ErnieConfig, recipe: str) -> None:
    names, notes = left_out(config, recipe, 1500.0)
    assert names == QUALITY
    assert notes == [
        "logits.kl_mean, logits.kl_p99, logits.same_top1, routing.agreement, perplexity.ratio, greedy.agreement "
        "do not apply: the checkpoint does not know this text (perplexity 1500, by chance 1536), "
        "so nothing can be said of quality"
    ]
    assert left_out(config, recipe, 1536 / 2 - 1)[0] == set()


@pytest.mark.parametrize("perplexity", [None, float("nan")])
def test_a_perplexity_that_is_not_known_excuses_nothing(
    config: ErnieConfig, perplexity: float | None
) -> None:
    assert left_out(config, "int4", perplexity)[0] == set()


def test_where_no_weight_is_an_integer_quality_must_be_kept_whatever_it_is(config: ErnieConfig) -> None:
    assert left_out(config, "fp32", 1e6) == left_out(config, "fp16", 1e6) == (set(), [])


def test_attention_is_held_to_what_must_be_exact_where_a_recipe_says_nothing_of_it() -> None:
    exact, core = Limit(max=1e-5), Limit(max=1e-3)
    earlier = {"operators.exact_error": exact}
    assert with_attention(earlier) == earlier | {"operators.core_error": exact}
    assert with_attention(earlier | {"operators.core_error": core})["operators.core_error"] == core
    assert with_attention({}) == {}


def test_over_an_fp16_cache_attention_alone_is_held_to_fp16s_last_digits() -> None:
    gates = with_attention(Recipe.find("int4").gates)
    half = in_half_precision(gates, OVER_CACHE)
    changed = {name for name in gates if half[name] != gates[name]}
    assert changed == {"operators.core_error", "operators.cache_error"}
    assert {half[name].max for name in changed} == {HALF}
    assert "operators.exact_error" in {
        name for name, gate in in_half_precision(gates).items() if gate.max == HALF
    }
