"""Are the kernels' tests able to fail?  Changes one thing in a kernel, and looks whether a test does.

    python benchmarks/kernel_mutants.py [--random 100] [--seed 1] [--share 1/2] [--most 10] [--sanitizers]

Every __syncthreads and __syncwarp is left out, every wait count raised, every commit left out, every shuffle
given another mask or another lane; and indices and bounds drawn at random are changed.  A mutant runs without
sanitizers, which is quick, first the tests that see most of its file, then all that run it; with --sanitizers
those that live are built with each sanitizer and run again.  Results stand in
benchmarks/results/kernel_mutants.json, known by their text, so that a run goes on where another was, or where
lines have moved; a draw stands as long as its line does.  --share 1/2 and 2/2 run beside one another, each with a
--work of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.doc_table import markdown, with_table  # noqa: E402

DOC = ROOT / "docs" / "kernels.md"
RESULT = ROOT / "benchmarks" / "results" / "kernel_mutants.json"
#: A source of kernels, the tests that run it, and which of them see most of it.
TESTS = {
    "routing.cu": ("test_routing.py", "test"),
    "linear_decode.cu": ("test_linear.py", "test_as_float64"),
    "linear_prefill.cu": ("test_linear.py", "prefill_as_float64"),
    "experts_decode.cu": ("test_experts.py", "test_as_float64 or only_chosen"),
    "experts_prefill.cu": ("test_experts.py", "prefill"),
    "prefill_tile.h": ("test_linear.py", "prefill"),
    "attention_append.cu": ("test_attention.py", "test_as_float64 or 8_bits"),
    "attention_decode.cu": ("test_attention.py", "test_as_float64"),
    "attention_prefill.cu": ("test_attention.py", "test_as_float64"),
    "attention_cache.h": ("test_attention.py", "test_as_float64"),
    "attention_rows.h": ("test_attention.py", "test_as_float64"),
    "row_tile.h": ("test_linear.py", "test_as_float64"),
    "codes.h": ("test_linear.py", "every_code"),
}
COMPILER = "the compiler"
#: What "with" means: the tests of `make test-plugins`, on which libraries.
COMMANDS = {
    "plain": "pytest tests/plugins, the library without sanitizers in place of each: what a test compares is wrong, "
    "or the emulation ends it",
    "sanitizers": "pytest tests/plugins, on the libraries that `make test-plugins` builds",
}
#: How many indices and bounds are drawn.
RANDOMS = 91
#: What orders threads: pattern and its changes.  Each is tried at each place.
ORDERING = {
    "barrier": [(r"__syncthreads\(\);", ";"), (r"__syncwarp\(\);", ";")],
    "wait": [
        (r"copy_wait<Ring::depth - 1>", "copy_wait<Ring::depth>"),
        (r"copy_wait<Share::depth - 2>", "copy_wait<Share::depth - 1>"),
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
        (r"(__shfl_sync\(all_lanes, \w+), source\)", r"\1, 0)"),
        (r"(__shfl_sync\(all_lanes, \w+), 31\)", r"\1, 30)"),
        (r"(__shfl_up_sync\(all_lanes, \w+), step\)", r"\1, 1)"),
        (r"int step = 1; step < 32;", "int step = 1; step < 16;"),
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
    r"^\s*(//|#|using |static_assert|template|return problem|return \"|if \(c\.)|problem\(|LAUNCH|launch|dim3"
    r"|_\w+\(c\.|\(c\.\w+\)"
)


#: How what the host runs starts; kernels come before it.
HOST = ("Problem ", "std::int64_t choices_of(", "cudaError_t ", "}  // namespace")


@dataclass(frozen=True)
class Mutant:
    kind: str
    file: str
    line: int
    before: str
    after: str


def changes(kind: str, file: str, patterns: list[tuple[str, str]]) -> Iterator[Mutant]:
    for number, line in enumerate((ROOT / "plugins" / "kernels" / file).read_text().splitlines(), 1):
        if line.startswith(HOST):
            return
        if NOT_KERNEL.search(line):
            continue
        code = line.partition("//")[0]
        for pattern, replacement in patterns:
            for match in re.finditer(pattern, code):
                after = code[: match.start()] + match.expand(replacement) + code[match.end() :]
                if after != code:
                    yield Mutant(kind, file, number, line.strip(), after.strip())


def mutants(randoms: int, seed: int, rows: list[dict[str, Any]]) -> list[Mutant]:
    """All that change the order of threads, and of the others `randoms`: those in `rows` first."""
    ordering = [
        mutant
        for kind, patterns in ORDERING.items()
        for file in TESTS
        for mutant in changes(kind, file, patterns)
    ]
    known = set(numbered([Mutant(*(row[part] for part in FIELDS)) for row in rows]).values())
    numbers = numbered(list({m for file in TESTS for m in changes("index or bound", file, RANDOM)}))

    def place(mutant: Mutant) -> tuple[bool, str]:
        number = numbers[mutant]
        return number not in known, hashlib.sha256(f"{seed} {number}".encode()).hexdigest()

    return list(dict.fromkeys([*ordering, *sorted(numbers, key=place)[:randoms]]))


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


def run_tests(files: list[str], folders: dict[str, Path], select: str) -> str:
    """What failed, or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for flavour in ("plain", "address", "thread"):
        environment[f"ERNIE_KERNELS_{flavour.upper()}"] = str(folders.get(flavour, folders["plain"]))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-k", select, *(f"tests/plugins/{name}" for name in files)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else done.stdout[-500:]


