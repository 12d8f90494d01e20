"""Are the kernels' tests able to fail?  Changes one thing in a kernel, and looks whether a test does.

    python benchmarks/kernel_mutants.py [--random 60] [--seed 1] [--work build/mutants]

Every __syncthreads and __syncwarp is left out, every wait count raised, every commit left out, every shuffle
given another mask or another lane; and indices and bounds drawn at random are changed.  A mutant first runs
without sanitizers, which is quick; one that lives is built with each sanitizer and runs again.  Results stand
in benchmarks/results/kernel_mutants.json; a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kernel_mutants.json"
#: A source of kernels, and the tests that run it.
TESTS = {
    "routing.cu": ["test_routing.py"],
    "linear_decode.cu": ["test_linear.py"],
    "linear_prefill.cu": ["test_linear.py"],
    "experts_decode.cu": ["test_experts.py"],
    "experts_prefill.cu": ["test_experts.py"],
    "prefill_tile.h": ["test_linear.py", "test_experts.py"],
    "attention.cu": ["test_attention.py"],
    "row_tile.h": ["test_linear.py", "test_experts.py"],
    "codes.h": ["test_linear.py", "test_experts.py"],
}
COMPILER = "the compiler"
#: What orders threads: pattern and its changes.  Each is tried at each place.
ORDERING = {
    "barrier": [(r"__syncthreads\(\);", ";"), (r"__syncwarp\(\);", ";")],
    "wait": [
        (r"copy_wait<Ring::depth - 1>", "copy_wait<Ring::depth>"),
        (r"copy_wait<depth - 2>", "copy_wait<depth - 1>"),
        (r"copy_wait<0>", "copy_wait<1>"),
        (r"ptx::copy_commit\(\);", ";"),
    ],
    "shuffle": [
        (r"_sync\(all_lanes,", "_sync(0x7fffffffu,"),
        (r"(__shfl_xor_sync\(all_lanes, [^;]*), 1\)", r"\1, 2)"),
        (r"(__shfl_xor_sync\(all_lanes, [^;]*), 2\)", r"\1, 1)"),
        (r"int step = 16;", "int step = 8;"),
        (r"int step = 16; step > 0;", "int step = 16; step > 1;"),
        (r"(__shfl_sync\(all_lanes, \w+), i / words, 4\)", r"\1, 0, 4)"),
    ],
}
#: Indices and bounds.
RANDOM = [
    (r" < (?=[a-z])", " <= "),
    (r" <= ", " < "),
    (r" >= (?=[a-z])", " > "),
    (r" \+ 8 \* ", " + 4 * "),
    (r"(?<=[\w)\]]) \+ (?=[a-z(])", " - "),
    (r"(?<=[\w)\]]) - 1\b", ""),
    (r"(?<=[\w)\]]) \+ 1\b", ""),
    (r" % 4\b", " % 2"),
    (r" / 4\b", " / 2"),
    (r"\b2 \* t\b", "t"),
    (r"\b8 \* t\b", "4 * t"),
    (r"\b16 \* ", "8 * "),
    (r"\[0\]", "[1]"),
    (r"\[1\]", "[0]"),
    (r"0x7632", "0x5410"),
    (r"0x5410", "0x7632"),
]
#: Lines with nothing of a kernel in them.
NOT_KERNEL = re.compile(
    r"^\s*(//|#|using |static_assert|template|return problem|return \"|if \(c\.)|problem\(|LAUNCH|launch|dim3|_\w+\(c\."
)


@dataclass(frozen=True)
class Mutant:
    kind: str
    file: str
    line: int
    before: str
    after: str


def changes(kind: str, file: str, patterns: list[tuple[str, str]]) -> Iterator[Mutant]:
    for number, line in enumerate((ROOT / "plugins" / "kernels" / file).read_text().splitlines(), 1):
        if line.startswith("Problem check"):
            return  # from there on: the host
        if NOT_KERNEL.search(line):
            continue
        code = line.partition("//")[0]
        for pattern, replacement in patterns:
            for match in re.finditer(pattern, code):
                after = code[: match.start()] + match.expand(replacement) + code[match.end() :]
                if after != code:
                    yield Mutant(kind, file, number, line.strip(), after.strip())


def mutants(randoms: int, seed: int) -> list[Mutant]:
    ordering = [
        mutant
        for kind, patterns in ORDERING.items()
        for file in TESTS
        for mutant in changes(kind, file, patterns)
    ]
    drawn = sorted({m for file in TESTS for m in changes("index or bound", file, RANDOM)}, key=repr)
    random.Random(seed).shuffle(drawn)
    return list(dict.fromkeys([*ordering, *drawn[:randoms]]))


def plant(mutant: Mutant, work: Path) -> None:
    """The sources as they are, but for the one line; untouched files keep their times, so that little is built."""
    for path in sorted((ROOT / "plugins" / "kernels").iterdir()):
        lines = path.read_text().splitlines()
        if path.name == mutant.file:
            line = lines[mutant.line - 1]
            lines[mutant.line - 1] = line[: len(line) - len(line.lstrip())] + mutant.after
        text, target = "\n".join(lines) + "\n", work / "plugins" / "kernels" / path.name
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def run_tests(names: list[str], folders: dict[str, str], select: str) -> str:
    """What failed, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for flavour in ("plain", "address", "thread"):
        environment[f"ERNIE_KERNELS_{flavour.upper()}"] = folders[flavour]
    files = [f"tests/plugins/{name}" for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-k", select, *files],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else done.stdout[-500:]


def built(work: Path, flavour: str) -> str | None:
    command = [sys.executable, str(work / "plugins" / "build.py"), flavour]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def quick_test(mutant: Mutant, work: Path, tests: list[str]) -> str:
    """What fails without sanitizers."""
    plant(mutant, work)
    plain = built(work, "plain")
    if plain is None:
        return COMPILER
    folders = {flavour: plain for flavour in ("plain", "address", "thread")}
    return run_tests(tests, folders, "not true_size and not thread_races")


def fate(mutant: Mutant, work: Path) -> dict[str, str]:
    """How it was found: {"found by": test, "with": plain or sanitizers}; or {"found by": ""}."""
    if test := quick_test(mutant, work, TESTS[mutant.file]):
        return {"found by": test, "with": "" if test == COMPILER else "plain"}
    folders = {flavour: built(work, flavour) or "" for flavour in ("plain", "address", "thread")}
    test = run_tests(TESTS[mutant.file], folders, "test")
    return {"found by": test, "with": "sanitizers" if test else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--random", type=int, default=60, help="how many indices and bounds to change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    # With the time of now: a source restored with its old time would leave the last mutant's library in place.
    shutil.copytree(ROOT / "plugins", work / "plugins", dirs_exist_ok=True, copy_function=shutil.copy)
    (work / "tests" / "plugins").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests" / "plugins" / "faults.cu", work / "tests" / "plugins")

    print("The kernels as they are: all tests must pass", flush=True)
    names = sorted({name for names in TESTS.values() for name in names})
    if test := quick_test(Mutant("none", "", 0, "", ""), work, names):
        sys.exit(f"{test} fails without a change; mend that first")

    done = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    known = {tuple(row[key] for key in ("kind", "file", "line", "before", "after")) for row in done}
    todo = mutants(arguments.random, arguments.seed)
    for number, mutant in enumerate(todo, 1):
        if tuple(asdict(mutant).values()) in known:
            continue
        row = {**asdict(mutant), **fate(mutant, work)}
        done.append(row)
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in done)
        arguments.output.write_text(f"[\n{lines}\n]\n")
        found = row["found by"] or "LIVES"
        print(f"{number}/{len(todo)} {mutant.file}:{mutant.line} {mutant.after!r}: {found}", flush=True)
    tried = [row for row in done if row["found by"] != COMPILER]
    lives = [row for row in tried if not row["found by"]]
    print(f"{len(tried)} mutants, {len(lives)} of them not found: {arguments.output}")


if __name__ == "__main__":
    main()
