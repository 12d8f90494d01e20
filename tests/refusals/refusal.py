"""What a refusal is made from: a bundle that is whole, a machine that suits it, and one thing that does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ernie_export.bundle.files import UNLISTED
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.write import seal
from ernie_export.engine import plugin_library
from ernie_export.engine.found import Found, Gpu
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.requires import Binary, Requires
from ernie_export.stack import Stack
from ernie_export.target import Target
from ernie_export.validate.report import Report
from tests.kit.making import library, packed

ORIN = Found("aarch64", "10.16.0.72", "", "13.2", Gpu("Orin", "8.7", 64 << 30), "NVIDIA Jetson AGX Orin")
SERVER = Found("x86_64", "11.4.0.106", "", "13.2", Gpu("NVIDIA H100 80GB HBM3", "9.0", 80 << 30), "")
CPU = Found("x86_64", "1.32.0", "", None, None, "")


@dataclass(frozen=True)
class Scene:
    """A bundle, and the machine it is opened on."""

    bundle: Path
    here: Found
    feed: tuple[int, int] | None = None
    """Rows and tokens of the cache that is asked for; None: the engine is only opened."""
    kit: bool = False
    """It is a kit, and what is asked for is its building."""
    act: Callable[[], object] | None = None
    """What is asked for, where it is something else."""
    memory: int = 64 << 30
    """Bytes that are free, of the system's memory."""
    disk: int = 64 << 30
    """Bytes that are free."""

    def on(self, **other: Any) -> Scene:
        return replace(self, here=replace(self.here, **other))

    def info(self, **fields: Any) -> Scene:
        """With other words in engine.json; None removes one."""
        path = self.bundle / EngineInfo.FILE
        content = json.loads(path.read_bytes()) | fields
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return self

    def requires(self, **fields: Any) -> Scene:
        said = json.loads((self.bundle / EngineInfo.FILE).read_bytes())["requires"]
        return self.info(requires=said | fields)


@dataclass(frozen=True)
class Place:
    """Where scenes are laid out."""

    root: Path
    whole: Callable[[], Path]
    """A bundle for the CPU."""

    def cpu(self) -> Scene:
        return Scene(Path(shutil.copytree(self.whole(), self.root / "bundle")), CPU)

    def kit(self, target: str, here: Found) -> Scene:
        """With a library of plugins that is one only by its name, where the target has plugins."""
        with pytest.MonkeyPatch.context() as patch:
            purpose = Target.find(target)
            if purpose.sm and purpose.architecture:
                folder = library(self.root / "plugins", purpose.architecture, purpose.sm)
                patch.setattr(plugin_library, "FOLDER", folder)
            return Scene(packed(self.whole(), self.root / "bundle", target), here, kit=True)

    def sealed_anew(self, scene: Scene) -> Scene:
        """As somebody would who changes a kit by hand and lists its files again."""
        manifest, report = Manifest.read(scene.bundle), Report.read(scene.bundle / Report.FILE)
        for name in UNLISTED:
            (scene.bundle / name).unlink(missing_ok=True)
        seal(scene.bundle, report, manifest.claims)
        return scene

    def engine(self, stack: str, here: Found) -> Scene:
        """An engine of TensorRT's as far as the load check sees it: the two files that it would load are noise."""
        scene = self.cpu()
        binaries = {}
        for what, name in (("engine", "engine.plan"), ("plugin", "plugins/libernie_plugins.so")):
            path = scene.bundle / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(what.encode() * 1000)
            binaries[what] = Binary(path=name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        assert here.gpu and here.version
        requires = Requires(
            module="tensorrt",
            versions=[here.version],
            install=Stack.find(stack).install,
            architecture=here.architecture,  # type: ignore[arg-type]
            sm=[here.gpu.sm],
            cuda=Stack.find(stack).cuda,
            checkpoint=Manifest.read(scene.bundle).checkpoint.fingerprint,
            context=512,
            batch=4,
            **binaries,
        )
        return replace(scene.info(runtime="tensorrt", requires=requires.model_dump()), here=here)

    def any_gpu(self, stack: str) -> Scene:
        """A bundle for any GPU, through a provider of ONNX Runtime's."""
        scene, needed = self.cpu(), Stack.find(stack)
        requires = Requires(
            module="onnxruntime",
            versions=needed.versions,
            provider=needed.provider,
            install=needed.install,
            cuda=needed.cuda,
            checkpoint=Manifest.read(scene.bundle).checkpoint.fingerprint,
            context=512,
        )
        return scene.info(runtime="onnxruntime-cuda", requires=requires.model_dump())

    def orin(self) -> Scene:
        return self.engine("JetPack 7.2", ORIN)

    def server(self) -> Scene:
        return self.engine("TensorRT 11", SERVER)


Layout = Callable[[Place], Scene]


@dataclass(frozen=True)
class Refusal:
    name: str
    lay_out: Layout


class Refusals(list[Refusal]):
    """Refusals of one kind."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def add(self, name: str) -> Callable[[Layout], None]:
        return lambda lay_out: self.append(Refusal(name, lay_out))
