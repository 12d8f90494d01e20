"""What makes a bundle a kit: kit.json, the graphs as a device opens them, and the program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ernie_export
from ernie_export.bench import bench
from ernie_export.bundle import archive
from ernie_export.engine import plugin_library
from ernie_export.engine.opened_graph import opened_graph
from ernie_export.engine.tensorrt import PHASES
from ernie_export.engine.tensorrt_build import profile_of
from ernie_export.graph.lower import Lowered, lower
from ernie_export.kit.contents import PROGRAM
from ernie_export.kit.document import Decoded, KitPlan, Room
from ernie_export.kit.onnxruntime import AS_IT_SHIPS, SHOWING_ROUTERS
from ernie_export.kit.tensorrt import graph_path, profile_path
from ernie_export.plan.plan import peak_memory
from ernie_export.plan.setting import Setting
from ernie_export.plan.traffic import traffic
from ernie_export.validate.probes import probe_names

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.engine.info import EngineInfo
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

PACKAGE = Path(ernie_export.__file__).parent
STARTS = ("ernie_export.kit.__main__", "ernie_export.kit.stage")
SHORTEST = 512
"""The least context, in tokens, that memory is planned for."""
DOCUMENTS, ENGINES = 32 << 20, 256 << 20
"""Bytes that a build writes beside engines, and as engines of TensorRT, whose weights stay where they are;
generously."""
SHEBANG = b"#!/usr/bin/env python3\n"


def files(
    folder: Path, info: EngineInfo, config: ErnieConfig, recipe: Recipe, target: Target
) -> Iterator[tuple[str, bytes]]:
    """What is added to the bundle in `folder`: name and content. The same bundle gives the same bytes."""
    yield KitPlan.FILE, plan(info, config, recipe, target).render()
    if target.runtime == "tensorrt":
        assert info.requires and info.requires.plugin
        yield info.requires.plugin.path, plugin_library.of(target)[0].read_bytes()
        yield from _lowered(folder, info, recipe)
    else:
        for name, probes in ((AS_IT_SHIPS, []), (SHOWING_ROUTERS, probe_names(info.moe_layers))):
            yield name, opened_graph(folder / info.graph, probes).SerializeToString(deterministic=True)
    yield PROGRAM, program()


def _lowered(folder: Path, info: EngineInfo, recipe: Recipe) -> Iterator[tuple[str, bytes]]:
    """The graph of each phase as TensorRT's parser takes it, and the profile that its engine is built for."""
    import onnx

    model = onnx.load(folder / info.graph, load_external_data=False)
    for phase in PHASES:
        form = Lowered(phase, info.max_context, recipe.batch if phase == "decode" else 1, plugins=True)
        graph = lower(model, form)
        profile = profile_of(graph, form.batch, form.cache_length)
        yield graph_path(phase), graph.SerializeToString(deterministic=True)
        yield profile_path(phase), (json.dumps(profile, indent=1) + "\n").encode()


def plan(info: EngineInfo, config: ErnieConfig, recipe: Recipe, target: Target) -> KitPlan:
    most = info.max_context
    contexts = [SHORTEST << step for step in range(32) if SHORTEST << step < most]
    decoded = bench.lengths(None, bench.DECODE, most - bench.TOKENS)

    def reads(context: int) -> int:
        setting = Setting(parts=recipe.parts, context=context, batch=1, prompt=1)
        found = traffic(config, target, setting, None)
        return found.bytes + found.kv_cache

    return KitPlan(
        memory=[
            Room(context=context, bytes=peak_memory(config, target, recipe, context))
            for context in (*contexts, most)
        ],
        disk=DOCUMENTS + (ENGINES if target.runtime == "tensorrt" else 0),
        prefill=bench.lengths(None, bench.PREFILL, most),
        decode=[Decoded(context=context, bytes=reads(context)) for context in decoded],
        tokens=bench.TOKENS,
        bandwidth=target.bandwidth.gb_per_s * 1e9 if target.bandwidth else None,
    )


def program() -> bytes:
    """kit.pyz: the modules that run on the device, as a file that Python starts."""
    main = (PACKAGE / "kit" / "__main__.py").read_bytes()
    return SHEBANG + archive.packed(STARTS, {"__main__.py": main})
