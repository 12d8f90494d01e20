"""A double of the driver's library, libcuda.so.1: it says what a test wants of the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = """
#include <string.h>
#include <stddef.h>
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return flags == 0 ? NO_GPU : 1; }
int cuDeviceGet(int *device, int number) { *device = 7; return number; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : attribute == 18 ? INTEGRATED : -1;
    return device == 7 ? 0 : 101;
}
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return device != 7; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 65893580800; return device != 7; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x7000; return device != 7; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device != 7; }
static void *current;
int cuCtxPushCurrent_v2(void *context) { current = context; return context != (void *)0x7000; }
int cuCtxPopCurrent_v2(void **context) { *context = current; current = 0; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *bytes) { *free = 60000000000; *bytes = 65893580800; return current == 0; }
"""


def compiled(
    folder: Path,
    source: str = DRIVER,
    version: int = 13020,
    no_gpu: int = 0,
    sm: str = "8.7",
    integrated: int = 1,
    compiler: str = "gcc",
) -> Path:
    """libcuda.so.1 in a folder of its own."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not here: run `make system-deps`")
    folder.mkdir(exist_ok=True)
    path = folder / "libcuda.so.1"
    (folder / "driver.c").write_text(source)
    major, minor = sm.split(".")
    facts = {
        "VERSION": version,
        "NO_GPU": no_gpu,
        "MAJOR": major,
        "MINOR": minor,
        "INTEGRATED": integrated,
    }
    flags = ["-shared", "-fPIC", *(f"-D{name}={value}" for name, value in facts.items())]
    subprocess.run([compiler, *flags, str(folder / "driver.c"), "-o", str(path)], check=True)
    return path
