"""The road: the only file that knows the order of the stages.

    checkpoint → graph → weights → engine → validate → bundle

A build works in `.NAME.partial` beside its output (partial.py), so that a killed one goes on where it
stopped.  The finished folder is sealed by a manifest and renamed in place.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_export import lock
from ernie_export.bits import choose
from ernie_export.bundle.manifest import Manifest
from ernie_export.bundle.publish import publish
from ernie_export.bundle.write import seal
from ernie_export.calibrate.record import CalibrationRecord
from ernie_export.calibrating import calibrate, calibration_inputs, calibration_text
from ernie_export.checkpoint.checkpoint import Checkpoint
from ernie_export.checkpoint.layout import EMBEDDING, layer_of, part_of
from ernie_export.engine import found, genai, plugin_library, weight_map
from ernie_export.engine.info import EngineInfo
from ernie_export.engine.providers import ON_GPUS
from ernie_export.engine.requires import Binary, Requires, needs_of_gpu, requires_of
from ernie_export.engine.tensorrt import PHASES, engine_path
from ernie_export.engine.tensorrt_variants import VARIANTS, variant_of
from ernie_export.errors import UserError, WorkError
from ernie_export.kit import pack
from ernie_export.partial import Made, Work, digest_of, put
from ernie_export.progress import Progress, Silent
from ernie_export.recipe import PARTS, layers_of
from ernie_export.streaming import prepare, write_weights
from ernie_export.taken import require_taken
from ernie_export.validate import environment, gates
from ernie_export.validate.report import Claim, Report
from ernie_export.validate.run import graph_alone, validate
from ernie_export.validate.selfcheck import SelfCheck

if TYPE_CHECKING:
    import onnx

    from ernie_export.generate.windows import Windows
    from ernie_export.graph.lower import Lowered
    from ernie_export.graph.tensorrt_rtx import Phase
    from ernie_export.recipe import Recipe
    from ernie_export.target import Target

    Graph = Callable[[], onnx.ModelProto]

GRAPH = "model.onnx"
ENGINES = "engines"
RECIPE = "recipe.toml"
#: What a bundle takes over from the checkpoint, where it is there.
TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
SAMPLE_PROMPT = "The Python interpreter"
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class BuildResult:
    bundle: Path
    report: Path
    verdict: Literal["passed", "failed"]
    reused: bool
    report_data: Report
    sample: str | None
    kit: bool = False
    """Its engine is built on the device that it is for."""


def build(
    checkpoint_folder: Path,
    target: Target,
    recipe: Recipe,
    output: Path,
    replace: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _message: None,
    calibration: Path | None = None,
) -> BuildResult:
    """Make the bundle `output`, or find that it is there already. `tell` hears of an earlier build's work.

    `calibration` is the text for a recipe that calibrates; None: the one that comes along.

    A build whose gates fail leaves no bundle: its report is written to `NAME.report.json` beside the
    output, and the work stays for the next try.

    Raises:
        UserError: the checkpoint, the recipe or the output does not fit.
        WorkError: the machine failed, for example a full disk; the build can be resumed.
    """
    progress = progress or Silent()
    gates.require_known(recipe.gates)
    checkpoint = Checkpoint.open(checkpoint_folder)
    output = output.absolute()
    partial = output.parent / f".{output.name}.partial"
    require_replaceable(output)
    text = calibration_text(checkpoint, recipe, calibration)
    require_taken(target, recipe)
    if recipe.budget:
        recipe = choose(checkpoint_folder, target, recipe, recipe.budget, progress).recipe
        require_taken(target, recipe)
    recipe = recipe.model_copy(update={"context": context_of(checkpoint, recipe)})
    if output.exists():
        difference = unlike(output, checkpoint, recipe, target, text, progress)
        if not difference:
            shutil.rmtree(partial, ignore_errors=True)
            report = Report.read(output / Report.FILE)
            return BuildResult(
                output, output / Report.FILE, report.verdict, True, report, report.sample, target.is_kit
            )
        if not replace:
            raise UserError(
                f"{output} exists and {difference}",
                "Name another --output, or add --replace to build over it.",
            )
    require_fit(checkpoint, recipe)
    require_tokenizer(checkpoint)
    if target.runtime == "tensorrt_rtx":
        require_module(target)
    elif target.runtime == "tensorrt":
        plugin_library.of(target)
    partial.mkdir(parents=True, exist_ok=True)
    with lock.held(partial), told_when_full(partial):
        work = Work(partial, progress)
        more = calibration_inputs(recipe, text)
        prepare(work, checkpoint, recipe.parts, context_of(checkpoint, recipe), tell, **more)
        write_graph(work, checkpoint, recipe, target)
        make_weights(work, checkpoint, recipe, text)
        if target.runtime in VARIANTS:
            write_weight_map(work)
        if target.runtime == "tensorrt_rtx":
            write_engines(work, checkpoint, recipe, target)
        write_texts(work, checkpoint, recipe, target)
        work.leave_only_what_was_made()
        result = validate_and_publish(work, checkpoint, recipe, target, output, replace)
        if result.verdict == "passed":
            shutil.rmtree(partial)
        return result


@contextmanager
def told_when_full(partial: Path) -> Iterator[None]:
    """A disk that fills on the way is told in words of the build."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WorkError(
            f"the disk of {partial} is full",
            "Free some space and run the same again: it goes on at the last finished file.",
        ) from error


