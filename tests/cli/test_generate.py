from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_export.cli.outputs import BatchOutput, GenerateOutput
from ernie_export.generate.generator import generate
from ernie_export.generate.sampling import Sampling
from ernie_export.generate.tokenizer import TextTokenizer
from tests.cli.pseudo_terminal import in_a_terminal
from tests.generate.recurrent_engine import RecurrentEngine


def expected(bundle: Path, prompt: str, max_tokens: int, sampling: Sampling | None = None) -> GenerateOutput:
    tokenizer = TextTokenizer.read(bundle)
    engine = RecurrentEngine(320, max_context=512)
    (result,) = generate(
        engine, [tokenizer.encode(prompt)], max_tokens, sampling or Sampling(), tokenizer.stop_ids
    )
    return GenerateOutput(
        prompt_ids=result.prompt_ids,
        token_ids=result.token_ids,
        text=tokenizer.decode(result.answer_ids),
        finish_reason=result.finish_reason,
    )


def test_json_of_one_prompt(run, small_bundle: Path) -> None:
    ran = run("generate", small_bundle, "--prompt", "A list", "--max-tokens", "9", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert GenerateOutput.model_validate_json(ran.out) == expected(small_bundle, "A list", 9)
    assert {"prompt_ids", "token_ids", "text"} <= json.loads(ran.out).keys()


def test_several_prompts_are_a_batch(run, small_bundle: Path) -> None:
    ran = run(
        "generate", small_bundle, "--prompt", "A list", "--prompt", "Why?", "--max-tokens", "9", "--json"
    )
    assert BatchOutput.model_validate_json(ran.out).results == [
        expected(small_bundle, "A list", 9),
        expected(small_bundle, "Why?", 9),
    ]


def test_token_ids_in_place_of_text(run, small_bundle: Path) -> None:
    ids = TextTokenizer.read(small_bundle).encode("A list")
    ran = run(
        "generate", small_bundle, "--prompt-ids", ",".join(map(str, ids)), "--max-tokens", "9", "--json"
    )
    assert GenerateOutput.model_validate_json(ran.out) == expected(small_bundle, "A list", 9)


def test_sampling_options(run, small_bundle: Path) -> None:
    options = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.9", "--seed", "3", "--max-tokens", "9"]
    ran = run("generate", small_bundle, "--prompt", "A list", *options, "--json")
    sampled = expected(small_bundle, "A list", 9, Sampling(1.5, 40, 0.9, 3))
    assert GenerateOutput.model_validate_json(ran.out) == sampled != expected(small_bundle, "A list", 9)


def test_text_alone_goes_to_stdout(run, small_bundle: Path) -> None:
    ran = run("generate", small_bundle, "--prompt", "A list", "--max-tokens", "9")
    assert ran == (0, expected(small_bundle, "A list", 9).text + "\n", "")


def test_the_text_of_several_prompts_has_titles(run, small_bundle: Path) -> None:
    ran = run("generate", small_bundle, "--prompt", "[A]", "--prompt", "Why?", "--max-tokens", "9")
    first, second = (expected(small_bundle, prompt, 9).text for prompt in ("[A]", "Why?"))
    assert ran.out == f"› [A]\n{first}\n› Why?\n{second}\n"


def test_a_terminal_is_told_the_speed(small_bundle: Path) -> None:
    code = f"""
from ernie_export.engine import open
from tests.generate.recurrent_engine import RecurrentEngine
open.open_engine = lambda folder: RecurrentEngine(320, max_context=512)
from ernie_export.cli import main
raise SystemExit(main(["generate", {str(small_bundle)!r}, "--prompt", "A list", "--max-tokens", "9"]))
"""
    assert " tokens, " in in_a_terminal(code).splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "There must be either --prompt or --prompt-ids"),
        (["--prompt", "x", "--prompt-ids", "1"], "There must be either --prompt or --prompt-ids"),
        (["--prompt-ids", "1,x"], "--prompt-ids '1,x' is no list of token ids. Write it as 1,2,3."),
        (["--prompt-ids", "1,999"], "Token id 999 is outside the vocabulary"),
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "x" * 600], "the context holds 512"),
        (["--prompt", "x", "--max-tokens", "0"], "0 tokens cannot be generated"),
        (["--prompt", "x", "--temperature", "-1"], "The temperature is -1.0"),
        (["--prompt", "\udcff"], "The text is not valid Unicode"),
    ],
)
def test_the_users_mistakes(run, small_bundle: Path, options: list[str], message: str) -> None:
    ran = run("generate", small_bundle, *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and message in ran.err and ran.err.count("\n") == 1


def test_a_folder_that_is_no_bundle(run, tmp_path: Path) -> None:
    ran = run("generate", tmp_path, "--prompt", "x")
    assert ran.code == 2 and "holds no engine.json" in ran.err
