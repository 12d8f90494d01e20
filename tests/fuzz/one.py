"""Fuzz one harness in this process: `python -m tests.fuzz.one HARNESS FOLDER [option of libFuzzer]…`.

FOLDER gets `corpus/`, `findings/` (an input each, named after what it raised) and libFuzzer's own
artifacts: what hung, what took the memory, what killed the process.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

MEMORY = Path("/dev/shm")


def main(name: str, folder: Path, options: list[str]) -> None:
    corpus, findings = folder / "corpus", folder / "findings"
    work = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    inside = work / "inside"
    for made in (corpus, findings, inside):
        made.mkdir(parents=True, exist_ok=True)
    os.environ["ERNIE_EXPORT_CACHE"] = str(work / "cache")
    with atheris.instrument_imports(include=["ernie_export", "jinja2", "tomllib"]):
        from tests.fuzz import harness as harnesses
        from tests.fuzz.json_mutation import mutate

        harness = harnesses.load(name)
        # Much is imported only when it is called; and what is computed once is not the first input's work.
        for data in harness.seeds():
            harnesses.run(harness, data, inside)
    for data in [*harness.seeds(), *(path.read_bytes() for path in harnesses.regressions(name))]:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    (folder / "tokens").write_text("".join(f'"{_escaped(token)}"\n' for token in harness.TOKENS))

    def one(data: bytes) -> None:
        try:
            harnesses.run(harness, data, inside)
        except BaseException as error:  # Rust's panics are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            _keep(findings, data, error)

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        source = random.Random(seed)
        changed = mutate(data, source, longest) if source.random() < 0.7 else None
        return atheris.Mutate(data, longest) if changed is None else changed

    arguments = [
        sys.argv[0],
        f"-dict={folder / 'tokens'}",
        f"-artifact_prefix={folder}/",
        *options,
        str(corpus),
    ]
    try:
        atheris.Setup(arguments, one, **({"custom_mutator": mutated} if harness.JSON else {}))
        atheris.Fuzz()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _keep(findings: Path, data: bytes, error: BaseException) -> None:
    """One input for each place that raises."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/ernie_export/" in frame.filename] or list(frames)
    where = f"{Path(ours[-1].filename).stem}-{ours[-1].lineno}"
    path = findings / f"{type(error).__name__}-{where}"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(
            "".join(traceback.format_exception(error))[-6000:], "utf-8", "replace"
        )


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
