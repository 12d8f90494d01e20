"""Builds the kernels' library: `python plugins/build.py plain address thread coverage cuda aarch64`.

All but cuda and aarch64, which is cuda for Jetsons, are for this machine's CPU: address and thread with sanitizers,
coverage counts the lines that run. The toolkit is the one in ERNIE_CUDA_ROOT, else the one that pip installed
(the extra `plugins`). With `--plugins` it is TensorRT's plugins instead, and what drives them in the tests;
`--payload` builds these for servers and for Jetsons, and puts them where a wheel takes them from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
EMULATED = {"plain": "", "address": "address", "thread": "thread", "coverage": "coverage"}
FLAVOURS = (*EMULATED, "cuda", "aarch64")
JETSONS = "87;110"
PAYLOAD = SOURCE.parent / "ernie_export" / "engine" / "plugins"


def toolkit() -> Path:
    """The CUDA toolkit: a folder with include/cuda_fp16.h and bin/nvcc."""
    named = os.environ.get("ERNIE_CUDA_ROOT")
    root = Path(named) if named else Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
    if not (root / "include" / "cuda_fp16.h").exists():
        sys.exit(f"{root} is no CUDA toolkit. Run `make plugins`, or name one in ERNIE_CUDA_ROOT.")
    return root


def build(flavour: str, output: Path | None = None, sm: str = "", plugins: bool = False) -> Path:
    """→ the folder with libernie_kernels.so, or libernie_plugins.so, up to date; several processes may ask at once."""
    compiler = "aarch64-linux-gnu-g++" if flavour == "aarch64" else "g++"
    for tool in ("cmake", "ninja", compiler):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed. Run `make system-deps`.")
    folder = output or SOURCE.parent / "build" / "plugins" / flavour
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-DERNIE_CUDA_ROOT={toolkit()}"]
    if flavour in EMULATED:
        options += ["-DERNIE_EMULATION=ON", f"-DERNIE_SANITIZER={EMULATED[flavour]}"]
    if flavour == "aarch64":
        options += [f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'aarch64.cmake'}", f"-DERNIE_SM={sm or JETSONS}"]
        options.append(f"-DERNIE_CUDART={fetched('cudart-aarch64')}/libcudart_static.a")
    elif sm:
        options.append(f"-DERNIE_SM={sm}")
    if plugins:
        options.append(f"-DERNIE_TENSORRT_INCLUDE={fetched('tensorrt-headers')}")
    targets = ["--target", "ernie_plugins", "ernie_drive_plugins"] if plugins else []
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja", *options)
        run("cmake", "--build", str(folder), *targets)
    return folder


def payload() -> list[Path]:
    """→ the folders of ernie_export/engine/plugins/, all SMs for servers and those of Jetsons."""
    architectures = {"cuda": "x86_64", "aarch64": "aarch64"}
    return [place(build(each, plugins=True), architecture) for each, architecture in architectures.items()]


def place(built: Path, architecture: str, within: Path = PAYLOAD) -> Path:
    """What `build` made → a folder with the library, and what it is (ernie_export/engine/plugin_library.py)."""
    nvcc = run(str(toolkit() / "bin" / "nvcc"), "--version")
    header = (Path(fetched("tensorrt-headers")) / "NvInferVersion.h").read_text()
    cuda = re.findall(r"release ([0-9.]+)", nvcc)[0]
    sms = re.findall(r"^ERNIE_SM:STRING=(.*)$", (built / "CMakeCache.txt").read_text(), re.MULTILINE)[0]
    folder = within / f"linux-{architecture}-cuda{cuda.partition('.')[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libernie_plugins.so"
    partial = Path(shutil.copyfile(built / library.name, library.with_suffix(".partial")))
    says = {
        "cuda": cuda,
        "sm": [f"{sm[:-1]}.{sm[-1]}" for sm in sms.split(";")],
        "tensorrt": ".".join(re.findall(r"define TRT_(?:MAJOR|MINOR|PATCH)_ENTERPRISE ([0-9]+)", header)),
        "sha256": hashlib.sha256(partial.read_bytes()).hexdigest(),
    }
    partial.replace(library)
    (folder / "library.json").write_text(json.dumps(says, indent=1) + "\n")
    return folder


def fetched(name: str) -> str:
    return run(sys.executable, str(SOURCE / "fetch.py"), name).strip()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    if sys.argv[1:] == ["--payload"]:
        print(*payload(), sep="\n")
        sys.exit()
    for flavour in sys.argv[1:]:
        if flavour == "--plugins":
            continue
        if flavour not in FLAVOURS:
            sys.exit(f"{flavour} is none of {', '.join(FLAVOURS)}.")
        print(build(flavour, plugins="--plugins" in sys.argv), flush=True)
