"""How long an installation takes beside what the bytes alone take: `cp` and `sha256sum` of the same files.

    python -m benchmarks.install_speed [--megabytes 1000] [--repeats 3] [--work FOLDER]

A bundle of that size is made up (the documents of ernie-nano's, over weight files of random bytes), pushed to
Debian's docker-registry on loopback, and installed from there and from the folder.  The trial of the engine is
left out: these weights are no model's, and it takes the same whatever moves the bytes.

An installation is on the disk when it ends, and `cp` is not: so the same is measured with `sync` of the copies, and
an installation is compared with either.  `sha256sum` of many a distribution does not use the processor's SHA
instructions, and `openssl` does: with that one beside `cp` the bar is far higher, and is told too, as no goal.
Every way reads its files from memory, where they were read just before; and once more from the disk, after they
were dropped from memory.  Each is run in turn, the medians are kept, and the result is written to
benchmarks/results/install_speed.json.
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
from ernie_export.bench.opening import drop, read
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
"""Times `cp` and `sha256sum`."""
ANYBODY = Policy(unsigned=True, downgrade=True)
HASHES = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "dgst", "-sha256"]}
BY_HAND = [f"cp, {synced}{tool}" for tool in HASHES for synced in ("", "sync, ")]
INSTALLED = ["install from a registry", "install from a folder"]
MEMORY = {"in memory": read, "on the disk": drop}
"""Where the files are, and what brings them there."""


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
    medians = {
        where: {way: round(statistics.median(seconds), 3) for way, seconds in ways.items()}
        for where, ways in taken.items()
    }
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment.machine(),
        "megabytes": given.megabytes,
        "files": FILES,
        "seconds": taken,
        "median_seconds": medians,
        "times": {where: ratios(median) for where, median in medians.items()},
        "at_most": AT_MOST,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for where, median in medians.items():
        for way, seconds in median.items():
            print(f"{where}: {way}: {seconds:.2f} s")
    worst = max(times["cp, sha256sum"] for of in result["times"].values() for times in of.values())
    print(f"at most {worst:.2f} times cp and sha256sum")
    sys.exit(worst > AT_MOST)


def ratios(median: dict[str, float]) -> dict[str, dict[str, float]]:
    """By way of installing: how many times what each way by hand takes."""
    return {way: {other: round(median[way] / median[other], 3) for other in BY_HAND} for way in INSTALLED}


def measured(folder: Path, megabytes: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    bundle = made_up(folder, megabytes)
    with running(folder / "registry") as started:
        address = started.address("speed")
        print("push", flush=True)
        push(bundle, Registry(Address.parse(address), plain_http=True))
        sources = [path for path in [*bundle.rglob("*"), *started.storage.rglob("*")] if path.is_file()]
        ways: dict[str, Callable[[Path], object]] = {
            "install from a registry": lambda to: install(
                Offer.find(address, plain_http=True), Place(to), ANYBODY
            ),
            "install from a folder": lambda to: install(Offer.find(str(bundle)), Place(to), ANYBODY),
        } | {way: lambda to, way=way: by_hand(way.split(", "), bundle, to) for way in BY_HAND}
        taken: dict[str, dict[str, list[float]]] = {where: {way: [] for way in ways} for where in MEMORY}
        for repeat in range(repeats):
            for where, bring in MEMORY.items():
                for way, run in ways.items():
                    os.sync()
                    bring(sources)
                    begun = time.perf_counter()
                    run(folder / "target")
                    taken[where][way].append(round(time.perf_counter() - begun, 3))
                    print(f"{repeat + 1} of {repeats}: {where}: {way}: {taken[where][way][-1]} s", flush=True)
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


def by_hand(steps: list[str], bundle: Path, to: Path) -> None:
    """The bytes copied and checked, one program after the other."""
    for step in steps:
        if step == "cp":
            subprocess.run(["cp", "-r", str(bundle), str(to)], check=True)
        else:
            files = sorted(str(path) for path in to.rglob("*") if path.is_file())
            command = ["sync"] if step == "sync" else HASHES[step]
            subprocess.run([*command, *files], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
