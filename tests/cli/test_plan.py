from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ernie_export.checkpoint import shapes
from ernie_export.plan.plan import Plan
from tests.cli.pseudo_terminal import in_a_terminal


def facts(out: str) -> dict[str, str]:
    """The lines above the first empty one."""
    return dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())


def test_a_config_alone_is_enough(run, tmp_path: Path) -> None:
    shutil.copy(shapes.folder("21b") / "config.json", tmp_path)
    ran = run("plan", tmp_path, "--target", "jetson-agx-orin-64gb")
    assert (ran.code, ran.err) == (0, "")
    named = run("plan", "--like", "21b", "--target", "jetson-agx-orin-64gb").out
    assert ran.out.replace(tmp_path.name, "21b").split() == named.split()
    told = facts(named)
    assert told["target"].strip() == "jetson-agx-orin-64gb, 63.7 GB of memory"
    assert told["fits"].strip().startswith("yes, ")
    assert "tokens/s" in told["decode, batch 1"] and "of memory (trace" in told["build"]


def test_the_parts_add_up(run) -> None:
    _, rows, *_ = run("plan", "--like", "21b", "--target", "h100").out.split("\n\n")
    parts = [line.rsplit("  ", 1)[0].split("  ")[0] for line in rows.splitlines()]
    assert parts[0] == "memory" and parts[-1] == "all"
    assert {"experts", "attention", "embedding, head", "KV cache", "activations", "runtime"} < set(parts)


def test_what_does_not_fit_is_told_with_what_would(run) -> None:
    out = run("plan", "--like", "21b", "--target", "jetson-orin-nx-16gb").out
    assert facts(out)["fits"].strip() == "no, 4.82 GB too much"
    assert "\nit fits with" in out and "\ncontext 131,072 → 47,616  " in out


def test_what_nothing_makes_fit_is_told_with_the_least_there_is(run) -> None:
    out = run("plan", "--like", "21b", "--target", "jetson-orin-nano-8gb").out
    assert facts(out)["fits"].strip().endswith("too much, and no change there is makes it fit")
    (row,) = [line for line in out.splitlines() if line.startswith("context 131,072 → 1,024; ")]
    assert row.split("  ")[0].endswith("attention int8 → int4")


def test_every_assumption_is_shown(run) -> None:
    arguments = ["plan", "--like", "21b", "--target", "jetson-orin-nano-8gb", "--batch", "2"]
    shown = run(*arguments).out.split("This rests on\n")[1]
    made = Plan.model_validate_json(run(*arguments, "--json").out)
    assert [line.split(maxsplit=1) for line in shown.splitlines()] == [
        list(pair) for pair in made.assumptions.items()
    ]


def test_json(run) -> None:
    arguments = ["--context", "2048", "--batch", "4", "--prompt", "128", "--recipe", "fp16", "--json"]
    found = json.loads(run("plan", "--target", "l4", *arguments).out)
    assert found["fits"] is True and found["checkpoint"] == "ernie-nano" and found["recipe"] == "fp16"
    assert (found["setting"]["context"], found["setting"]["batch"], found["setting"]["prompt"]) == (
        2048,
        4,
        128,
    )


def test_this_machine(run) -> None:
    ran = run("plan", "--target", "cpu", "--context", "512")
    assert ran.code == 0 and "measured now" in ran.out and "free on this machine" in ran.out


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_into_a_terminal(columns: int) -> None:
    arguments = ["plan", "--like", "21b", "--target", "jetson-orin-nano-8gb"]
    sent = in_a_terminal(
        f"import os; os.environ['COLUMNS'] = '{columns}'; os.environ['NO_COLOR'] = '1'\n"
        f"from ernie_export.cli import main; main({arguments})"
    )
    plain = sent.replace("\x1b[2m", "").replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, plain)) <= columns and len(plain) > 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "l4", "--like", "20b"], "'20b' is neither a shape of ERNIE-4.5 nor a folder"),
        (["--target", "l44"], "No target is named 'l44'. Did you mean l4"),
        (["--target", "l4", "--recipe", "int5"], "No recipe is named 'int5'. Did you mean"),
        (["--target", "l4", "--context", "0"], "Invalid value for '--context'"),
        (
            ["--target", "l4", "--context", "999999"],
            "A context of 999999 is asked for, the checkpoint promises",
        ),
        (["--target", "l4", "--batch", "0"], "Invalid value for '--batch'"),
        (["/nowhere", "--target", "l4"], "/nowhere/config.json cannot be read (No such file or directory)"),
        (["/nowhere", "--like", "21b", "--target", "l4"], "--like 21b and a checkpoint are both given"),
        ([], "Missing option '--target'"),
    ],
)
def test_mistakes(run, arguments: list[str], message: str) -> None:
    ran = run("plan", *arguments)
    assert ran.code == 2 and ran.out == ""
    assert ran.err.startswith(f"error: {message}"), ran.err
