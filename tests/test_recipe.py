from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.errors import UserError
from ernie_export.recipe import PARTS, Calibration, Gate, LayerParts, PartFormat, Parts, Recipe

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
FORMATS = st.builds(PartFormat, format=st.sampled_from(["fp32", "fp16", "fp8", "nvfp4"])) | st.builds(
    PartFormat, format=st.sampled_from(["int8", "int4"]), block_size=st.sampled_from([32, 64, 128])
)
GATES = (
    st.builds(Gate, min=FLOATS)
    | st.builds(Gate, max=FLOATS)
    | st.lists(FLOATS, min_size=2, max_size=2).map(lambda ends: Gate(min=min(ends), max=max(ends)))
)
IN_LAYERS = st.fixed_dictionaries({}, optional=dict.fromkeys(LayerParts.model_fields, FORMATS)).filter(bool)
LAYERS = st.lists(st.integers(0, 60), unique=True, max_size=8).flatmap(
    # Each two neighbours are the ends of a range, so no layer is in two of them; one left over stands alone.
    lambda ends: st.fixed_dictionaries(
        {
            f"{pair[0]}-{pair[-1]}" if len(pair) == 2 else f"{pair[0]}": IN_LAYERS.map(
                lambda forms: LayerParts(**forms)
            )
            for pair in (sorted(ends)[at : at + 2] for at in range(0, len(ends), 2))
        }
    )
)
TEXT = st.text(st.characters(codec="utf-8"))
CALIBRATIONS = st.builds(
    lambda window, windows, least: Calibration(
        method="gptq", tokens=window * windows, window=window, least_tokens=least
    ),
    st.integers(64, 512), st.integers(1, 64), st.integers(1, 1000),
)  # fmt: skip
PARTS_OF_RECIPES = st.builds(Parts, **dict.fromkeys(PARTS, FORMATS), layers=LAYERS)
ATTENTION_IN_BITS = PARTS_OF_RECIPES.map(
    lambda parts: parts.model_copy(update={"attention": PartFormat(format="int8", block_size=32)})
)
RECIPES = st.one_of(
    *(
        st.builds(
            Recipe,
            name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
            description=TEXT,
            context=st.none() | st.integers(2, 2**20),
            batch=st.integers(1, 1024),
            parts=parts,
            calibration=calibration,
            gates=st.dictionaries(TEXT, GATES, max_size=5),
        )
        for parts, calibration in ((PARTS_OF_RECIPES, st.none()), (ATTENTION_IN_BITS, CALIBRATIONS))
    )
)


INT8 = '{ format = "int8", block_size = 32 }'


@pytest.fixture
def written(tmp_path: Path):
    """Writes the int4 recipe with something replaced, and gives its path."""

    def write(old: str, new: str) -> Path:
        text = Recipe.find("int4").to_toml()
        assert old in text
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(old, new, 1), "utf-8")
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Recipe.find(str(path))
    return str(caught.value)


def test_the_recipes_that_come_along() -> None:
    assert Recipe.names() == [
        "fp32",
        "fp16",
        "int8",
        "fp8",
        "nvfp4",
        "int4",
        "int4-gptq",
        "int4-small",
        "int4-small-gptq",
    ]
    for name in Recipe.names():
        recipe = Recipe.find(name)
        assert recipe.name == name
        assert recipe.parts.experts.format == name.partition("-")[0]
        assert bool(recipe.calibration) == name.endswith("-gptq")
        assert recipe.gates and recipe.description


def test_tied_parts_of_the_default_recipe_can_share_one_copy() -> None:
    assert Recipe.find("int4").parts.embedding == Recipe.find("int4").parts.head


@given(RECIPES)
def test_toml_reads_back_to_the_same_recipe(recipe: Recipe) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_text(recipe.to_toml(), "utf-8", newline="")
        assert Recipe.read(path) == recipe
        assert Recipe.read(path).to_toml() == recipe.to_toml()


