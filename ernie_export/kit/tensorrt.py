"""TensorRT: its engines are built from graphs that came with the kit as its parser takes them.

Tuning is noted in a timing cache beside the work, so that a build that was interrupted takes less time again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from ernie_export import regular_file
from ernie_export.digest import sha256_of
from ernie_export.engine import found, tensorrt_build
from ernie_export.engine.tensorrt import PHASES, TensorRTEngine, engine_path
from ernie_export.kit.runtimes import Made
from ernie_export.plan import machine
from ernie_export.progress import Silent

if TYPE_CHECKING:
    from ernie_export.engine.info import EngineInfo
    from ernie_export.engine.tensorrt_job import Shapes
    from ernie_export.graph.tensorrt_rtx import Phase
    from ernie_export.kit.contents import Contents

SECONDS = 2 * 3600
"""A Jetson tries many kernels."""
SHARE = 4
"""Of the free memory, a layer's scratch memory may take one part in so many."""


def graph_path(phase: Phase) -> str:
    """In a kit."""
    return f"kit/{phase}.onnx"


def profile_path(phase: Phase) -> str:
    return f"kit/{phase}.profile.json"


class TensorRT:
    def build(self, contents: Contents, work: Path, threads: int | None) -> Made:
        requires = contents.info.requires
        assert requires and requires.plugin
        (work / engine_path("decode")).parent.mkdir(exist_ok=True)
        workspace = min(tensorrt_build.WORKSPACE, machine.memory()[1] // SHARE)
        peak, binaries = 0, {}
        for phase in PHASES:
            path = work / engine_path(phase)
            profile: dict[str, Shapes] = json.loads(regular_file.read(contents.folder / profile_path(phase)))
            with Silent().step("") as step:
                made = tensorrt_build.build(
                    regular_file.read(contents.folder / graph_path(phase)), profile, path,
                    path.with_suffix(".layers.txt"), requires.module, step,
                    plugins=contents.folder / requires.plugin.path,
                    timing_cache=work.with_name("timing.cache"),
                    workspace=workspace, seconds=SECONDS, memory=None,
                )  # fmt: skip
            peak = max(peak, made.peak_bytes)
            binaries[phase] = {"path": engine_path(phase), "sha256": sha256_of(path)}
        here = found.find(requires.module)
        return Made(
            {
                "versions": [".".join(str(here.version).split(".")[:3])],
                "sm": [here.gpu.sm] if here.gpu else requires.sm,
                "engine": binaries["decode"],
                "prefill": binaries["prefill"],
            },
            peak,
        )

    def open(
        self, contents: Contents, work: Path, probes: Sequence[str], threads: int | None
    ) -> TensorRTEngine:
        info, requires = contents.info, contents.info.requires
        engines = {
            name: SimpleNamespace(path=engine_path(phase))
            for name, phase in zip(("prefill", "engine"), PHASES, strict=True)
        }
        built = SimpleNamespace(**{**vars(requires), **engines})
        opened = cast("EngineInfo", SimpleNamespace(**{**vars(info), "requires": built}))
        return TensorRTEngine(contents.folder, opened, probes, (), work)
