"""Builds the kernels for the GPU of this machine, tries them, and measures them.

Needs PyTorch with numpy, nvcc with a C++ compiler behind it, and nothing else that is not in this repository.
"""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)
# Folders without __init__.py lose against a package of the same name that somebody installed.
for name in ("tests", "plugins", "benchmarks"):
    module = ModuleType(name)
    module.__path__ = [str(ROOT / name)]
    sys.modules[name] = module

from tests.gpu.session import main  # noqa: E402 - behind the path that it is found by

if __name__ == "__main__":
    sys.exit(main())
