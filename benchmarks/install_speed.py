"""How long an installation takes beside what the bytes alone take: `cp` and `sha256sum` of the same bundle.

    python -m benchmarks.install_speed [--megabytes 1000] [--repeats 3] [--work FOLDER]

A bundle of that size is made up (the documents of ernie-nano's, over weight files of random bytes), pushed to
Debian's docker-registry on loopback, and installed from there and from the folder.  The trial of the engine is
left out: these weights are no model's, and it takes the same whatever moves the bytes.  Each way is run in turn,
the medians are kept, and the result is written to benchmarks/results/install_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ernie_export import pipeline
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.write import seal
from ernie_export.checkpoint import embedded
from ernie_export.device import install as module
from ernie_export.device.install import Offer, install
from ernie_export.device.place import Place
from ernie_export.distribute.address import Address
from ernie_export.distribute.policy import Policy
from ernie_export.distribute.push import push
from ernie_export.distribute.registry import Registry
from ernie_export.recipe import Recipe
from ernie_export.target import Target
from ernie_export.validate import environment
from ernie_export.validate.report import Report
from tests.distribute.docker_registry import running

RESULTS = Path(__file__).parent / "results" / "install_speed.json"
FILES = 20
AT_MOST = 1.5
"""Times `cp` and `sha256sum`, from the registry."""
ANYBODY = Policy(unsigned=True, downgrade=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    module.try_out = lambda *_: None  # type: ignore[assignment]
    module.require_suited = lambda *_: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        taken = measured(Path(folder), given.megabytes, given.repeats)
    medians = {way: round(statistics.median(seconds), 3) for way, seconds in taken.items()}
    bytes_alone = medians["cp and sha256sum"]
    ratios = {way: round(median / bytes_alone, 3) for way, median in medians.items()}
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "megabytes": given.megabytes,
        "files": FILES,
        "seconds": {way: [round(each, 3) for each in seconds] for way, seconds in taken.items()},
        "median_seconds": medians,
        "times_cp_and_sha256sum": ratios,
        "at_most": AT_MOST,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for way, median in medians.items():
        print(f"{way}: {median:.2f} s, {ratios[way]:.2f} times cp and sha256sum")
    sys.exit(ratios["install from a registry"] > AT_MOST)


def measured(folder: Path, megabytes: int, repeats: int) -> dict[str, list[float]]:
    bundle = made_up(folder, megabytes)
    with running(folder / "registry") as started:
        address = started.address("speed")
        print("push", flush=True)
        push(bundle, Registry(Address.parse(address), plain_http=True))
        ways: dict[str, Callable[[Path], object]] = {
            "cp and sha256sum": lambda to: by_hand(bundle, to),
            "install from a registry": lambda to: install(
                Offer.find(address, plain_http=True), Place(to), ANYBODY
            ),
            "install from a folder": lambda to: install(Offer.find(str(bundle)), Place(to), ANYBODY),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(repeats):
            for way, run in ways.items():
                os.sync()
                begun = time.perf_counter()
                run(folder / "target")
                taken[way].append(time.perf_counter() - begun)
                print(f"{repeat + 1} of {repeats}: {way}: {taken[way][-1]:.2f} s", flush=True)
                shutil.rmtree(folder / "target")
        return taken


def made_up(folder: Path, megabytes: int) -> Path:
    """A bundle of random weight files, sealed as a real one is."""
    print("build", flush=True)
    real = pipeline.build(embedded.folder(), Target.find("cpu"), Recipe.find("int4"), folder / "real").bundle
    bundle = folder / "bundle"
    shutil.copytree(real, bundle, ignore=shutil.ignore_patterns("*.bin"))
    for number in range(FILES):
        with (bundle / "weights" / f"layer-{number:03d}.bin").open("wb") as file:
            for _ in range(megabytes // FILES):
                file.write(os.urandom(1_000_000))
    seal(bundle, Report.read(real / Report.FILE), Manifest.read(real).claims)
    return bundle


def by_hand(bundle: Path, to: Path) -> None:
    """The bytes copied and checked; unlike an installation, this does not wait for the disk."""
    subprocess.run(["cp", "-r", str(bundle), str(to)], check=True)
    files = sorted(str(path) for path in to.rglob("*") if path.is_file())
    subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
