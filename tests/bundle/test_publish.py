from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_export import atomic
from ernie_export.bundle import publish as module
from ernie_export.bundle.publish import publish
from ernie_export.errors import UserError


def folder(path: Path, content: str) -> Path:
    (path / "weights").mkdir(parents=True)
    (path / "model.onnx").write_text(content)
    (path / "weights" / "layer-00.bin").write_text(content)
    return path


def content(path: Path) -> str:
    """What the bundle holds, all of it the same."""
    texts = {file.read_text() for file in (path / "model.onnx", path / "weights" / "layer-00.bin")}
    (text,) = texts
    return text


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system, or a file system, without it."""
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)


def test_a_new_bundle_comes_into_its_place(tmp_path: Path) -> None:
    publish(folder(tmp_path / ".b.partial", "new"), tmp_path / "b")
    assert content(tmp_path / "b") == "new"
    assert names(tmp_path) == {"b"}


def test_what_stands_there_is_kept_unless_replaced(tmp_path: Path) -> None:
    folder(tmp_path / "b", "old")
    partial = folder(tmp_path / ".b.partial", "new")
    with pytest.raises(UserError, match="exists"):
        publish(partial, tmp_path / "b")
    assert (content(tmp_path / "b"), content(partial)) == ("old", "new")
    publish(partial, tmp_path / "b", replace=True)
    assert content(tmp_path / "b") == "new"
    assert names(tmp_path) == {"b"}


def test_replacing_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_exchange(monkeypatch)
    folder(tmp_path / "b", "old")
    publish(folder(tmp_path / ".b.partial", "new"), tmp_path / "b", replace=True)
    assert content(tmp_path / "b") == "new"
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "b"
    if kind == "file":
        final.write_text("mine")
    else:
        final.symlink_to(folder(tmp_path / "elsewhere", "mine"))
    with pytest.raises(UserError, match="exists"):
        publish(folder(tmp_path / ".b.partial", "new"), final, replace=True)
    assert final.read_text() == "mine" if kind == "file" else content(final) == "mine"


def test_folders_change_places_at_one_instant(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    if module._exchange(one, other):
        assert (content(one), content(other)) == ("2", "1")
    else:  # this file system cannot: then nothing has happened
        assert (content(one), content(other)) == ("1", "2")
    assert not module._exchange(one, tmp_path / "none")
    assert names(tmp_path) == {"one", "other"}


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = os.rename
    monkeypatch.setattr(atomic, "sync", lambda path: events.append(path.name))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    publish(folder(tmp_path / "partial", "new"), tmp_path / "b")
    at = events.index("rename")
    assert set(events[:at]) == {"model.onnx", "weights", "layer-00.bin", "partial"}
    assert events[at + 1 :] == [tmp_path.name]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def killed_at(monkeypatch: pytest.MonkeyPatch, count: int, before: bool) -> None:
    """Stop at the `count`-th call of the system that changes or syncs something, before or behind it."""
    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and before:
                raise Killed
            result = function(*args, **kwargs)
            if calls == count:
                raise Killed
            return result

        return wrapped

    for changed, name in (
        (os, "rename"),
        (os, "fsync"),
        (os, "unlink"),
        (os, "rmdir"),
        (module, "_exchange"),
    ):
        monkeypatch.setattr(changed, name, deadly(getattr(changed, name)))


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_killed_anywhere_the_bundle_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool, before: bool
) -> None:
    exchange = exchange and module._exchange(folder(tmp_path / "x", ""), folder(tmp_path / "y", ""))
    if not exchange:
        no_exchange(monkeypatch)
    seen = set()
    for count in range(1, 100):
        place = tmp_path / str(count)
        final = folder(place / "b", "old")
        with monkeypatch.context() as patch:
            killed_at(patch, count, before)
            try:
                publish(folder(place / ".b.partial", "new"), final, replace=True)
                break
            except Killed:
                pass
        seen.add(content(final) if final.exists() else f"{content(place / '.b.old')} aside")
        shutil.rmtree(place / ".b.partial", ignore_errors=True)
        publish(folder(place / ".b.partial", "newest"), final, replace=True)
        assert content(final) == "newest"
        assert names(place) == {"b"}
    assert content(final) == "new"
    assert seen == ({"old", "new"} if exchange else {"old", "old aside", "new"})


@pytest.mark.parametrize("before", [True, False])
def test_killed_anywhere_the_first_bundle_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    seen = set()
    for count in range(1, 100):
        place = tmp_path / str(count)
        partial = folder(place / ".b.partial", "new")
        with monkeypatch.context() as patch:
            killed_at(patch, count, before)
            try:
                publish(partial, place / "b")
                break
            except Killed:
                pass
        seen.add((place / "b").exists())
        assert content(place / "b" if (place / "b").exists() else partial) == "new"
    assert content(place / "b") == "new"
    assert seen == {True, False}


def test_after_a_kill_in_between_the_old_bundle_is_put_back_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / ".b.old", "old")
    with pytest.raises(UserError, match="exists"):
        publish(folder(tmp_path / ".b.partial", "new"), tmp_path / "b")
    assert content(tmp_path / "b") == "old"
