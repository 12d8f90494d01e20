"""validate() end to end: an honest engine passes, each planted fault fails the gate that is for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.errors import UserError, WorkError
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.recipe import Gate, Recipe
from ernie_export.reference.transformers_model import Reference
from ernie_export.validate.report import Report
from ernie_export.validate.run import validate
from ernie_export.validate.sample import Sample

#: Those of the fp32 recipe; the engines of numpy have no stored weights to compare.
GATES = {name: gate for name, gate in Recipe.find("fp32").gates.items() if not name.startswith("weights.")}
Validated = Callable[..., Report]


@pytest.fixture
def validated(
    checkpoint: Path, folder_for: Callable[[Path], Path], opener: Callable[..., Any], text: Path
) -> Validated:
    """validated(change=…, prepare=…): the report on an engine with such faults."""

    def run(gates: Mapping[str, Gate] = GATES, folder: Path = checkpoint, **faults: Any) -> Report:
        sample = Sample(
            windows=3, window_tokens=48, prompts=2, prompt_tokens=8, new_tokens=6, decode_tokens=12, text=text
        )
        return validate(
            folder_for(folder), folder, gates,
            recipe="fp32", target="cpu", sample=sample, opener=opener(folder=folder, **faults),
        )  # fmt: skip

    return run


def failed(report: Report) -> set[str]:
    return {gate.name for gate in report.gates if not gate.passed}


def test_an_honest_engine_passes(validated: Validated, checkpoint: Path) -> None:
    report = validated()
    assert report.verdict == "passed"
    assert failed(report) == set()
    metrics = report.metrics
    assert metrics["logits.kl_max"] < 1e-9
    assert metrics["logits.max_difference"] < 1e-4
    assert metrics["logits.non_finite"] == 0
    assert metrics["logits.same_top1"] == metrics["routing.agreement"] == metrics["greedy.agreement"] == 1
    assert metrics["perplexity.export"] == pytest.approx(metrics["perplexity.reference"], rel=1e-5)
    assert metrics["perplexity.reference"] > 1
    assert all(drift.own_error is not None and drift.own_error < 1e-5 for drift in report.drift)
    assert metrics["decode.max_difference"] < 1e-4
    assert metrics["batch.max_difference"] < 1e-4
    assert metrics["memory.peak_bytes"] > 1 << 20
    assert [layer.layer for layer in report.layers] == [1, 2]
    assert all(sum(layer.expert_load) == pytest.approx(2) for layer in report.layers)  # k experts a token
    assert all(set(layer.expert_agreement) == {1} for layer in report.layers)
    assert report.kl_histogram is not None and report.kl_histogram.counts[0] == 3 * 48
    assert len(report.continuations) == 2
    assert all(row.reference == row.export for row in report.continuations)
    assert (report.inputs.windows, report.inputs.tokens, report.inputs.source) == (3, 48, "words.txt")
    assert report.sizes.parts == {"experts": 64 + len("layers.1.experts.down") + 8}
    assert report.checkpoint.name == checkpoint.name
    assert {claim.where for claim in report.claims} == {"ran here"}
    assert report.software["transformers"]
    assert set(report.timings) == {"reference", "operators", "windows", "consistency", "greedy"}


def test_the_same_inputs_give_the_same_report_but_for_times(
    validated: Validated, checkpoint: Path, tmp_path: Path
) -> None:
    def stable(report: Report) -> dict[str, Any]:
        kept = report.model_dump(exclude={"time", "timings"})
        kept["metrics"].pop("memory.peak_bytes")
        return kept

    first = validated()
    shutil.rmtree(tmp_path / "bundle")
    assert stable(first) == stable(validated())


def test_noise_on_the_logits_fails(validated: Validated) -> None:
    rng = np.random.default_rng(0)
    report = validated(change=lambda logits, *_: logits + rng.normal(0, 0.3, logits.shape).astype(np.float32))
    assert report.verdict == "failed"
    assert {"logits.kl_mean", "logits.same_top1"} <= failed(report)
    assert "routing.agreement" not in failed(report)


def test_a_dropped_correction_bias_fails_routing(validated: Validated) -> None:
    def drop(model: Any) -> None:
        for layer in model.model.layers[1:]:
            layer.mlp.gate.moe_statics.e_score_correction_bias.data.zero_()

    report = validated(prepare=drop)
    assert {"routing.agreement", "routing.largest_changed_gap", "logits.kl_mean"} <= failed(report)
    assert report.metrics["routing.largest_changed_gap"] > 1e-3
    assert report.layers[0].agreement < 1


def test_a_bias_added_to_the_weights_shows_in_the_scores(validated: Validated) -> None:
    def add(model: Any) -> None:
        def biased(router: Any, _: Any, output: Any) -> Any:
            logits, _, indices = output
            chosen = router.moe_statics(logits.softmax(dim=1)).gather(-1, indices)
            return logits, chosen / chosen.sum(-1, keepdim=True), indices

        for layer in model.model.layers[1:]:
            hooks = layer.mlp.gate._forward_hooks
            observer = hooks.popitem()[1]
            layer.mlp.gate.register_forward_hook(biased)
            layer.mlp.gate.register_forward_hook(observer)

    report = validated(prepare=add)
    assert "logits.kl_mean" in failed(report)
    assert report.layers[0].agreement == 1  # nothing before the first router is wrong
    assert report.layers[0].score_difference > 1e-3


def test_the_experts_of_two_layers_swapped_fail(validated: Validated) -> None:
    def swap(model: Any) -> None:
        one, two = (model.model.layers[layer].mlp for layer in (1, 2))
        one.experts, two.experts = two.experts, one.experts

    assert "logits.kl_mean" in failed(validated(prepare=swap))


def test_logits_of_the_position_before_fail(validated: Validated) -> None:
    report = validated(change=lambda logits, *_: np.roll(logits, 1, axis=0))
    assert {"logits.kl_mean", "logits.same_top1", "perplexity.ratio"} <= failed(report)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_logit_that_is_no_number_fails_without_any_gate(validated: Validated, value: float) -> None:
    def plant(logits: np.ndarray, tokens: list[int], _: int) -> np.ndarray:
        planted = logits.copy()
        planted[-1, 7] = value
        return planted

    report = validated({}, change=plant)
    assert report.verdict == "failed"
    assert failed(report) == {"logits.non_finite"}
    assert report.metrics["logits.non_finite"] == 3  # one a window
    assert "greedy.agreement" not in report.metrics
    assert any("not all finite" in note for note in report.notes)
    assert not report.metrics["logits.kl_mean"] <= 1e9


def test_what_goes_wrong_only_in_decode_fails(validated: Validated) -> None:
    report = validated(change=lambda logits, *_: logits + 0.01 * np.arange(300) * (len(logits) == 1))
    assert failed(report) == {
        "decode.max_difference",
        "batch.max_difference",
        "operators.head_error",
        "greedy.agreement_min",
    } & failed(report)
    assert {"decode.max_difference", "operators.head_error"} <= failed(report)


def test_greedy_texts_agree_up_to_the_first_other_token(
    validated: Validated, checkpoint: Path, text: Path
) -> None:
    def fourth_token(logits: np.ndarray, tokens: list[int], _: int) -> np.ndarray:
        return logits + 100 * (np.arange(300) == 5) * (len(tokens) == 8 + 3)

    report = validated(change=fourth_token)
    reference, tokenizer = Reference.open(checkpoint), TextTokenizer.read(checkpoint)
    ids = tokenizer.encode(text.read_text())
    prompts = [ids[:8], ids[(len(ids) - 48) // 2 :][:8]]
    for prompt, row in zip(prompts, report.continuations, strict=True):
        assert row.prompt == tokenizer.decode(prompt)
        assert row.reference == tokenizer.decode(reference.greedy(prompt, 4))
        assert row.export[:2] == row.reference[:2]
        assert row.export != row.reference
        assert row.agreement == 0.5
    assert report.metrics["greedy.agreement"] == report.metrics["greedy.agreement_min"] == 0.5


def test_what_goes_wrong_only_in_a_batch_fails(validated: Validated) -> None:
    report = validated(change=lambda logits, _, batch: logits + 0.01 * (batch > 1))
    assert failed(report) == {"batch.max_difference"}


def test_an_engine_that_is_another_while_it_is_watched_fails(
    checkpoint: Path, folder_for: Callable[[Path], Path], text: Path, opener: Any
) -> None:
    honest, other = opener(), opener(change=lambda logits, *_: logits + 0.01)
    report = validate(
        folder_for(checkpoint), checkpoint, {"probes.max_difference": Gate(max=1e-6)},
        recipe="r", target="t", sample=Sample(text=text, window_tokens=48, windows=1, new_tokens=2),
        opener=lambda folder, probes, given: (honest if probes else other)(folder, probes, given),
    )  # fmt: skip
    assert failed(report) == {"probes.max_difference"}
    assert 1e-3 < report.metrics["probes.max_difference"] < 1e-2


def test_nan_that_appears_only_in_decode_fails(validated: Validated) -> None:
    report = validated(change=lambda logits, *_: logits * np.float32(np.nan if len(logits) == 1 else 1))
    assert {"decode.max_difference", "batch.max_difference"} <= failed(report)
    assert report.metrics["decode.max_difference"] == np.inf
    assert any(note.startswith("No greedy continuation") for note in report.notes)
    assert {gate.name: gate.value for gate in report.gates}["greedy.agreement_min"] is None


def test_gates_on_routing_do_not_apply_to_a_dense_model(validated: Validated, dense_checkpoint: Path) -> None:
    report = validated(folder=dense_checkpoint)
    assert report.verdict == "passed"
    assert not [gate for gate in report.gates if gate.name.startswith("routing.")]
    assert [note for note in report.notes if "not apply" in note] == [
        "routing.largest_changed_gap, routing.agreement, operators.routing_error, operators.experts_error "
        "do not apply: the checkpoint has no experts",
        "operators.shared_error does not apply: the checkpoint has no shared experts",
    ]
    assert report.layers == []


def test_a_gate_on_what_nobody_measures_fails(validated: Validated) -> None:
    report = validated({"logits.kl_man": Gate(max=1)})
    assert report.verdict == "failed"
    assert failed(report) == {"logits.kl_man"}


def run_on(folder: Path, checkpoint: Path, text: Path, opener: Any) -> Report:
    sample = Sample(text=text, window_tokens=48)
    return validate(folder, checkpoint, {}, recipe="r", target="t", sample=sample, opener=opener())


def test_another_tokenizer_cannot_be_compared(
    checkpoint: Path, folder_for: Callable[[Path], Path], text: Path, opener: Any
) -> None:
    folder = folder_for(checkpoint)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the checkpoint's"):
        run_on(folder, checkpoint, text, opener)
    tokenizer.unlink()
    with pytest.raises(UserError, match=r"Only the checkpoint has a tokenizer\.json"):
        run_on(folder, checkpoint, text, opener)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"vocab_size":300', '"vocab_size":301', "301 tokens"),
        ('"moe_layers":[1,2]', '"moe_layers":[1]', "layers"),
    ],
)
def test_an_engine_of_another_shape_cannot_be_compared(
    checkpoint: Path,
    folder_for: Callable[[Path], Path],
    text: Path,
    opener: Any,
    before: str,
    after: str,
    says: str,
) -> None:
    folder = folder_for(checkpoint)
    info = (folder / "engine.json").read_text()
    assert before in info
    (folder / "engine.json").write_text(info.replace(before, after))
    with pytest.raises(UserError, match=says):
        run_on(folder, checkpoint, text, opener)


def test_an_engine_that_shows_no_routing_cannot_be_compared(
    checkpoint: Path, folder_for: Callable[[Path], Path], text: Path, opener: Any
) -> None:
    blind = opener()
    with pytest.raises(WorkError, match=r"does not show embedding\.output"):
        run_on(
            folder_for(checkpoint),
            checkpoint,
            text,
            lambda: lambda folder, _, given: blind(folder, (), given),
        )


def test_a_folder_that_is_no_bundle_is_the_users_mistake(checkpoint: Path, text: Path, opener: Any) -> None:
    with pytest.raises(UserError, match=r"engine\.json"):
        run_on(checkpoint, checkpoint, text, opener)
