from __future__ import annotations

from pathlib import Path

import pytest

from ernie_export.errors import UserError
from ernie_export.stack import Stack, stack_of
from ernie_export.target import Target

# What NVIDIA publishes for each: TensorRT, CUDA.
JETPACKS = {
    "6.2": ("10.3", "12.6"),
    "7.0": ("10.13", "13.0"),
    "7.1": ("10.13", "13.0"),
    "7.2": ("10.16", "13.2"),
}


def test_what_a_target_runs_on_is_there_and_suits_it() -> None:
    for target in Target.all():
        for stack in target.stacks:
            assert stack.architecture in (None, target.architecture)
            assert (stack.cuda is None) == (target.sm is None and stack.provider is None)
            assert stack.description and stack.install
    assert {stack.name for stack in Stack.all()} == {name for target in Target.all() for name in target.stack}


@pytest.mark.parametrize("number", JETPACKS)
def test_the_versions_of_a_jetpack(number: str) -> None:
    stack = Stack.find(f"JetPack {number}")
    tensorrt, cuda = JETPACKS[number]
    assert (stack.versions[0], stack.cuda, stack.module) == (tensorrt, cuda, "tensorrt")


def test_jetpack_6_is_planned_and_says_why() -> None:
    assert [stack.name for stack in Stack.all() if stack.planned] == ["JetPack 6.2"]
    Stack.find("JetPack 7.2").must_not_be_planned()
    with pytest.raises(UserError) as caught:
        Stack.find("JetPack 6.2").must_not_be_planned()
    assert str(caught.value).startswith("JetPack 6.2 is planned: our kernels are compiled with CUDA 13")
    assert "ONNX Runtime with TensorRT for RTX, JetPack 7.0" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "version", "stack"),
    [
        ("jetson-agx-orin-64gb", "10.3.0", "JetPack 6.2"),
        ("jetson-agx-orin-64gb", "10.16.0.72", "JetPack 7.2"),
        ("jetson-agx-orin-64gb", "11.4.0.106", "JetPack 7.2"),
        ("jetson-agx-orin-64gb", "11.0", None),
        ("jetson-agx-orin-64gb", "10.13.3.9", None),
        ("jetson-thor-t5000", "10.13.3.9", "JetPack 7.0"),
        ("jetson-thor-t4000", "10.13.3.9", "JetPack 7.1"),
        ("h100", "11.4.0.106", "TensorRT 11"),
        ("h100", "10.16.0.72", None),
        ("h100", "110.1", None),
    ],
)
def test_the_stack_that_a_machine_has(target: str, version: str, stack: str | None) -> None:
    found = stack_of("tensorrt", version, Target.find(target).stacks)
    assert (found and found.name) == stack
    assert stack_of("onnxruntime", version, Target.find(target).stacks) is None


def test_an_unknown_stack_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"No stack is named 'JetPack 7\.3'\. Did you mean JetPack 7\."):
        Stack.find("JetPack 7.3")


def test_a_wrong_row_is_told_with_its_place(tmp_path: Path) -> None:
    from ernie_export import rows

    path = tmp_path / "stacks.toml"
    for text, words in (
        ('[a]\nmodule = "cuda"', "description: Field required"),
        ("[a", "table of stacks .* is not TOML"),
        ("a = 1", r"is wrong \(a is no table\)"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            rows.read(path, Stack, "stacks")
