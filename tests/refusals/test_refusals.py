"""Every engine that does not fit, through the real opening: refused before a runtime is loaded, in its own words."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ernie_export.engine import found
from ernie_export.engine.compatibility import mismatches
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.open import open_engine
from ernie_export.errors import ErnieExportError
from ernie_export.kit.build import Settings, build
from ernie_export.plan import machine
from ernie_export.progress import Silent
from tests.refusals import table
from tests.refusals.refusal import Place, Refusal, Refusals, Scene
from tests.refusals.table import KINDS

CASES = [pytest.param(kind, each, id=table.key(kind, each.name)) for kind in KINDS for each in kind]


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Those of the document; with --write-refusals an empty dict, which becomes the document."""
    if not request.config.getoption("--write-refusals", default=False):
        yield table.read()
        return
    given: dict[str, str] = {}
    yield given
    table.DOCUMENT.write_text(table.render(given), "utf-8")


@pytest.fixture
def place(tmp_path: Path, bundle: Callable[[str], Path]) -> Place:
    return Place(tmp_path, lambda: bundle("int4"))


@pytest.mark.parametrize(("kind", "refusal"), CASES)
def test_what_does_not_fit_is_refused(
    kind: Refusals,
    refusal: Refusal,
    place: Place,
    answers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    scene = refusal.lay_out(place)
    monkeypatch.setattr(found, "find", lambda _module: scene.here)
    monkeypatch.setattr(machine, "memory", lambda: (64 << 30, scene.memory))
    monkeypatch.setattr(machine, "mapped", lambda: 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=scene.disk))
    with pytest.raises(ErnieExportError) as caught:
        if scene.act:
            scene.act()
        if scene.kit:
            build(scene.bundle, place.root / "built", Settings(), Silent())
        engine = open_engine(scene.bundle)
        assert scene.feed
        engine.start(*scene.feed)
    answer = str(caught.value).replace(f"{place.root}/", "").replace(str(place.root), ".")
    assert "\n" not in answer and caught.value.remedy
    if request.config.getoption("--write-refusals", default=False):
        answers[table.key(kind, refusal.name)] = answer
    else:
        assert answer == answers[table.key(kind, refusal.name)]


def test_every_refusal_has_words_of_its_own(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-refusals", default=False):
        pytest.skip("the table is written when all tests are done")
    answers = table.read()
    assert list(answers) == [table.key(kind, each.name) for kind in KINDS for each in kind]
    assert len(set(answers.values())) == len(answers) >= 30
    assert table.render(answers) == table.DOCUMENT.read_text("utf-8")


@pytest.mark.parametrize("scene_of", [Place.cpu, Place.orin, Place.server])
def test_what_fits_is_not_refused(scene_of: Callable[[Place], Scene], place: Place) -> None:
    scene = scene_of(place)
    requires = EngineInfo.read(scene.bundle).requires
    assert requires and not list(mismatches(scene.bundle, requires, scene.here))


def test_a_driver_newer_by_a_number_or_a_generation_will_do(place: Place) -> None:
    scene = place.server()
    requires = EngineInfo.read(scene.bundle).requires
    for cuda in ("13.0", "13.9", "14.0"):
        assert requires and not list(mismatches(scene.bundle, requires, replace(scene.here, cuda=cuda)))


def test_a_bundle_that_notes_nothing_is_opened_as_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = place.cpu().info(requires=None)
    monkeypatch.setattr(found, "find", lambda _module: replace(scene.here, version="0.1"))
    assert open_engine(scene.bundle).info.requires is None
