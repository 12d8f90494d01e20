"""The JSON Schemas of what a script reads: `python -m ernie_export.cli.schemas FOLDER` writes them all."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ernie_export import atomic
from ernie_export.bench.bench import Bench
from ernie_export.bits import Choice
from ernie_export.bundle.diff import Difference
from ernie_export.bundle.manifest import Manifest
from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.checkpoint.inspect import CheckpointSummary
from ernie_export.cli.outputs import (
    BatchOutput,
    BuildOutput,
    GenerateOutput,
    RecipesOutput,
    TargetsOutput,
    TritonOutput,
)
from ernie_export.device.status import Generation, Status
from ernie_export.distribute.pull import Pulled
from ernie_export.distribute.push import Pushed
from ernie_export.distribute.ssh_rollout import Deployed
from ernie_export.doctor import Diagnosis
from ernie_export.engine.info import EngineInfo
from ernie_export.kit.document import KitPlan
from ernie_export.plan.plan import Plan
from ernie_export.validate.report import Report

SCHEMAS: dict[str, Any] = {
    "manifest": Manifest,
    "report": Report,
    "engine": EngineInfo,
    "calibration": CalibrationRecord,
    "kit": KitPlan,
    "bench": Bench,
    "bits": Choice,
    "build": BuildOutput,
    "deploy": Deployed,
    "device-install": Generation,
    "device-rollback": Generation,
    "device-settle": Status,
    "device-status": Status,
    "diff": Difference,
    "doctor": Diagnosis,
    "generate": GenerateOutput | BatchOutput,
    "inspect": CheckpointSummary,
    "plan": Plan,
    "pull": Pulled,
    "push": Pushed,
    "recipes": RecipesOutput,
    "targets": TargetsOutput,
    "triton": TritonOutput,
}
"""The files of a bundle, then what `--json` prints, by command; `validate --json` prints a report."""

NOT_FINITE = {"enum": ["NaN", "Infinity", "-Infinity"]}


class _AsWritten(GenerateJsonSchema):
    """As it is written: with the docstrings of fields, and NaN and infinities as strings."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        number = super().float_schema(schema)
        return {"anyOf": [number, NOT_FINITE]} if self._config.ser_json_inf_nan == "strings" else number

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _described(super().model_schema(schema), schema["cls"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _described(super().dataclass_schema(schema), schema["cls"])


def _described(schema: JsonSchemaValue, cls: type) -> JsonSchemaValue:
    for name, text in _docstrings(cls).items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", text)
    return schema


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """Field → the string that stands behind it in the class, or in one that it is made from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is BaseModel or not (issubclass(base, BaseModel) or is_dataclass(base)):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for pair in pairwise(tree.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def schema(name: str) -> dict[str, Any]:
    """The schema of one of SCHEMAS, for JSON Schema 2020-12."""
    made = TypeAdapter(SCHEMAS[name]).json_schema(schema_generator=_AsWritten, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made


def write(folder: Path, say: Callable[[str], object] = print) -> None:
    for name in SCHEMAS:
        path = folder / f"{name}.json"
        atomic.write(path, json.dumps(schema(name), indent=1, ensure_ascii=False).encode() + b"\n")
        say(str(path))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
