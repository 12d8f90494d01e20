"""The command line from end to end, as a script would use it: real processes, the embedded checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ernie_export.bundle.manifest import Manifest
from ernie_export.reference.transformers_model import Reference

BuiltBundle = Callable[[str], Path]
ROOT = Path(__file__).parent.parent


def run(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ernie_export", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, check=False)


def test_build_validate_verify_generate(tmp_path: Path, nano: Path) -> None:
    output = tmp_path / "bundle"
    built = run("build", "--target", "cpu", "--output", output, "--json")
    assert built.returncode == 0, built.stderr
    said = json.loads(built.stdout)
    assert (said["bundle"], said["verdict"], said["reused"]) == (str(output), "passed", False)
    assert Path(said["report"]).is_file() and said["sample"].startswith("The Python interpreter")
    assert built.stderr == ""

    validated = run("validate", output, "--against", nano, "--json")
    assert validated.returncode == 0, validated.stderr
    report = json.loads(validated.stdout)
    assert report["verdict"] == "passed" and report["fault"] is None
    assert report["checkpoint"]["fingerprint"] == Manifest.read(output).checkpoint.fingerprint

    assert run("verify", output).returncode == 0
    layer = output / "weights" / "layer-004.bin"
    data = bytearray(layer.read_bytes())
    data[100_000] ^= 1
    layer.write_bytes(data)
    verified = run("verify", output)
    assert verified.returncode == 1 and "weights/layer-004.bin" in verified.stdout


def test_generate_is_what_transformers_says(bundle: BuiltBundle, nano: Path) -> None:
    prompt = [1, 50, 60, 70, 80]
    ran = run(
        "generate", bundle("fp32"), "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens", 24, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["prompt_ids"] == prompt
    wanted = Reference.open(nano).greedy(prompt, 24)
    stop = next((place for place, token in enumerate(wanted) if token in (2, 4)), 23)
    assert said["token_ids"] == wanted[: stop + 1]


def test_sampling_depends_on_the_seed_alone(bundle: BuiltBundle) -> None:
    def texts(seed: int, *prompts: str) -> list[str]:
        asked = [word for prompt in prompts for word in ("--prompt", prompt)]
        ran = run(
            "generate",
            bundle("fp32"),
            *asked,
            "--temperature",
            1.0,
            "--seed",
            seed,
            "--max-tokens",
            16,
            "--json",
        )
        assert ran.returncode == 0, ran.stderr
        said = json.loads(ran.stdout)
        return [row["text"] for row in said.get("results", [said])]

    alone = texts(3, "The list")
    assert texts(3, "The list") == alone
    assert texts(3, "The list", "import os")[0] == alone[0]
    assert texts(4, "The list") != alone


def test_chat_answers_and_ends(bundle: BuiltBundle) -> None:
    ran = run("chat", bundle("int4"), stdin="What is a list?\nWhat is deque?\n/exit\n")
    assert ran.returncode == 0, ran.stderr
    answers = [line for line in ran.stdout.splitlines() if line.strip()]
    assert len(answers) >= 2 and "<|" not in ran.stdout


def test_wheel_holds_everything_and_works_alone(tmp_path: Path) -> None:
    """Recipes, targets, the embedded checkpoint and the held-out text are inside: the repository is not needed."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            ROOT,
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        files = [each for each in archive.infolist() if "/engine/plugins/" not in each.filename]
        assert sum(each.compress_size for each in files) < 25e6
        archive.extractall(site)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import ernie_export\nfrom pathlib import Path\n"
        f"assert Path(ernie_export.__file__).is_relative_to({str(site)!r}), ernie_export.__file__\n"
        "from ernie_export.cli import main\nmain()\n"
    )
    for arguments in (["recipes"], ["targets"], ["inspect", "--json"]):
        ran = subprocess.run(
            [sys.executable, "-I", "-c", script, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["name"] == "ernie-nano"
    assert (site / "ernie_export" / "validate" / "heldout.txt").stat().st_size > 100_000


def test_held_out_text_is_english_that_nano_predicts(nano: Path) -> None:
    """The embedded model has learnt something: far better than a trigram (training.json)."""
    from ernie_export.generate.tokenizer import TextTokenizer
    from ernie_export.validate.sample import Sample, text_windows

    record = json.loads((ROOT / "benchmarks" / "ernie_nano" / "training.json").read_text())
    windows = text_windows(Sample(windows=4), TextTokenizer.read(nano).encode).ids
    reference = Reference.open(nano)
    losses, chosen = [], np.zeros((5, 16))
    unbiased = 0.0
    for ids in windows:
        output = reference.run(ids[None])
        logits = output.logits[0].astype(np.float64)
        likely = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        losses.append(-np.take_along_axis(likely[:-1], ids[1:, None], axis=1).mean())
        for row, layer in enumerate(reference.moe_layers):
            chosen[row] += np.bincount(output.indices[layer].ravel(), minlength=16)
            router = reference._model.model.layers[layer].mlp.gate
            bias = router.moe_statics.e_score_correction_bias.detach().numpy()[0]
            without = np.argsort(bias - output.choice[layer][0], axis=1)[:, :4]
            same = (without[:, :, None] == output.indices[layer][0][:, None, :]).any(axis=2)
            unbiased += 1 - same.mean()
    assert np.exp(np.mean(losses)) < 0.6 * record["trigram_perplexity"]
    assert (chosen / chosen.mean(axis=1, keepdims=True)).min() > 0.2  # no expert is dead
    assert unbiased / (5 * len(windows)) > 0.05  # leaving the bias out changes at least 5 % of the choices
