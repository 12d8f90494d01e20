"""Graphs of ernie-nano, assembled with a set of bodies, weights and all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.graph import trace, weight_writer, weights, write
from ernie_export.recipe import Recipe

CONTEXT = 512
Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Exported:
    """exported(recipe, bodies, accuracy_level=4) → folder with model.onnx and weights/."""
    checkpoint = Checkpoint.open(nano)
    made: dict[tuple[str, str, int], Path] = {}

    def export(recipe: str, bodies: str, accuracy_level: int = 4) -> Path:
        key = (recipe, bodies, accuracy_level)
        if key not in made:
            folder = tmp_path_factory.mktemp("graph")
            (folder / weights.FOLDER).mkdir()
            parts = Recipe.find(recipe).parts
            model = trace.trace(checkpoint.config, parts, CONTEXT)
            files = write.weight_files(model)
            proto = write.assemble(model, files, bodies, accuracy_level)
            (folder / write.FILE).write_bytes(write.serialize(proto))
            for file in files:
                weight_writer.write(file, checkpoint, parts, folder / file.path, ThreadPoolExecutor(1))
            made[key] = folder
        return made[key]

    return export
