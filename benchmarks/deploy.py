"""A bundle of twenty decoder layers to twenty devices at once over ssh, and then one in which one layer changed.

    python -m benchmarks.deploy              # benchmarks/results/deploy.json; minutes, 1 GB of disk

The devices are sshds on loopback, each with a store of its own; on each the bundle is checked, its engine is
opened and held to the checkpoint's answers, and it becomes the active one.  All of that shares this machine's
cores, so the seconds say what loopback does and nothing of a network.  The bytes are those given to ssh.
The weights are random, of ernie-nano's shape; the changed layer has those of another seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from ernie_export import pipeline
from ernie_export.bundle.diff import diff
from ernie_export.checkpoint import synthetic
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.cli.deploy_table import Lines
from ernie_export.distribute.ssh_destination import destinations
from ernie_export.distribute.ssh_rollout import Rollout, Way
from ernie_export.distribute.ssh_sender import Parcel
from ernie_export.progress import Silent
from ernie_export.readable import size
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from tests.distribute.loopback_sshd import Fleet, devices

RESULTS = Path(__file__).parent / "results" / "deploy.json"
LAYERS, CHANGED = 20, 12
DEVICES = 20


def built(checkpoint: Path, output: Path) -> Path:
    print(f"build {output.name}", flush=True)
    # Without gates: of random weights, twenty layers deep, none says anything.
    recipe = Recipe.find("int4").model_copy(update={"name": "int4-ungated", "gates": {}})
    result = pipeline.build(checkpoint, Target.find("cpu"), recipe, output)
    assert result.verdict == "passed", result.report.read_text()
    return output


def with_another_layer(checkpoint: Path, other: Path, output: Path) -> Path:
    """The checkpoint with one layer of another one of its shape."""
    shutil.copytree(checkpoint, output)
    theirs = Checkpoint.open(other).tensors
    for name, tensor in Checkpoint.open(checkpoint).tensors.items():
        if name.startswith(f"model.layers.{CHANGED}."):
            source = theirs[name]
            with source.path.open("rb") as file, (output / tensor.path.name).open("r+b") as target:
                file.seek(source.offset)
                target.seek(tensor.offset)
                target.write(file.read(source.nbytes))
    return output


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
    parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in (0, 1):
            synthetic.synthesize("nano", folder / f"seed-{seed}", Silent(), LAYERS, seed)
        newer = with_another_layer(folder / "seed-0", folder / "seed-1", folder / "newer")
        first, second = built(folder / "seed-0", folder / "bundle-1"), built(newer, folder / "bundle-2")
        files = [f"{file.path} ({file.how})" for file in diff(first, second).files]
        with devices(folder / "fleet", DEVICES) as fleet:
            rows = [
                measured("first bundle", fleet, first),
                measured("one layer of twenty changed", fleet, second),
            ]
    result = {"layers": LAYERS, "files_that_differ": files, "software": environment.software(),
              "machine": environment.machine(), "rows": rows}  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
