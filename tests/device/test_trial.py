"""An engine that builds and then talks nonsense does not become the active one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_export.device.install import Offer, install
from ernie_export.device.place import Place
from ernie_export.device.trial import try_out
from ernie_export.distribute.policy import Policy
from ernie_export.engine.open import open_engine
from ernie_export.errors import ErnieExportError, UserError, WorkError
from ernie_export.plan import machine
from ernie_export.validate.asking import tried
from ernie_export.validate.selfcheck import SelfCheck
from tests.conftest import BuiltBundle
from tests.device.conftest import ANYBODY, resealed
from tests.validate.planting import stored

Array = np.ndarray[Any, Any]


def rolled(values: Array) -> Array:
    return np.roll(values, 1, 0)


NONSENSE: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "every token's row one further": ("embedding.weight", rolled),
    "scales four times too large": ("layers.2.attention.o.scales", lambda values: values * 4),
    "experts that changed places": ("layers.1.experts.down", rolled),
    "experts without weights": ("layers.3.experts.gate_up_scales", lambda values: values * 0),
    "a router upside down": ("layers.2.router.weight", lambda values: -values),
    "a router's bias that is not its own": ("layers.4.router.bias", lambda values: values[::-1] * 3),
    "a norm without weights": ("layers.0.input_norm.weight", lambda values: values * 0),
    "infinity": ("layers.5.input_norm.weight", lambda values: values * np.float32(np.inf)),
}


def test_a_right_engine(bundle: BuiltBundle) -> None:
    for recipe in ("int4", "int8", "fp32"):
        tried = try_out(bundle(recipe), ANYBODY)
        assert tried.metrics["logits.same_top1"] > 0.9 and tried.metrics["routing.agreement"] > 0.85
        assert 0 < tried.token_ms < 10_000 and 0 < tried.memory_free < tried.memory


def test_mapped_weights_are_not_free(bundle: BuiltBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token reads them: where they have no room, each is read from the disk."""
    monkeypatch.setattr(machine, "memory", lambda: (1 << 40, 1 << 39))
    monkeypatch.setattr(machine, "mapped", lambda: 1 << 38)
    seen = tried(SelfCheck.read(bundle("int4")), lambda probes: open_engine(bundle("int4"), probes))
    assert (seen.memory, seen.memory_free) == (1 << 40, 1 << 38)


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused(bundle: BuiltBundle, place: Place, tmp_path: Path, kind: str) -> None:
    """The fault is in the bundle that was sealed, so that no digest tells of it."""
    install(Offer.find(str(bundle("int8"))), place, ANYBODY)
    before = place.active()
    folder = tmp_path / "nonsense"
    shutil.copytree(bundle("int4"), folder)
    stored(*NONSENSE[kind])(folder)
    resealed(folder)
    with pytest.raises(
        WorkError, match=r"does not answer here as the checkpoint's own model does: its (logits|routing)"
    ):
        install(Offer.find(str(folder)), place, ANYBODY)
    assert place.active() == before and [each.number for each in place.all()] == [1]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"max_token_ms": 1e-6}, "ms a token, and 1e-06 ms are allowed"),
        ({"memory_headroom": 0.999}, "and the policy wants 100% to stay free"),
    ],
)
def test_the_policys_limits(bundle: BuiltBundle, place: Place, policy: dict[str, float], words: str) -> None:
    with pytest.raises(WorkError, match=words):
        install(Offer.find(str(bundle("int4"))), place, ANYBODY.model_copy(update=policy))
    assert place.active() is None
    allowed = ANYBODY.model_copy(update={"max_token_ms": 60_000.0})
    installed = install(Offer.find(str(bundle("int4"))), place, allowed)
    assert installed.tried and installed.tried.token_ms < 60_000 == installed.max_token_ms
    assert place.active() == installed


def test_a_bundle_that_cannot_be_asked(bundle: BuiltBundle, place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    shutil.copytree(bundle("int4"), folder)
    (folder / SelfCheck.FILE).unlink()
    resealed(folder)
    with pytest.raises(UserError, match="nobody can tell whether its engine is right here"):
        install(Offer.find(str(folder)), place, ANYBODY)
    shutil.copy(bundle("int8") / SelfCheck.FILE, folder)
    (folder / SelfCheck.FILE).write_bytes((folder / SelfCheck.FILE).read_bytes()[:1000])
    resealed(folder)
    with pytest.raises(UserError, match="is damaged"):
        install(Offer.find(str(folder)), place, ANYBODY)


def test_a_trial_without_end(bundle: BuiltBundle) -> None:
    with pytest.raises(ErnieExportError, match="did not answer within"):
        try_out(bundle("int4"), Policy(), within=0.01)