def built(work: Path, flavour: str) -> Path | None:
    folder = work / "build" / "plugins" / flavour
    command = ["ninja", "-C", str(folder)]
    if not (folder / "build.ninja").exists():
        command = [sys.executable, str(work / "plugins" / "build.py"), flavour]
    done = subprocess.run(command, capture_output=True, text=True)
    return folder if done.returncode == 0 else None


def fate(mutant: Mutant, work: Path, sanitizers: bool) -> dict[str, str]:
    """How it was found: {"found by": test, "with": plain or sanitizers}; "" if by none of what was tried."""
    plant(mutant, work)
    file, first = TESTS[mutant.file]
    plain = built(work, "plain")
    if plain is None:
        return {"found by": COMPILER, "with": ""}
    folders = {"plain": plain}
    also = (
        [file] if file == "test_experts.py" or not mutant.file.endswith(".h") else [file, "test_experts.py"]
    )
    if not sanitizers:
        quick = "not true_size and not thread_races"
        test = run_tests([file], folders, f"({first}) and {quick}") or run_tests(also, folders, quick)
        return {"found by": test, "with": "plain"}
    for flavour in ("address", "thread"):
        folders[flavour] = built(work, flavour) or plain
    return {"found by": run_tests(also, folders, "not true_size"), "with": "sanitizers"}


def stored(path: Path) -> list[dict[str, Any]]:
    """A row a mutant: its FIELDS, "found by" (a test, or nothing) and "with" (of COMMANDS), and of those that live
    "why"."""
    return json.loads(path.read_text())["mutants"] if path.exists() else []  # type: ignore[no-any-return]


class Results:
    """Rows in a file that several may add to; a mutant is known by its text and by which of its kind it is."""

    def __init__(self, path: Path, todo: list[Mutant]) -> None:
        self.path, self.numbers = path, numbered(todo)
        self.lock = ROOT / "build" / "kernel_mutants.lock"
        self.lock.parent.mkdir(exist_ok=True)

    def change(
        self, mutant: Mutant | None = None, row: dict[str, Any] | None = None
    ) -> dict[Mutant, dict[str, Any]]:
        """→ what is known; with a mutant its row is written."""
        with self.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = stored(self.path)
            old = numbered([Mutant(*(row[part] for part in FIELDS)) for row in rows])
            by_number = {number: rows[i] for i, number in enumerate(old.values())} if rows else {}
            known = {m: by_number[n] for m, n in self.numbers.items() if n in by_number}
            if mutant is not None:
                known[mutant] = row or {}
                current = [{**known[m], **asdict(m)} for m in self.numbers if m in known]
                text = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in current)
                commands = json.dumps(COMMANDS, indent=4, ensure_ascii=False)[:-1] + "  }"
                self.path.write_text(f'{{\n  "commands": {commands},\n  "mutants": [\n{text}\n  ]\n}}\n')
        return known


