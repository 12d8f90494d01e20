"""What was built from a kit, as a bundle: its files, and documents that say what was seen on the device.

The files that the kit has too are shared with it. `origin/` holds the kit's own manifest, report and signature,
and the bundle's manifest names the former's SHA-256: so it can be told of every file whether it was signed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import ernie_export
from ernie_export import atomic
from ernie_export.bundle import sbom
from ernie_export.bundle.files import MANIFEST, REPORT, SIGNATURE
from ernie_export.digest import sha256_of
from ernie_export.kit.contents import ENGINE, PLAN, PROGRAM, Listed, read
from ernie_export.spelling import seal_of, spelled
from ernie_export.validate import environment
from ernie_export.validate.gates import GateResult

if TYPE_CHECKING:
    from ernie_export.engine.found import Found
    from ernie_export.kit.contents import Contents
    from ernie_export.validate.report import Source

PROVENANCE = "provenance.json"
ORIGIN = "origin"
"""The folder of the kit's own documents."""
GRAPHS = "kit/"
LATENCY = "latency.token_ms"
TARGET_BUILT, TARGET_RAN = "built on target", "ran on target"


@dataclass(frozen=True)
class Findings:
    here: Found
    software: dict[str, str]
    engine: Path
    """The folder with the engine's own files."""
    results: dict[str, dict[str, Any]]
    """Of each stage, by its name."""


def latency(answers: dict[str, Any], ceiling: float | None) -> dict[str, Any]:
    """The answers, with a gate on the time of a token where there is a ceiling."""
    if ceiling is None:
        return answers
    took = answers["tried"]["token_ms"]
    message = f"{LATENCY} is {took:.6g}" + ("" if took <= ceiling else f", and must be at most {ceiling:.6g}")
    gate = GateResult(LATENCY, took, None, ceiling, took <= ceiling, message)
    return answers | {"gates": [*answers["gates"], asdict(gate)]}


def failed(found: Findings) -> list[str]:
    return [gate["message"] for gate in found.results["answers"]["gates"] if not gate["passed"]]


def seal(contents: Contents, found: Findings, bundle: Path | None) -> dict[str, Any]:
    """Lay out the bundle and write its documents; the report. Without a folder, the report alone is made."""
    report = _report(contents, found)
    if bundle is None:
        return report | {"seal": seal_of(report)}
    files = _lay_out(contents, found, bundle)
    checkpoint = cast("Source", SimpleNamespace(**report["checkpoint"]))
    of = checkpoint, report["recipe"], report["target"]
    files[sbom.FILE] = _put(bundle, sbom.FILE, sbom.sbom(*of, files, found.software))
    files[PROVENANCE] = _put(bundle, PROVENANCE, _provenance(contents, files))
    manifest = {
        "schema_version": 1,
        "checkpoint": report["checkpoint"],
        "recipe": report["recipe"],
        "target": report["target"],
        "files": {name: asdict(entry) for name, entry in files.items()},
        "software": found.software,
        "verdict": report["verdict"],
        "claims": report["claims"],
        "kit": contents.digest,
    }
    listed = _put(bundle, MANIFEST, spelled(manifest))
    report["manifest_sha256"] = listed.sha256
    report["seal"] = seal_of(report)
    atomic.write(bundle / REPORT, spelled(report))
    return report


def _lay_out(contents: Contents, found: Findings, bundle: Path) -> dict[str, Listed]:
    """Every file but the documents that are written last."""
    files = {}
    made_here = {PLAN, PROGRAM, ENGINE, sbom.FILE, PROVENANCE}
    for name, entry in sorted(contents.files.items()):
        if name not in made_here and not name.startswith(GRAPHS):
            _share(contents.folder / name, bundle / name)
            files[name] = entry
    for name in (MANIFEST, REPORT, SIGNATURE):
        if (contents.folder / name).is_file():
            _share(contents.folder / name, bundle / ORIGIN / name)
            files[f"{ORIGIN}/{name}"] = _listed(bundle / ORIGIN / name)
    for path in sorted(found.engine.rglob("*")):
        if path.is_file():
            name = path.relative_to(found.engine).as_posix()
            _share(path, bundle / name)
            files[name] = _listed(bundle / name)
    engine = read(contents.folder / ENGINE)
    engine["requires"] |= found.results["engine"]["requires"]
    files[ENGINE] = _put(bundle, ENGINE, (json.dumps(engine, indent=1) + "\n").encode())
    return files


