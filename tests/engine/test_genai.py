"""onnxruntime-genai, the real package, runs a bundle's files as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine.genai import FILE, genai_config
from ernie_export.generate.tokenizer import TextTokenizer
from ernie_export.reference.transformers_model import Reference

TOKENS = 64


@pytest.mark.parametrize("share", [True, False], ids=["shared cache", "growing cache"])
def test_greedy_equals_transformers(bundle: Callable[[str], Path], nano: Path, share: bool) -> None:
    import onnxruntime_genai as genai

    prompt = TextTokenizer.read(nano).encode("The function returns a list")
    model = genai.Model(str(bundle("fp32")))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(
        max_length=len(prompt) + TOKENS, do_sample=False, past_present_share_buffer=share
    )
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    got = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
    wanted = Reference.open(nano).greedy(prompt, TOKENS)
    ends = [place for place, token in enumerate(wanted) if token == 2]
    assert got == wanted[: ends[0] + 1 if ends else TOKENS]


def test_its_tokenizer_reads_ours(bundle: Callable[[str], Path], nano: Path) -> None:
    import onnxruntime_genai as genai

    text = "def f(x):\n    return x + 1  # 42"
    tokenizer = genai.Tokenizer(genai.Model(str(bundle("int4"))))
    assert list(tokenizer.encode(text)) == TextTokenizer.read(nano).encode(text)


@pytest.mark.parametrize(
    ("runtime", "provider"),
    [("onnxruntime-cuda", {"cuda": {"use_tf32": "0"}}), ("onnxruntime-rtx", {"NvTensorRtRtx": {}})],
)
def test_it_is_told_what_a_bundle_runs_on(
    bundle: Callable[[str], Path], nano: Path, tmp_path: Path, runtime: str, provider: dict[str, Any]
) -> None:
    """The package that is here has the CPU alone: it knows the name, and asks for its library for NVIDIA's GPUs."""
    import onnxruntime_genai as genai

    folder = shutil.copytree(bundle("fp32"), tmp_path / "bundle")
    config = genai_config(ErnieConfig.read(nano), "model.onnx", 64, runtime)
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [provider]
    (folder / FILE).write_text(json.dumps(config))
    with pytest.raises(Exception, match="Cuda interface not available"):
        genai.Model(str(folder))
