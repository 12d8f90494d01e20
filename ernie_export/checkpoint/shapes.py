"""The shapes of the family by name: the config.json of each published model, without its weights."""

from __future__ import annotations

from pathlib import Path

from ernie_export.checkpoint import embedded
from ernie_export.errors import UserError
from ernie_export.nearest import did_you_mean

PUBLISHED = Path(__file__).parent / "published"
NANO = "nano"


def names() -> list[str]:
    """From the smallest to the largest: `nano`, `0.3b`, `21b`, `300b`."""
    return [NANO, *sorted((path.name for path in PUBLISHED.iterdir()), key=lambda name: float(name[:-1]))]


def folder(like: str) -> Path:
    """The folder that holds the config.json of a shape: the one of that name, or `like` itself.

    Raises:
        UserError: it is neither a shape nor such a folder.
    """
    name = like.lower()
    if name == NANO:
        return embedded.folder()
    if name in names():
        return PUBLISHED / name
    if (Path(like) / "config.json").is_file():
        return Path(like)
    raise UserError(
        f"{like!r} is neither a shape of ERNIE-4.5 nor a folder with a config.json",
        did_you_mean(name, names()),
    )
