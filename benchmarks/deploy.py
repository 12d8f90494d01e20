"""A bundle of twenty decoder layers to twenty devices at once over ssh, and then one in which one layer changed.

    python -m benchmarks.deploy [--work FOLDER]   # benchmarks/results/deploy.json; minutes, 1 GB of disk

The devices are sshds on loopback, each with a store of its own; on each the bundle is checked, its engine is
opened and held to the checkpoint's answers, and it becomes the active one.  All of that shares this machine's
cores, so the seconds say what loopback does and nothing of a network.  The bytes are those given to ssh.

The checkpoint is ernie-nano with fourteen more layers: copies of its own ones that add a sixty-fourth of what those
add, each a little more than the one before, so that it still tells text from chance, every gate of the recipe applies,
and no two layers are the same file.  The changed layer becomes a copy of another one, and adds more than any.
With --work the two bundles stay in that folder, and the next run has them already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from safetensors.numpy import save_file

from ernie_export import pipeline
from ernie_export.bundle.diff import FileChange, diff
from ernie_export.checkpoint import embedded
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.cli.deploy_table import Lines
from ernie_export.distribute.ssh_destination import destinations
from ernie_export.distribute.ssh_rollout import Rollout, Way
from ernie_export.distribute.ssh_sender import Parcel
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from ernie_export.validate.report import Report
from tests.distribute.loopback_sshd import Fleet, devices

RESULTS = Path(__file__).parent / "results" / "deploy.json"
LAYERS, CHANGED = 20, 12
DEVICES = 20
FAINT = 1 / 64
"""What the outputs of the first of the added layers are multiplied with."""


def built(checkpoint: Path, output: Path) -> Path:
    """By the recipe as it is shipped, with all its gates."""
    print(f"build {output.name}", flush=True)
    result = pipeline.build(checkpoint, Target.find("cpu"), Recipe.find("int4"), output)
    assert result.verdict == "passed", result.report.read_text()
    return output


def deeper(output: Path, changed: int | None = None) -> Path:
    """ernie-nano with LAYERS layers, one of them perhaps changed."""
    if (output / "model.safetensors").exists():  # which is written last
        return output
    nano = Checkpoint.open(embedded.folder())
    depth = nano.config.num_hidden_layers
    arrays = {name: nano.array(name) for name in nano.tensors}
    for layer in range(depth, LAYERS):
        copied = layer + (LAYERS + 1) * (layer == changed)
        source = 1 + copied % (depth - 1)
        faint = FAINT * (1 + (copied - depth) / LAYERS)
        for name in nano.sources(f"model.layers.{source}."):
            part = name.removeprefix(f"model.layers.{source}.")
            scale = faint if part.endswith(("o_proj.weight", "down_proj.weight")) else 1
            array = nano.array(name)
            arrays[f"model.layers.{layer}.{part}"] = (array * array.dtype.type(scale)).astype(array.dtype)
    shutil.copytree(embedded.folder(), output, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((output / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "moe_layer_end_index": LAYERS - 1}
    (output / "config.json").write_text(json.dumps(config))
    save_file(arrays, output / "model.safetensors")
    return output


def gates_of(bundle: Path) -> dict[str, object]:
    report = Report.read(bundle / Report.FILE)
    told = {
        name: report.metrics[name] for name in ("logits.kl_mean", "logits.same_top1", "routing.agreement")
    }
    return {"passed": sum(gate.passed for gate in report.gates), "of": len(report.gates), **told}


def bytes_of(bundle: Path, files: list[FileChange]) -> int:
    return sum((bundle / file.path).stat().st_size for file in files)


def measured(what: str, fleet: Fleet, bundle: Path) -> dict[str, object]:
    names = [device.name for device in fleet.devices]
    parcel, begun = Parcel.of(bundle), time.monotonic()
    deployed = Rollout(parcel, destinations(names), Way(ssh_config=fleet.config), Lines()).run()
    most = max(host.sent for host in deployed.hosts)
    row = {
        "what": what,
        "devices": len(names),
        "failed": [f"{host.host}: {host.cause}" for host in deployed.failed],
        "bundle_bytes": parcel.size,
        "sent_bytes_to_a_device": most,
        "share": most / parcel.size,
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(
        f"{what}: {len(names) - len(deployed.failed)} of {len(names)} installed it, {size(most)} of "
        f"{size(parcel.size)} ({most / parcel.size:.1%}) to each, {row['seconds']} s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = given.work or folder
        first = built(deeper(work / "older"), work / "bundle-1")
        second = built(deeper(work / "newer", CHANGED), work / "bundle-2")
        gates = {bundle.name: gates_of(bundle) for bundle in (first, second)}
        differ = diff(first, second).files
        load = os.getloadavg()[0]
        with devices(folder / "fleet", DEVICES) as fleet:
            rows = [
                measured("first bundle", fleet, first),
                measured("one layer of twenty changed", fleet, second),
            ]
    result = {
        "layers": LAYERS,
        "gates": gates,
        "files_that_differ": [f"{file.path} ({file.how})" for file in differ],
        "their_bytes": bytes_of(second, differ),
        "software": environment.software(),
        "machine": environment.machine(),
        "load_average": load,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