def test_a_layer_has_its_own_format_or_the_models(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    int8 = '{ format = "int8", block_size = 64 }'
    tables = f"[parts.layers.3]\nexperts = {int8}\n\n[parts.layers.5-7]\nattention = {int8}\n"
    path.write_text(Recipe.find("int4").to_toml().replace("[gates]", f"{tables}\n[gates]"))
    parts = Recipe.read(path).parts
    eight, four = PartFormat(format="int8", block_size=64), parts.experts
    assert [parts.of("experts", layer) for layer in range(2, 5)] == [four, eight, four]
    assert [layer for layer in range(10) if parts.of("attention", layer) == eight] == [5, 6, 7]
    assert parts.of("shared", 3) == parts.shared and parts.of("head") == parts.head
    assert parts.named()["experts of layer 3"] == parts.named()["attention of layers 5-7"] == eight
    assert tables in Recipe.read(path).to_toml()


def test_every_format_can_be_changed_at_once() -> None:
    eight = PartFormat(format="int8", block_size=32)
    parts = Recipe.find("int4").parts.model_copy(update={"layers": {"1-2": LayerParts(experts=eight)}})
    half = parts.mapped(lambda part, form: PartFormat(format="fp16") if part == "experts" else form)
    assert half.experts.format == half.of("experts", 1).format == "fp16"
    assert half.attention == parts.attention


def test_a_name_before_a_path_and_a_path_before_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "int4").mkdir()
    assert Recipe.find("int4").name == "int4"
    (tmp_path / "own").write_text(Recipe.find("int8").to_toml())
    assert Recipe.find("own").name == "int8"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "int44",
            "No recipe is named 'int44'. Did you mean int4? Known: fp32, fp16, int8, fp8, nvfp4, "
            "int4, int4-gptq, int4-small, int4-small-gptq. Or name a file.",
        ),
        ("", "No recipe is named ''. Known: fp32"),
        ("no/such", "There is no recipe no/such"),
        (
            "such.toml",
            "There is no recipe such.toml. Name a file, or one of: fp32, fp16, int8, fp8, nvfp4, int4, int4-gptq, "
            "int4-small, int4-small-gptq.",
        ),
    ],
)
def test_a_recipe_that_is_not_there(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(name).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch", "bacth", "bacth is no key of a recipe. Did you mean batch?"),
        (
            "experts",
            "expert",
            "parts.expert is no key of a recipe. Did you mean experts? Known: experts, attention",
        ),
        (
            "block_size",
            "blocksize",
            "parts.experts.blocksize is no key of a recipe. Did you mean block_size?",
        ),
        ("{ max", "{ maximum", 'gates."logits.kl_mean".maximum is no key of a recipe. Did you mean'),
        ('"int4", block', '"itn4", block', "parts.experts.format cannot be 'itn4'. Did you mean int4?"),
        ("block_size = 128", "block_size = 100", "parts.experts.block_size cannot be 100. "),
        (", block_size = 128", "", "parts.experts: int4 needs a block_size: 32, 64 or 128"),
        ('"int4", block', '"fp16", block', "parts.experts: fp16 has no block_size"),
        ('{ format = "int4", block_size = 128 }', '"int4"', "parts.experts is 'int4'. Write a table"),
        ("batch = 4", 'batch = "4"', "batch is '4'"),
        ("batch = 4", "batch = true", "batch is True"),
        ("batch = 4", "batch = 0", "batch is 0"),
        ("batch = 4", "context = 1", "context is 1"),
        ("max = 0.02", "max = nan", 'gates."logits.kl_mean".max is nan'),
        ("{ max = 0.02 }", "{ }", "a gate needs a min, a max or both"),
        ("{ max = 0.02 }", "{ max = 1, min = 2 }", "no number is at least min and at most max"),
        ('name = "int4"', 'name = "../up"', "name is '../up'"),
        ("experts", "# experts", "parts.experts is missing. Add it."),
        ("batch = 4", "batch = ", "is not TOML"),
        ("batch = 4", 'bits = "auto"', 'bits = "auto" and a budget go together: give both or none'),
        ("batch = 4", 'budget = "8 GB"', 'bits = "auto" and a budget go together: give both or none'),
        ("batch = 4", "bits = 4", "bits cannot be 4. Known: auto."),
        (
            "[gates]",
            "[parts.layers.x]\n[gates]",
            "parts.layers.x names no layer. Write a layer, `3`, or a range",
        ),
        (
            "[gates]",
            "[parts.layers.3]\n[gates]",
            "parts.layers.3: it names no part: experts, attention, shared",
        ),
        ("[gates]", "[parts.layers]\n3 = 5\n[gates]", "parts.layers.3 is 5. Write a table"),
        (
            "[gates]",
            f"[parts.layers.3]\nhead = {INT8}\n[gates]",
            "parts.layers.3.head is no key of a recipe.",
        ),
        (
            "[gates]",
            f"[parts.layers.7-3]\nshared = {INT8}\n[gates]",
            "layers.7-3 is no range: it ends before",
        ),
        (
            "[gates]",
            f"[parts.layers.1-3]\nshared = {INT8}\n[parts.layers.3]\nshared = {INT8}\n[gates]",
            "layers.1-3 and layers.3 both say shared of 3",
        ),
    ],
)
def test_a_mistake_is_named_by_its_path(written, old: str, new: str, message: str) -> None:
    path = written(old, new)
    text = refusal(path)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


def test_what_is_no_text_file(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes('name = "é"'.encode("latin-1"))
    assert "is not UTF-8 (byte 8)" in refusal(tmp_path / "latin.toml")
