"""What the plugins and tests are built and tried with and no extra can bring, from the package index: build/fetched/.

`folder(name)` is where it lies, fetched if it is not there yet. Each is a package at one version, unpacked
and not installed: the headers' package would bring packages that nothing here needs, two versions of TensorRT
do not go into one environment, and a library for another machine into none.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FETCHED = Path(__file__).resolve().parent.parent / "build" / "fetched"


class Fetched(NamedTuple):
    packages: tuple[str, ...]
    platform: str = ""
    """Of another machine than this one."""
    within: str = ""
    """The folder of the package that is meant."""


ALL = {
    # TensorRT 10.14's, the only ones that a package brings. They serve for 10.13 to 11; 11's do not for 10.
    "tensorrt-headers": Fetched(("kernel-lens==2.0.1",), within="kernel_lens/include/tensorrt"),
    "cudart-aarch64": Fetched(
        ("nvidia-cuda-runtime==13.2.75",), platform="manylinux2014_aarch64", within="nvidia/cu13/lib"
    ),
    # TensorRT's lean runtimes: they have its plugin registry, and open on a machine without a GPU.
    "tensorrt-lean-10": Fetched(
        ("tensorrt-lean-cu13-libs==10.16.0.72", "tensorrt-lean-cu13-bindings==10.16.0.72")
    ),
    "tensorrt-lean-11": Fetched(
        ("tensorrt-lean-cu13-libs==11.4.0.106", "tensorrt-lean-cu13-bindings==11.4.0.106")
    ),
    # TensorRT's whole Python bindings, which come without the library: their names and parameters can be read.
    "tensorrt-bindings-10.13": Fetched(("tensorrt-cu13-bindings==10.13.3.9",)),
    "tensorrt-bindings-10.16": Fetched(("tensorrt-cu13-bindings==10.16.0.72",)),
    "tensorrt-bindings-11.4": Fetched(("tensorrt-cu13-bindings==11.4.0.106",)),
    "cuda-bindings": Fetched(("cuda-bindings==13.2.0", "cuda-pathfinder==1.9.1")),
    # Triton's schema of a model's configuration, as protoc made it for Triton's own client.
    "triton-schema": Fetched(("tritonclient==2.73.0",), within="tritonclient/grpc"),
}


def folder(name: str) -> Path:
    """→ where it lies; several processes may ask at once."""
    wanted, place = ALL[name], FETCHED / name
    FETCHED.mkdir(parents=True, exist_ok=True)
    with (FETCHED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            partial = FETCHED / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            fetch(wanted, partial)
            partial.rename(place)
    return place / wanted.within


def fetch(wanted: Fetched, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--target", str(target)]
    if wanted.platform:
        command += ["--platform", wanted.platform]
    done = subprocess.run([*command, *wanted.packages], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' and '.join(wanted.packages)} cannot be fetched:\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name not in ALL:
            sys.exit(f"{name} is none of {', '.join(ALL)}.")
        print(folder(name), flush=True)
