"""A kit becomes a bundle, on the device: check, build, ask, measure, seal.

    kit → does it fit → engine → answers → speed → bundle

The work lies in `.NAME.partial` beside the output; what a stage found is noted there, so that an interrupted
build goes on behind its last finished stage.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_export import atomic, lock
from ernie_export.bundle.files import MANIFEST, REPORT
from ernie_export.bundle.publish import publish
from ernie_export.errors import UserError, WorkError
from ernie_export.kit import stage
from ernie_export.kit.contents import Contents, read
from ernie_export.kit.fitting import context_of, require_fit
from ernie_export.kit.journal import Journal
from ernie_export.kit.sealing import Findings, failed, latency, seal
from ernie_export.progress import Progress
from ernie_export.spelling import spelled
from ernie_export.validate import environment

if TYPE_CHECKING:
    from ernie_export.engine.found import Found

ENGINE, ANSWERS, SPEED = "engine", "answers", "speed"
TITLES = {
    ENGINE: "Build the engine",
    ANSWERS: "Ask it what the checkpoint's own model answered",
    SPEED: "Measure its speed",
}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    context: int | None = None
    """Tokens for which there must be memory; None: 4,096, or the engine's own most."""
    threads: int | None = None
    """None: one for every core that the process may use."""
    max_token_ms: float | None = None
    """The most that a token may take; None: no ceiling."""


@dataclass(frozen=True)
class Built:
    bundle: Path
    report: dict[str, Any]
    reused: bool
    """It stood there already."""


def build(
    kit: Path,
    output: Path,
    settings: Settings,
    progress: Progress,
    tell: Tell = lambda _: None,
    replace: bool = False,
    checked: bool = False,
) -> Built:
    """Build, check and measure the kit's engine, and seal what came of it as the bundle `output`.

    Args:
        checked: every byte of the kit was compared with its manifest just now.

    Raises:
        UserError: the kit is damaged or not for this machine, or something else stands at `output`.
        WorkError: there is too little memory or disk, or the engine is not right here; in the latter case
            `NAME.report.json` beside the output says how.
    """
    contents = Contents(kit.absolute())
    output = output.absolute()
    if standing := _standing(contents, output, replace):
        return standing
    contents.require_whole(progress, content=not checked)
    context = context_of(contents, settings.context)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    with progress.step("Check this machine"):
        here = require_fit(contents, output, context)
    partial.mkdir(exist_ok=True)
    with lock.held(partial):
        found = _found(contents, partial, settings, context, here, progress, tell)
        failure = output.with_name(f"{output.name}.report.json")
        if reasons := failed(found):
            atomic.write(failure, spelled(seal(contents, found, None)))
            raise WorkError(
                f"The engine does not answer here as the checkpoint's own model does, or not as fast as it must: "
                f"its {'; '.join(reasons)}",
                f"{failure} has all of it; build a kit with more bits or for another runtime.",
            )
        bundle = partial / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.mkdir()
        with progress.step("Seal"):
            report = seal(contents, found, bundle)
            publish(bundle, output, replace)
        failure.unlink(missing_ok=True)
        shutil.rmtree(partial)
    return Built(output, report, False)


def _found(
    contents: Contents,
    partial: Path,
    settings: Settings,
    context: int,
    here: Found,
    progress: Progress,
    tell: Tell,
) -> Findings:
    """What every stage found, those that an interrupted build finished included."""
    software = environment.software() | ({contents.module: here.version} if here.version else {})
    key = {"kit": contents.digest, "software": software, "threads": settings.threads, "context": context}
    journal = Journal(partial, key)
    work = partial / "engine"
    if journal.finished:
        tell(f"An earlier build was interrupted: {', '.join(journal.finished)} stand already.")
    else:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(exist_ok=True)
    results = {}
    for name in (ENGINE, ANSWERS, SPEED):

        def make(name: str = name) -> dict[str, Any]:
            begun = time.perf_counter()
            with progress.step(TITLES[name]):
                made = stage.run(name, contents, work, settings.threads, context)
            for path in work.rglob("*"):
                atomic.sync(path)
            return made | {"seconds": round(time.perf_counter() - begun, 3)}

        results[name] = journal.result(name, make)
        if name == ANSWERS:
            results[name] = latency(results[name], settings.max_token_ms)
            if not all(gate["passed"] for gate in results[name]["gates"]):
                journal.forget(name)  # asked again, it may be well: what else ran here may have ended
                break
    return Findings(here, software, work, results)


def _standing(contents: Contents, output: Path, replace: bool) -> Built | None:
    """What an earlier run built from this very kit with the same versions.

    Raises:
        UserError: something else stands there, and `replace` does not allow to go over it.
    """
    if not os.path.lexists(output):
        return None
    if output.is_symlink() or not output.is_dir() or not (output / MANIFEST).is_file():
        raise UserError(
            f"{output} exists and is no bundle", "Name another --output: what it holds is not touched."
        )
    manifest = read(output / MANIFEST)
    if manifest.get("kit") == contents.digest:
        versions, now = manifest.get("software", {}), environment.software()
        changed = [name for name in now if versions.get(name) != now[name]]
        if not changed:
            return Built(output, read(output / REPORT), True)
        difference = f"was built with another version of {changed[0]} ({versions.get(changed[0])})"
    else:
        difference = "was not built from this kit"
    if replace:
        return None
    raise UserError(f"{output} exists and {difference}", "Name another --output, or add --replace.")
