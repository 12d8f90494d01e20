from __future__ import annotations

import pytest

from ernie_export.errors import UserError
from ernie_export.target import Target

# What the rows of the table are made of: peak GB/s and nominal GB of memory.
ROWS = {
    "jetson-orin-nano-8gb": ("8.7", 102, 8),
    "jetson-orin-nx-16gb": ("8.7", 102.4, 16),
    "jetson-agx-orin-32gb": ("8.7", 204.8, 32),
    "jetson-agx-orin-64gb": ("8.7", 204.8, 64),
    "jetson-thor-t4000": ("11.0", 273, 64),
    "jetson-thor-t5000": ("11.0", 273, 128),
    "gb10": ("12.1", 273, 128),
    "l4": ("8.9", 300, 24),
    "a10": ("8.6", 600, 24),
    "l40s": ("8.9", 864, 48),
    "rtx-4090": ("8.9", 1008, 24),
    "rtx-5090": ("12.0", 1792, 32),
    "rtx-pro-6000": ("12.0", 1792, 96),
    "a100-80gb": ("8.0", 2039, 80),
    "h100": ("9.0", 3350, 80),
    "h200": ("9.0", 4800, 141),
    "b200": ("10.0", 7700, 180),
}
KITS = {"arm64": "aarch64", "x86-64": "x86_64"}
"""What kits are built for through ONNX Runtime, and the architecture of the CPU."""
JETSONS = (
    "jetson-orin-nx-16gb", "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-thor-t4000", "jetson-thor-t5000",
)  # fmt: skip
SERVERS = ("l4", "a10", "l40s", "a100-80gb", "h100", "h200", "b200")
GPU_KITS = dict.fromkeys(JETSONS, "aarch64") | dict.fromkeys(SERVERS, "x86_64")
"""The same through TensorRT."""
ANY_GPU = ("cuda", "rtx")
"""GPUs of any size, through ONNX Runtime."""


def test_every_row_of_the_table_is_found_by_its_name() -> None:
    assert [target.name for target in Target.all()] == ["cpu", *KITS, *ANY_GPU, *ROWS]
    for target in Target.all():
        assert Target.find(target.name) == target
        assert target.description and target.stack


@pytest.mark.parametrize("name", ROWS)
def test_the_figures_of_a_gpu(name: str) -> None:
    target = Target.find(name)
    sm, bandwidth, gigabytes = ROWS[name]
    assert target.sm == sm
    assert target.memory and target.reserved and target.bandwidth
    assert target.bandwidth.gb_per_s == bandwidth
    # A marketed gigabyte is 2³⁰ bytes; ECC and the firmware keep up to 7 % of them.
    assert 0.93 * gigabytes * 2**30 <= target.memory.bytes <= gigabytes * 2**30
    assert target.reserved.bytes < target.memory.bytes / 4
    assert all(figure.source for figure in (target.memory, target.reserved, target.bandwidth))


@pytest.mark.parametrize("name", ["cpu", *KITS, *ANY_GPU])
def test_what_a_cpu_has_is_measured_and_not_told(name: str) -> None:
    cpu = Target.find(name)
    assert (cpu.sm, cpu.memory, cpu.reserved, cpu.bandwidth) == (None, None, None, None)


def test_what_is_built_and_where() -> None:
    built = ["cpu", *ANY_GPU, "rtx-4090", "rtx-5090", "rtx-pro-6000"]
    for name in (*built, *KITS, *GPU_KITS):
        Target.find(name).must_not_be_planned()
    assert [target.name for target in Target.all() if target.is_built_here] == built
    assert {target.name: target.architecture for target in Target.all() if target.is_kit} == KITS | GPU_KITS
    with pytest.raises(UserError) as caught:
        Target.find("gb10").must_not_be_planned()
    assert str(caught.value) == (
        "The target gb10 is planned: nothing can be built for it yet. "
        "`ernie-export plan --target gb10` tells what would fit; "
        "cpu, arm64, x86-64, cuda, rtx, jetson-orin-nx-16gb, jetson-agx-orin-32gb, jetson-agx-orin-64gb, "
        "jetson-thor-t4000, jetson-thor-t5000, l4, a10, l40s, rtx-4090, rtx-5090, rtx-pro-6000, a100-80gb, "
        "h100, h200, b200 can be built."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cpuu",
            "No target is named 'cpuu'. Did you mean cpu? Known: cpu, arm64, x86-64, cuda, rtx, jetson-orin-nano-8gb, ",
        ),
        ("", "No target is named ''. Known: cpu, arm64, x86-64, cuda, rtx, jetson-orin-nano-8gb, "),
    ],
)
def test_an_unknown_target_names_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Target.find(name)
    assert str(caught.value).startswith(message)