def _share(source: Path, final: Path) -> None:
    """One file under two names where the disk allows it, else a copy."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, final)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, final)


def _put(bundle: Path, name: str, data: bytes) -> Listed:
    atomic.write(bundle / name, data)
    return _listed(bundle / name)


def _listed(path: Path) -> Listed:
    return Listed(path.stat().st_size, sha256_of(path))


def _provenance(contents: Contents, files: dict[str, Listed]) -> bytes:
    """The kit's, telling of these files, and that they came from the kit."""
    said = read(contents.folder / PROVENANCE)
    said["subject"] = [
        {"name": name, "digest": {"sha256": entry.sha256}} for name, entry in sorted(files.items())
    ]
    kit = {"name": "kit", "digest": {"sha256": contents.digest}}
    said["predicate"]["buildDefinition"]["resolvedDependencies"].append(kit)
    return spelled(said)


def _report(contents: Contents, found: Findings) -> dict[str, Any]:
    """As validate.report.Report reads it."""
    earlier, answers, speed = contents.report, found.results["answers"], found.results.get("speed")
    seen, here = answers["tried"], found.here
    device = here.device or environment.machine()["processor"] or here.architecture
    claims = [{"claim": f"the engine, by {contents.module} {here.version}", "where": TARGET_BUILT}]
    claims.append({"claim": "the self-check", "where": TARGET_RAN})
    machine = environment.machine() | ({"device": here.device} if here.device else {})
    if here.gpu:
        machine |= {"gpu": here.gpu.name, "sm": here.gpu.sm, "gpu_memory_bytes": here.gpu.memory}
    if speed:
        claims.append({"claim": "speed", "where": TARGET_RAN})
    times = {"latency.token_ms": seen["token_ms"], "latency.prefill_ms": seen["prefill_ms"]}
    peak = {"memory.peak_bytes": float(found.results["engine"]["highest_anonymous"])}
    return {
        "schema_version": 1,
        "tool": f"ernie-export {ernie_export.__version__}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": earlier["checkpoint"],
        "recipe": earlier["recipe"],
        "target": earlier["target"],
        "verdict": "failed" if failed(found) else "passed",
        "gates": [_finite(gate) for gate in answers["gates"]],
        "metrics": _finite(seen["metrics"] | times | peak),
        "baseline": None,
        "fault": None,
        "layers": [],
        "drift": [],
        "operators": [],
        "weights": [],
        "kl_histogram": None,
        "continuations": [],
        "sample": None,
        "inputs": {"source": "the kit's self-check", **answers["inputs"]},
        "sizes": earlier["sizes"],
        "timings": {name: result["seconds"] for name, result in found.results.items()},
        "speed": _speed(speed),
        "software": found.software,
        "machine": machine,
        "claims": [*contents.manifest["claims"], *claims],
        "notes": [
            f"Built on {device} ({platform.node()}) from the kit whose manifest has the SHA-256 {contents.digest}.",
            f"The kit's own report is {ORIGIN}/{REPORT}.",
        ],
        "manifest_sha256": None,
        "seal": "",
    }


def _speed(measured: dict[str, Any] | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    decode = [
        each | {"share": each["bytes_per_second"] / measured["bandwidth"] if measured["bandwidth"] else None}
        for each in measured["decode"]
    ]
    return {name: value for name, value in measured.items() if name != "seconds"} | {"decode": decode}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinities as strings: JSON has none."""
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {
        key: value if not isinstance(value, float) or math.isfinite(value) else names.get(value, "NaN")
        for key, value in values.items()
    }
