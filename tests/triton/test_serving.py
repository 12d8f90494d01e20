"""Engines behind Triton's Python backend, in a Python with numpy and doubles: the configuration, and the answers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf import json_format, text_format

from ernie_export.engine.info import EngineInfo
from ernie_export.errors import UserError
from ernie_export.reference.transformers_model import Reference
from ernie_export.triton.repository import make_repository
from tests.conftest import BuiltBundle
from tests.doubles import driver
from tests.doubles import making as doubles
from tests.kit import making

SERVER = Path(__file__).parent / "backend" / "server.py"
CONTEXT = 96


class Served(NamedTuple):
    bundle: Path
    model: Path
    python: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def served(bundle: BuiltBundle, tmp_path_factory: pytest.TempPathFactory) -> Served:
    base = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        doubles.take_its_place(patch, base / "graphs")
        built = doubles.built(bundle("int4"), base / "bundle", base / "graphs")
    model = make_repository(built, base / "repository", "ernie", CONTEXT)
    path = driver.compiled(base / "driver").parent
    environment = doubles.environment(base / "graphs") | {"LD_LIBRARY_PATH": str(path)}
    environment["PYTHONPATH"] = str(doubles.prepare.SITE)
    return Served(built, model, making.bare(base / "venv", "numpy"), environment)


@pytest.fixture
def config(schema: Any, served: Served) -> Any:
    return text_format.Parse((served.model / "config.pbtxt").read_text(), schema.ModelConfig())


def ask(
    served: Served, config: Any, folder: Path, batches: list[Any], **more: str
) -> subprocess.CompletedProcess[str]:
    """With the configuration as the server gives it: protobuf's JSON."""
    said = json_format.MessageToJson(config, preserving_proto_field_name=True)
    (folder / "config.json").write_text(said)
    (folder / "requests.json").write_text(json.dumps(batches))
    files = [served.model, folder / "config.json", folder / "requests.json", folder / "answers.npz"]
    command = [str(served.python), str(SERVER), *map(str, files)]
    environment = making.environment() | served.environment | more
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_what_it_declares(schema: Any, config: Any, served: Served) -> None:
    info = EngineInfo.read(served.bundle)
    assert (config.name, config.backend, config.max_batch_size) == ("ernie", "python", doubles.BATCH)
    ((ids,), (logits,)) = config.input, config.output
    assert (ids.name, schema.DataType.Name(ids.data_type), list(ids.dims)) == (
        "input_ids",
        "TYPE_INT64",
        [-1],
    )
    assert (logits.name, schema.DataType.Name(logits.data_type)) == ("logits", "TYPE_FP32")
    assert list(logits.dims) == [1, info.vocab_size]
    kinds = {
        schema.ModelSequenceBatching.Control.Kind.Name(each.control[0].kind): each.name
        for each in config.sequence_batching.control_input
    }
    assert kinds == {
        "CONTROL_SEQUENCE_START": "START",
        "CONTROL_SEQUENCE_END": "END",
        "CONTROL_SEQUENCE_CORRID": "CORRID",
    }
    assert config.sequence_batching.oldest.max_candidate_sequences == doubles.BATCH
    (group,) = config.instance_group
    assert (schema.ModelInstanceGroup.Kind.Name(group.kind), group.count, list(group.gpus)) == (
        "KIND_GPU",
        1,
        [0],
    )
    assert (served.model / "1/bundle/weights/head.bin").samefile(served.bundle / "weights/head.bin")