FIELDS = ("kind", "file", "line", "before", "after")


def numbered(mutants: list[Mutant]) -> dict[Mutant, tuple[Any, ...]]:
    """Each with its text and the how-manyth of that text it is, in the order of lines."""
    seen: Counter[tuple[str, ...]] = Counter()
    numbers: dict[Mutant, tuple[Any, ...]] = {}
    for m in sorted(mutants, key=lambda m: (m.file, m.line)):
        text = (m.kind, m.file, m.before, m.after)
        numbers[m] = (*text, seen[text])
        seen[text] += 1
    return numbers


def documented(document: str, rows: list[dict[str, Any]]) -> str:
    """The document with what was tried of each file, and what lives."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        kind = "indices" if row["kind"] == "index or bound" else "order"
        fate = "refused" if row["found by"] == COMPILER else row["with"] if row["found by"] else "lives"
        for file in (row["file"], "all"):
            counts.setdefault(file, Counter())[f"{kind}: {fate}"] += 1
    columns = [f"{kind}: {fate}" for kind in ("order", "indices") for fate in (*COMMANDS, "lives")]
    order = [file for file in TESTS if file in counts] + ["all"]
    table = markdown(
        ["file", *columns], [[f"`{f}`" if f != "all" else f, *(counts[f][c] for c in columns)] for f in order]
    )
    lives = [
        [f"`{r['file']}`", f"`{r['before']}`", f"`{r['after']}`", r.get("why", "")]
        for r in rows
        if not r["found by"]
    ]
    why = markdown(["file", "before", "after", "why it lives"], lives)
    return with_table(document, "kernel_mutants.py", f"{table}\n\n{why}")


def check_unchanged(work: Path) -> None:
    """The kernels as they are pass all tests; said once for these sources."""
    files = sorted({file for file, _ in TESTS.values()})
    paths = [
        *(ROOT / "plugins" / "kernels").iterdir(),
        *(ROOT / "tests" / "plugins" / file for file in files),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()
    passed = work / "passed"
    plant(Mutant("none", "", 0, "", ""), work)
    if passed.exists() and passed.read_text() == digest:
        return
    print("The kernels as they are: all tests must pass", flush=True)
    folder = built(work, "plain")
    if folder is None or (test := run_tests(files, {"plain": folder}, "not true_size and not thread_races")):
        sys.exit(f"{test if folder else 'the build'} fails without a change; mend that first")
    passed.write_text(digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--random", type=int, default=RANDOMS, help="how many indices and bounds to change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", default="1/1", help="which of how many runs this is")
    parser.add_argument("--most", type=int, default=10**6, help="how many to try now")
    parser.add_argument("--sanitizers", action="store_true", help="try those again that lived without")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if not work.exists():
        (work / "tests" / "plugins").mkdir(parents=True)
        shutil.copytree(ROOT / "plugins", work / "plugins", copy_function=shutil.copy)
        shutil.copy(ROOT / "tests" / "plugins" / "faults.cu", work / "tests" / "plugins")

    check_unchanged(work)
    todo = mutants(arguments.random, arguments.seed, stored(arguments.output))
    results = Results(arguments.output, todo)
    known = results.change()
    lived = {m for m, row in known.items() if not row["found by"] and row["with"] != "sanitizers"}
    part, parts = map(int, arguments.share.split("/"))
    mine = todo[part - 1 :: parts]
    open_ones = [m for m in mine if (m in lived if arguments.sanitizers else m not in known)]
    for number, mutant in enumerate(open_ones[: arguments.most], 1):
        row = fate(mutant, work, arguments.sanitizers)
        known = results.change(mutant, row)
        found = row["found by"] or "LIVES"
        print(f"{number}: {mutant.file}:{mutant.line} {mutant.after!r}: {found}", flush=True)
    if arguments.output == RESULT:
        DOC.write_text(documented(DOC.read_text(), stored(RESULT)))
    tried = [row for row in known.values() if row["found by"] != COMPILER]
    lives = [row for row in tried if not row["found by"]]
    print(
        f"{len(known)} of {len(todo)} known; {len(tried)} compile, {len(lives)} not found: {arguments.output}"
    )


if __name__ == "__main__":
    main()
