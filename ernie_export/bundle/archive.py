"""Our own modules as a zip file from which Python imports them, for machines where ernie-export is not installed."""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ernie_export

PACKAGE = Path(ernie_export.__file__).parent
EPOCH = (1980, 1, 1, 0, 0, 0)


def packed(starts: Sequence[str], first: Mapping[str, bytes] | None = None) -> bytes:
    """The modules that `starts` import, behind the files `first`. The same modules give the same bytes."""
    made = io.BytesIO()
    # Stored, not deflated: another zlib would give other bytes.
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (first or {}).items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
        for name in modules(starts):
            path = _path(name)
            inside = path.relative_to(PACKAGE.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(inside, EPOCH), path.read_bytes())
    return made.getvalue()


def modules(starts: Sequence[str]) -> list[str]:
    """What these import of our own, whenever they do, and they themselves."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in found or not _exists(name):
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imports(ast.parse(_path(name).read_text("utf-8")))
    return sorted(found)


def _imports(node: ast.AST) -> Iterator[str]:
    """Names that may be modules, those for the type checker alone left out."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _exists(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE.name and _path(name).is_file()


def _path(name: str) -> Path:
    inside = PACKAGE.parent.joinpath(*name.split("."))
    return inside / "__init__.py" if inside.is_dir() else inside.with_suffix(".py")
