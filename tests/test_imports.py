"""Imports run down the road only, and what is heavy is loaded by who needs it, when it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ernie_export
from ernie_export.checkpoint import embedded

PACKAGE = Path(ernie_export.__file__).parent

ROAD = [
    {"checkpoint"},
    {"rows"},
    {"stack"},
    {"recipe", "target"},
    {"taken"},
    {"quantize"},
    {"model"},
    {"graph"},
    {"plan"},
    {"engine"},
    {"generate"},
    {"reference"},
    {"calibrate"},
    {"validate"},
    {"trials"},
    {"sensitivity"},
    {"bits"},
    {"bundle"},
    {"bench"},
    {"triton"},
    {"kit"},
    {"distribute"},
    {"device"},
    {"partial"},
    {"streaming"},
    {"calibrating"},
    {"pipeline", "doctor"},
    {"cli"},
    {"__main__"},
]
"""Each may import what stands before it, and itself; those of one set, not each other."""

ANYWHERE = {
    "errors",
    "progress",
    "nearest",
    "atomic",
    "child",
    "lock",
    "readable",
    "regular_file",
    "digest",
    "spelling",
    "toml_file",
    "os_error",
    "failure",
    "versions",
    "names",
    "__version__",
}
"""May be imported by all; they import one another alone."""

HEAVY = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "polygraphy", "numba"}
HEAVY_MODULES = {
    "model.ernie": {"torch"},
    "model.operators": {"torch"},
    "quantize.blocks": {"numba"},
    "quantize.nvfp4_search": {"numba"},
    "validate.runners": {"polygraphy"},
}
"""Modules that are made of something heavy; so they are imported inside functions, or by one another."""

WITHOUT_TORCH = [
    "generate",
    "engine",
    "bundle",
    "validate.gates",
    "validate.metrics",
    "validate.report",
    "validate.selfcheck",
    "distribute",
    "device",
    "kit",
]
"""What a machine that only runs bundles loads."""


class Import(NamedTuple):
    by: str
    """Dotted, below the package."""
    of: str
    """Dotted, as written; `ernie_export.` in front of our own."""
    when: str
    """"loading", "calling" or "checking types"."""

    @property
    def own(self) -> str | None:
        return self.of.removeprefix("ernie_export.") if self.of.startswith("ernie_export.") else None


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(name: str, node: ast.AST, when: str = "loading") -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(name, alias.name, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name} imports relatively"
        yield from (Import(name, f"{node.module}.{alias.name}", when) for alias in node.names)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        when = "calling"
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        when = "checking types"
    for child in ast.iter_child_nodes(node):
        yield from imports(name, child, when)


ALL = [found for name, tree in modules().items() for found in imports(name, tree)]


def stage(module: str) -> str:
    return module.split(".")[0]


def place(name: str) -> int:
    return next(at for at, names in enumerate(ROAD) if name in names)


def test_every_stage_has_its_place() -> None:
    known = set.union(*ROAD) | ANYWHERE
    assert {stage(name) for name in modules()} <= known


def test_imports_run_down_the_road() -> None:
    wrong = []
    for found in ALL:
        by, of = stage(found.by), stage(found.own or "")
        if not of or of == by or of in ANYWHERE:
            continue
        if by in ANYWHERE or place(of) >= place(by):
            wrong.append(found)
    assert wrong == []


def test_heavy_imports_stand_inside_functions() -> None:
    wrong = [
        found
        for found in ALL
        if (package := stage(found.of)) in HEAVY
        and found.when == "loading"
        and package not in HEAVY_MODULES.get(found.by, ())
    ]
    assert wrong == []


def test_modules_that_are_heavy_are_imported_inside_functions() -> None:
    wrong = [
        found
        for found in ALL
        if found.when == "loading"
        and any(f"{found.own}.".startswith(f"{heavy}.") for heavy in HEAVY_MODULES)
        and found.by not in HEAVY_MODULES
    ]
    assert wrong == []


def test_the_lists_above_name_what_is_there() -> None:
    names = modules().keys()
    assert {*HEAVY_MODULES, *WITHOUT_TORCH} <= names
    assert set.union(*ROAD) | ANYWHERE - {"__version__"} <= {stage(name) for name in names}


def loaded(code: str) -> set[str]:
    """The top-level modules in a fresh process once this code has run."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(); print(*sys.modules)"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return {stage(name) for name in ran.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_loading_what_devices_load_needs_nothing_heavy(package: str) -> None:
    inside = [name for name in modules() if f"{name}.".startswith(f"{package}.")]
    code = "\n".join(f"import ernie_export.{name}" for name in inside)
    assert not loaded(code) & HEAVY


def test_generating_needs_nothing_heavy_but_an_engine() -> None:
    code = f"""
from pathlib import Path
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from tests.generate.recurrent_engine import RecurrentEngine

tokenizer = TextTokenizer.read(Path({str(embedded.folder())!r}))
prompt = tokenizer.chat([{{"role": "user", "content": "What is a list?"}}])
engine = RecurrentEngine(vocab_size=1536, max_context=512)
(answer,) = generate(engine, [prompt], 5, Sampling(1.0), tokenizer.stop_ids)
print(tokenizer.decode(answer.answer_ids))
"""
    assert not loaded(code) & HEAVY


def test_imports_are_found_wherever_they_stand() -> None:
    code = """
import torch
try:
    from ernie_export import cli
except ImportError:
    pass
if TYPE_CHECKING:
    from ernie_export.graph import trace
class A:
    def f(self):
        import onnx.helper
"""
    assert list(imports("engine.x", ast.parse(code))) == [
        Import("engine.x", "torch", "loading"),
        Import("engine.x", "ernie_export.cli", "loading"),
        Import("engine.x", "ernie_export.graph.trace", "checking types"),
        Import("engine.x", "onnx.helper", "calling"),
    ]
