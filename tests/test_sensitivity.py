"""What a trial costs is what transformers' whole model loses with the same weights written into its checkpoint."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ernie_export import sensitivity
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.layout import EMBEDDING, layer_of, part_of
from ernie_export.errors import UserError
from ernie_export.plan.bits import Group, groups
from ernie_export.progress import Silent
from ernie_export.quantize.formats import dequantize, quantize
from ernie_export.recipe import PartFormat, Recipe
from ernie_export.reference.layers import LayeredReference
from ernie_export.reference.transformers_model import Reference
from ernie_export.trials import Reached, Trial, Unfinished
from ernie_export.validate.metrics import log_softmax

FOUR = PartFormat(format="int4", block_size=128)
PARTS = Recipe.find("int4").parts


def nowhere(folder: Path) -> Unfinished:
    return Unfinished(folder / "unfinished.npz")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(10, 1500, (2, 24))


@pytest.fixture(scope="module")
def measured(nano: Path, ids: np.ndarray) -> sensitivity.Sensitivity:
    return sensitivity.sensitivity(Checkpoint.open(nano), PARTS, ids, "some", Silent())


def written(source: Path, folder: Path, group: Group) -> Path:
    """A copy of a checkpoint with one group as INT4 has it."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if (part_of(name), layer_of(name)) == group:
            tensors[name] = dequantize(quantize(weight, FOUR), FOUR)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "group",
    [
        Group("experts", 1),
        Group("attention", 3),
        Group("dense", 0),
        Group("shared", 5),
        Group("embedding", None),
    ],
)
def test_a_trial_is_the_model_with_these_weights(
    group: Group, nano: Path, tmp_path: Path, ids: np.ndarray, measured: sensitivity.Sensitivity
) -> None:
    published = log_softmax(Reference.open(nano).run(ids).logits.astype(np.float64))
    changed = Reference.open(written(nano, tmp_path / "changed", group)).run(ids).logits
    kl = (np.exp(published) * (published - log_softmax(changed.astype(np.float64)))).sum(-1).mean()
    assert measured.losses()[group][FOUR] == pytest.approx(kl, rel=1e-3)
    assert kl > 1e-5


def test_every_group_is_tried_in_every_format(nano: Path, measured: sensitivity.Sensitivity) -> None:
    found = measured.losses()
    assert set(found) == set(groups(Checkpoint.open(nano).config, PARTS))
    assert all({form.format for form in forms} == {"int8", "int4"} for forms in found.values())
    assert sum(max(forms.values()) == forms[FOUR] for forms in found.values()) == len(found)
    assert measured.tokens == 48


def test_what_was_measured_is_remembered(
    nano: Path, ids: np.ndarray, measured: sensitivity.Sensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "measure", lambda *_: pytest.fail("measured again"))
    again = sensitivity.sensitivity(Checkpoint.open(nano), PARTS, ids, "some", Silent())
    assert again == measured
    with pytest.raises(pytest.fail.Exception):
        sensitivity.sensitivity(Checkpoint.open(nano), PARTS, ids[:1], "some", Silent())


def test_an_own_head_is_a_trial_of_its_own(nano: Path, tmp_path: Path, ids: np.ndarray) -> None:
    folder = tmp_path / "untied"
    shutil.copytree(nano, folder)
    tensors = load_file(nano / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors[EMBEDDING].copy()}, folder / "model.safetensors")
    config = (folder / "config.json").read_text()
    assert '"tie_word_embeddings": true' in config
    (folder / "config.json").write_text(
        config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    half = PartFormat(format="fp16")
    parts = PARTS.model_copy(update={"experts": half, "attention": half, "shared": half, "dense": half})
    found = list(sensitivity.measure(Checkpoint.open(folder), parts, ids, Silent(), nowhere(tmp_path)))
    assert {(one.part, one.form.format) for one in found} == {
        (part, name) for part in ("embedding", "head") for name in ("int8", "int4")
    }
    assert all(one.kl > 0 for one in found)


def test_nan_in_a_weight_is_named(nano: Path, tmp_path: Path, ids: np.ndarray) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(nano, folder)
    tensors = load_file(nano / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.weight"][3, 5] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model.layers.2.self_attn.q_proj.weight holds NaN or infinity"):
        list(sensitivity.measure(Checkpoint.open(folder), PARTS, ids, Silent(), nowhere(tmp_path)))


#: Measures in a process of its own that is killed at the start of a layer.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ernie_export import sensitivity
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.progress import Silent
from ernie_export.recipe import Recipe
from ernie_export.reference.layers import LayeredReference

layer = LayeredReference.layer
def deadly(self, number):
    if number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return layer(self, number)
LayeredReference.layer = deadly
checkpoint, parts = Checkpoint.open(Path(sys.argv[1])), Recipe.find("int4").parts
sensitivity.sensitivity(checkpoint, parts, np.load(sys.argv[2]), "some", Silent())
"""


def test_a_killed_measurement_goes_on_at_its_layer_and_ends_the_same(
    nano: Path,
    tmp_path: Path,
    ids: np.ndarray,
    measured: sensitivity.Sensitivity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ERNIE_EXPORT_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "ids.npy", ids)
    done = subprocess.run([sys.executable, "-c", KILLED, nano, tmp_path / "ids.npy", "4"], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = tmp_path / "cache" / "sensitivity"
    assert [path.suffix for path in kept.iterdir()] == [".npz"]
    opened: list[int] = []
    layer = LayeredReference.layer
    monkeypatch.setattr(
        LayeredReference, "layer", lambda self, number: opened.append(number) or layer(self, number)
    )
    again = sensitivity.sensitivity(Checkpoint.open(nano), PARTS, ids, "some", Silent())
    assert opened == [4, 5]
    assert again == measured
    assert [path.suffix for path in kept.iterdir()] == [".json"]


def test_a_state_that_is_not_whole_is_none_and_another_measurement_s_goes(tmp_path: Path) -> None:
    hidden = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    first, second = (Unfinished(tmp_path / f"{name}.npz") for name in ("first", "second"))
    assert first.read() is None
    first.write(Reached(2, hidden, [Trial(Group("experts", 1), FOUR, hidden + 1)]))
    found = first.read()
    assert found and (found.layer, len(found.trials)) == (2, 1)
    assert found.trials[0].group == Group("experts", 1) and found.trials[0].form == FOUR
    assert np.array_equal(found.clean, hidden) and np.array_equal(found.trials[0].hidden, hidden + 1)
    second.write(Reached(1, hidden, []))
    assert first.read() is None and second.read()
    data = (tmp_path / "second.npz").read_bytes()
    for broken in (data[:-30], data.replace(hidden.tobytes(), (hidden + 1).tobytes())):
        assert broken != data
        (tmp_path / "second.npz").write_bytes(broken)
        assert second.read() is None
    second.end()
    second.end()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    unfinished = Unfinished(tmp_path / "file" / "state.npz")
    unfinished.write(Reached(1, np.zeros((1, 1, 4), np.float32), []))
    assert unfinished.read() is None and (tmp_path / "file").read_text() == "mine"