def require_replaceable(output: Path) -> None:
    """Refuse, before the work, to put a bundle where it would destroy something else."""
    if not os.path.lexists(output):
        return
    if output.is_symlink():
        raise UserError(f"{output} is a link", "Name the folder that it leads to, or another --output.")
    if not output.is_dir():
        raise UserError(f"{output} exists and is no folder", "Name another --output, or remove it.")
    if not (output / Manifest.FILE).exists() and any(output.iterdir()):
        raise UserError(
            f"{output} exists and is no bundle", "Name another --output: what it holds is not touched."
        )


def require_fit(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """That the recipe's layers are there, and its blocks divide the rows of the weights they are for."""
    layers = checkpoint.config.num_hidden_layers
    for key in recipe.parts.layers:
        if layers_of(key).stop > layers:
            raise UserError(
                f"the recipe says something of layers {key}, the checkpoint has layers 0 to {layers - 1}",
                f"Correct `parts.layers.{key}` in the recipe.",
            )
    for name, info in checkpoint.tensors.items():
        tied = name == EMBEDDING and checkpoint.config.tie_word_embeddings
        for part in (part_of(name), *(["head"] if tied else [])):
            block = recipe.parts.of(part, layer_of(name)).block_size if part in PARTS else None
            if block and info.shape[-1] % block:
                raise UserError(
                    f"{name} has rows of {info.shape[-1]} weights, which blocks of {block} do not divide",
                    f"Give the part `{part}` another block_size in the recipe, or the format fp16.",
                )


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Find before the work what would make the finished engine useless."""
    from ernie_export.generate.tokenizer import TextTokenizer

    TextTokenizer.read(checkpoint.path).require_fit(checkpoint.config.vocab_size)


def unlike(
    output: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: Target,
    text: Windows | None,
    progress: Progress,
) -> str:
    """In what the bundle that stands there is not this build; empty if it is. Sizes are checked, bytes are not."""
    try:
        manifest = Manifest.read(output)
        its_recipe = (output / RECIPE).read_bytes()
        sizes = {name: (output / name).stat().st_size for name in manifest.files}
        record = CalibrationRecord.read(output)
    except (UserError, OSError):
        return "is no whole bundle"
    if manifest.target != target.name:
        return f"is for the target {manifest.target}"
    if its_recipe != recipe.to_toml().encode():
        return "was made by another recipe"
    if (record and record.sha256) != (text and text.sha256):
        return "was calibrated on another text"
    if any(sizes[name] != entry.size for name, entry in manifest.files.items()):
        return "is damaged"
    if SelfCheck.FILE not in manifest.files:
        return "holds no self-check"
    now = environment.software()
    changed = [name for name in manifest.software | now if manifest.software.get(name) != now.get(name)]
    if changed:
        return f"was made by another version of {changed[0]} ({manifest.software.get(changed[0])})"
    if manifest.checkpoint.fingerprint != checkpoint.fingerprint(progress):
        return "was made from another checkpoint"
    return ""


def context_of(checkpoint: Checkpoint, recipe: Recipe) -> int:
    promised = checkpoint.config.max_position_embeddings
    if recipe.context and recipe.context > promised:
        raise UserError(
            f"the recipe asks for a context of {recipe.context}, the checkpoint promises {promised}",
            f"Set `context` in the recipe to at most {promised}.",
        )
    return recipe.context or promised


def write_graph(work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target) -> None:
    config, context = checkpoint.config, context_of(checkpoint, recipe)

    def writer(beside: Path) -> Made:
        from ernie_export.graph import onnxruntime, trace, write

        with work.progress.step("Trace the graph"):
            model = trace.trace(config, recipe.parts, context)
            files = write.weight_files(model)
            proto = write.assemble(model, files, target.bodies, onnxruntime.SHIPPED_ACCURACY_LEVEL)
            return put(beside, write.serialize(proto))

    made_from = {
        "config": digest_of(config.model_dump(mode="json")),
        "recipe": digest_of(recipe.parts.model_dump(mode="json"), context),
        "target": target.bodies,
    }
    work.make(GRAPH, made_from, writer)


def write_engines(work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target) -> None:
    """An engine for prompts and one for decode; weights are inputs of both."""
    from importlib.metadata import version

    from ernie_export.engine import tensorrt_build

    (work.folder / ENGINES).mkdir(exist_ok=True)
    sms = [target.sm] if target.sm else []
    for phase, form, graph in lowered(work, checkpoint, recipe, target):
        layers = work.folder / f"{ENGINES}/{phase}.layers.txt"

        def writer(beside: Path, form: Lowered = form, graph: Graph = graph, layers: Path = layers) -> Made:
            with work.progress.step(f"Build the engine for {form.phase}") as step:
                model = graph()
                profile = tensorrt_build.profile_of(model, form.batch, form.cache_length)
                tensorrt_build.build(
                    model.SerializeToString(), profile, beside, layers, target.runtime, step,
                    compute_capabilities=sms,
                )  # fmt: skip
            return put(beside, beside.read_bytes())

        made_from = {
            "graph": work.digests[GRAPH],
            "form": digest_of(asdict(form), target.sm),
            "runtime": version("tensorrt-rtx-cu13"),
        }
        work.make(engine_path(phase), made_from, writer)
        work.make_bytes(layers.relative_to(work.folder).as_posix(), layers.read_bytes())


def write_weight_map(work: Work) -> None:
    """Where engines whose weights are inputs find them."""
    from ernie_export.graph.weights import read_layout

    (work.folder / ENGINES).mkdir(exist_ok=True)
    work.make_bytes(weight_map.FILE, weight_map.rendered(read_layout(work.folder / GRAPH)))


def lowered(
    work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target
) -> Iterator[tuple[Phase, Lowered, Graph]]:
    """The graph of each phase, made when it is asked for."""
    import onnx

    from ernie_export.graph.lower import Lowered, lower

    model = onnx.load(work.folder / GRAPH, load_external_data=False)
    for phase in PHASES:
        batch = recipe.batch if phase == "decode" else 1
        form = Lowered(phase, context_of(checkpoint, recipe), batch, variant_of(target.runtime).plugins)
        yield phase, form, bound(lower, model, form)


def require_module(target: Target) -> None:
    """That what builds the target's engines is there, before the work.

    Raises:
        UserError: it is not.
    """
    (module,) = {stack.module for stack in target.stacks}
    here, problem = found.version_of(module)
    if here is None:
        raise UserError(
            f"Engines for {target.name} are built with {module}, which does not load here ({problem})",
            "Install it: pip install 'ernie-export[rtx]'.",
        )


def make_weights(work: Work, checkpoint: Checkpoint, recipe: Recipe, text: Windows | None) -> None:
    """First what is calibrated on the text, in its order; then the rest at once."""
    if text:
        calibrate(work, checkpoint, recipe, text)
    write_weights(work, checkpoint, recipe, **calibration_inputs(recipe, text))


def write_texts(work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target) -> None:
    """The small files: what the engine must know, the recipe, the tokenizer."""
    info = engine_info(work, checkpoint, recipe, target)
    if target.is_kit and info.requires:  # validation opens the graph here, whatever it is for
        anywhere = info.requires.model_copy(update={"architecture": None})
        info = info.model_copy(update={"requires": anywhere})
    work.make_bytes(EngineInfo.FILE, info.to_bytes())
    for_genai = genai.genai_config(checkpoint.config, GRAPH, info.max_context, target.runtime)
    work.make_bytes(genai.FILE, (json.dumps(for_genai, indent=1) + "\n").encode())
    work.make_bytes(RECIPE, recipe.to_toml().encode())
    for name in TEXTS:
        if (source := checkpoint.path / name).is_file():
            work.make_bytes(name, source.read_bytes())


def engine_info(work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target) -> EngineInfo:
    config, context = checkpoint.config, context_of(checkpoint, recipe)
    requires = requires_of(target, checkpoint.fingerprint(work.progress), context)
    return EngineInfo(
        runtime=target.runtime,
        graph=GRAPH,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_context=context,
        moe_layers=config.moe_layers,
        num_experts=config.moe_num_experts,
        experts_per_token=config.moe_k,
        requires=of_engines(requires, work, recipe, target),
    )


def of_engines(requires: Requires, work: Work, recipe: Recipe, target: Target) -> Requires:
    """What TensorRT's engines need beside. Those that were built here are read by the version that built them."""
    if target.runtime not in VARIANTS:
        return requires
    requires = requires.model_copy(update=needs_of_gpu(target, recipe.batch))
    if target.is_kit:
        return requires
    prefill, decode = (
        Binary(path=engine_path(phase), sha256=work.digests[engine_path(phase)]) for phase in PHASES
    )
    more = {
        "versions": [".".join((found.version_of(requires.module)[0] or "").split(".")[:3])],
        "engine": decode,
        "prefill": prefill,
    }
    return requires.model_copy(update=more)


def validate_and_publish(
    work: Work, checkpoint: Checkpoint, recipe: Recipe, target: Target, output: Path, replace: bool
) -> BuildResult:
    """Measure what was built; seal it and put it in its place if it passes, else keep it back."""
    report = validate(
        work.folder,
        checkpoint.path,
        recipe.gates,
        work.progress,
        recipe=recipe.name,
        target=target.name,
        selfcheck=work.folder / SelfCheck.FILE,
    )
    failure = output.with_name(f"{output.name}.report.json")
    if report.verdict == "failed":
        report.write(failure)
        return BuildResult(output, failure, "failed", False, report, None)
    claims = [Claim(claim="graph and weights", where="built here")]
    if engine_path("decode") in work.digests:
        claims.append(Claim(claim=f"engines for compute capability {target.sm}", where="built here"))
        claims.append(Claim(claim="the engines, run", where="planned"))
    if graph_alone(EngineInfo.read(work.folder)) and target.runtime in ON_GPUS:
        claims.append(Claim(claim=f"the engine, run by {target.stack[0]}", where="planned"))
    report = report.model_copy(update={"sample": sample(work.folder)})
    if target.is_kit:
        info = engine_info(work, checkpoint, recipe, target)
        work.make_bytes(EngineInfo.FILE, info.to_bytes())
        for name, data in pack.files(work.folder, info, checkpoint.config, recipe, target):
            work.make_bytes(name, data)
        claims.append(Claim(claim="kit", where="built here"))
    seal(work.folder, report, claims, work.progress, work.digests)
    publish(work.folder, output, replace)
    failure.unlink(missing_ok=True)
    report = Report.read(output / Report.FILE)
    return BuildResult(output, output / Report.FILE, "passed", False, report, report.sample, target.is_kit)


def sample(folder: Path) -> str:
    """One sentence by the engine itself, for a person to see that it speaks."""
    from ernie_export.engine.open import open_graph
    from ernie_export.generate.generator import generate
    from ernie_export.generate.sampling import Sampling
    from ernie_export.generate.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.read(folder)
    prompt = tokenizer.encode(SAMPLE_PROMPT)
    engine = open_graph(folder)
    tokens = min(SAMPLE_TOKENS, engine.info.max_context - len(prompt))
    (made,) = generate(engine, [prompt], tokens, Sampling(), tokenizer.stop_ids)
    text = " ".join((SAMPLE_PROMPT + tokenizer.decode(made.token_ids)).split())
    sentence, full_stop, _ = text.partition(". ")
    return sentence + full_stop.strip()