def test_sequences_are_answered_as_by_the_checkpoints_own_model(
    config: Any, served: Served, nano: Path, tmp_path: Path
) -> None:
    """Two at once, a third in the place of the first; each token by the model that sees the whole sequence."""
    ids = np.random.default_rng(5).integers(3, 1536, (3, 30))
    want = Reference.open(nano).run(ids).logits
    one, two, three = ids.tolist()
    batches = [
        [[7, 1, 0, one[:17]]],
        [[7, 0, 0, one[17:18]], [8, 1, 0, two[:9]]],
        [[7, 0, 0, one[18:19]], [8, 0, 0, two[9:10]]],
        [[8, 0, 0, two[10:11]], [7, 0, 1, one[19:20]]],
        [[9, 1, 0, three[:5]]],
        [[8, 0, 0, two[11:20]], [9, 0, 0, three[5:6]]],
        [[7, 0, 0, one[20:21]], [9, 0, 0, [99999]], [8, 0, 0, []]],
        [[9, 0, 0, three[6:7]]],
    ]
    ran = ask(served, config, tmp_path, batches)
    assert ran.returncode == 0, ran.stderr
    answers = np.load(tmp_path / "answers.npz")
    for place, row, at in (
        ("0.0", 0, 16), ("1.0", 0, 17), ("1.1", 1, 8), ("2.0", 0, 18), ("2.1", 1, 9), ("3.0", 1, 10),
        ("3.1", 0, 19), ("4.0", 2, 4), ("5.0", 1, 19), ("5.1", 2, 5), ("7.0", 2, 6),
    ):  # fmt: skip
        logits = answers[place]
        assert logits.shape == (1, 1, 1536) and logits.dtype == np.float32
        gap = logits[0, 0] - want[row, at]
        assert np.sqrt((gap**2).mean()) / want[row, at].std() < 0.2  # int4's own error is 0.05 to 0.1
        assert np.corrcoef(logits[0, 0], want[row, at])[0, 1] > 0.98
    refused = [str(answers[place]) for place in ("6.0", "6.1", "6.2")]
    assert refused[0].startswith("The sequence 7 has no cache here")
    assert refused[1].startswith("token id 99999 is outside the vocabulary of 1536")
    assert refused[2].startswith("The request has no tokens")


def test_a_start_that_is_refused_changes_no_other_sequence(
    config: Any, served: Served, tmp_path: Path
) -> None:
    """Both rows are held: a third takes none of them, and one that is begun anew has not begun."""
    one, two = np.random.default_rng(5).integers(3, 1536, (2, 12)).tolist()
    begun: list[Any] = [[[7, 1, 0, one[:9]], [8, 1, 0, two[:9]]]]
    on: list[Any] = [[[7, 0, 0, one[9:10]], [8, 0, 0, two[9:10]]]]
    wrong: list[Any] = [[[9, 1, 0, tokens]] for tokens in ([99999], [], one * 9)]
    ran = ask(
        served, config, tmp_path, [*begun, *wrong, [[9, 0, 0, [5]]], *on, [[8, 1, 0, []]], [[8, 0, 0, [5]]]]
    )
    assert ran.returncode == 0, ran.stderr
    got = dict(np.load(tmp_path / "answers.npz"))
    for place, why in (
        ("1.0", "token id 99999 is outside"),
        ("2.0", "The request has no tokens"),
        ("3.0", "108 tokens do not fit into a cache of 96"),
        ("4.0", "The sequence 9 has no cache here"),
        ("6.0", "The request has no tokens"),
        ("7.0", "The sequence 8 has no cache here"),
    ):
        assert str(got[place]).startswith(why)
    assert ask(served, config, tmp_path, [*begun, *on]).returncode == 0
    want = np.load(tmp_path / "answers.npz")
    assert all(np.array_equal(got[f"5.{row}"], want[f"1.{row}"]) for row in (0, 1))


def test_an_engine_that_does_not_fit_is_told_to_the_server(
    config: Any, served: Served, tmp_path: Path
) -> None:
    ran = ask(served, config, tmp_path, [], TENSORRT_DOUBLE_VERSION="10.16.1.4")
    assert "UNAVAILABLE:" in ran.stderr and "needs TensorRT 10.16.0.72, here is 10.16.1.4" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_kit_and_too_many_sequences_are_refused(served: Served, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"9 rows at once were asked for, the engine takes at most {doubles.BATCH}"
    ):
        make_repository(served.bundle, tmp_path, "ernie", sequences=9)
    info = EngineInfo.read(served.bundle)
    assert info.requires
    without = info.model_copy(update={"requires": info.requires.model_copy(update={"engine": None})})
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit/engine.json").write_bytes(without.to_bytes())
    with pytest.raises(
        UserError, match=r"is a kit, whose engines are not built yet. Run `python3 kit.pyz build`"
    ):
        make_repository(tmp_path / "kit", tmp_path, "ernie")
    assert not (tmp_path / "ernie").exists()
