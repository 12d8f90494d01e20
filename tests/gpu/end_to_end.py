"""ernie-nano, and layers of the true size, through the PyTorch host; and a CUDA graph of a whole step."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_export.model.ernie import Ernie
from plugins.torch.model import Cache, empty_cache, loaded
from tests.gpu import ernie, exact
from tests.gpu.kit import DTYPES, Kit

#: Error of a token's logits relative to their norm: about five times what was measured on the emulated kernels.
LIMITS = {("fp16", 16): 3e-3, ("bf16", 16): 2.5e-2, ("fp16", 8): 3e-2}
#: The part of tokens that may be further off: where the router is undecided, rounding changes an expert.
UNDECIDED = 0.2
#: "What is a list?" as the chat template of ernie-nano has it.
QUESTION = [3, 58, 578, 31, 626, 77, 277, 316, 267, 645, 36, 204, 38, 425, 444, 662, 31, 226]


@dataclass
class Run:
    """A model on the kernels, one row of a batch, fed token by token."""

    model: Ernie
    cache: Cache
    length: int = 0

    @torch.inference_mode()
    def feed(self, ids: Tensor) -> Tensor:
        """ids [n] → logits [n,V]."""
        self.length += len(ids)
        mask = torch.ones(1, self.length, dtype=torch.int64, device=ids.device)
        positions = torch.arange(self.length - len(ids), self.length, device=ids.device)[None]
        return self.model(ids[None], mask, positions, self.cache)[0][0]


@dataclass
class Subject:
    config: ernie.Config
    weights: dict[str, Tensor]
    context: int
    device: torch.device

    def run(self, dtype: str, bits: int = 16) -> Run:
        model = loaded(self.config, ernie.Parts(), self.weights, DTYPES[dtype])  # type: ignore[arg-type]
        cache = empty_cache(self.config, 1, self.context, self.device, DTYPES[dtype], bits)  # type: ignore[arg-type]
        return Run(model, cache)

    @torch.inference_mode()
    def plain(self, ids: Tensor) -> Tensor:
        """The model in fp32 with the plain operators, which tests/model holds to transformers: logits [n,V]."""
        model = Ernie(self.config, ernie.Parts(), self.context)  # type: ignore[arg-type]
        model.load_state_dict(self.weights, assign=True)
        empty = torch.zeros(1, self.config.num_key_value_heads, 0, self.config.head_dim, device=self.device)
        positions = torch.arange(len(ids), device=self.device)[None]
        past = [(empty, empty)] * self.config.num_hidden_layers
        return model(ids[None], torch.ones_like(positions), positions, past)[0][0]

    def greedy(self, run: Run, ids: list[int], tokens: int) -> list[int]:
        chosen: list[int] = []
        fed = torch.tensor(ids, device=self.device)
        while len(chosen) < tokens:
            chosen.append(int(run.feed(fed)[-1].argmax()))
            fed = torch.tensor(chosen[-1:], device=self.device)
        return chosen


def run(kit: Kit) -> None:
    """ernie-nano, then one dense and one MoE layer of the 21B with embedding and head."""
    failed = [*nano(kit), *large(kit)]
    kit.library.require_sound()
    if failed:
        raise AssertionError(f"further off than they may be: {', '.join(failed)}")


def nano(kit: Kit) -> list[str]:
    tokens, answer = (24, 4) if kit.device.emulated else (400, 48)
    config, weights = ernie.nano_weights(512)
    subject = Subject(config, {n: w.to(kit.device.torch) for n, w in weights.items()}, 512, kit.device.torch)
    ids = torch.randint(3, config.vocab_size, (tokens,), generator=kit.generator(7), device=kit.device.torch)
    want, source = subject.plain(ids), "plain PyTorch"
    if importlib.util.find_spec("transformers"):
        try:
            theirs = of_transformers(config, weights, ids.cpu()).to(want)
        except Exception as problem:  # another version of it, or a part of it that is not there
            kit.note(f"transformers does not run here: {problem}", {"transformers": str(problem)[:500]})
        else:
            kit.note(f"plain PyTorch against transformers: {exact.error(want, theirs):.1e}",
                     {"name": "plain against transformers", "error": exact.error(want, theirs)})  # fmt: skip
            want, source = theirs, "transformers"
    failed = [
        name
        for dtype, bits in LIMITS
        if not (
            compared(kit, f"ernie-nano, {dtype}, cache {bits}", subject.run(dtype, bits), ids, want, source)
        )
        for name in [f"ernie-nano {dtype} cache {bits}"]
    ]
    said, meant = subject.greedy(subject.run("fp16"), QUESTION, answer), greedy_plain(subject, answer)
    same = next((at for at, pair in enumerate(zip(said, meant, strict=True)) if pair[0] != pair[1]), answer)
    kit.note(
        f"ernie-nano's text: {same} of {answer} tokens as in fp32",
        {"name": "text", "same": same, "of": answer},
    )
    return failed


def greedy_plain(subject: Subject, tokens: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < tokens:
        ids = torch.tensor(QUESTION + chosen, device=subject.device)
        chosen.append(int(subject.plain(ids)[-1].argmax()))
    return chosen


def compared(kit: Kit, name: str, run: Run, ids: Tensor, want: Tensor, source: str) -> bool:
    """Half of it as prefill, tokens one by one, the rest over the cache."""
    half = len(ids) // 2
    steps = [ids[:half], *ids[half : half + 4].split(1), ids[half + 4 :]]
    got = torch.cat([run.feed(step) for step in steps]).double()
    dtype, bits = name.split(", ")[1], int(name.rpartition(" ")[2])
    limit, each = LIMITS[dtype, bits], (got - want).norm(dim=-1) / want.double().norm(dim=-1)
    over = float((~(each < limit)).double().mean())
    passed = over <= UNDECIDED
    median = float(each.median())
    kit.note(
        f"{name}: median error {median:.1e}, {over:.1%} of {len(ids)} tokens over {limit:.1e} "
        f"{'ok' if passed else 'FAILED'}",
        {"name": name, "against": source, "median": median, "over": over, "limit": limit, "passed": passed},
    )
    return passed


def of_transformers(config: ernie.Config, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """transformers' own model on the weights that the codes stand for: logits [n,V]."""
    import transformers

    known = transformers.AutoConfig.from_pretrained(ernie.NANO)
    theirs = transformers.AutoModelForCausalLM.from_config(known, dtype=torch.float32).eval()
    state = theirs.state_dict()
    model = Ernie(config, ernie.Parts(), 512)  # type: ignore[arg-type]
    meant = {
        name: ernie.dequantized(weights[name], weights[ernie.scales_of(name)], bits)
        if bits
        else weights[name]
        for name, bits in ernie.stored_bits(model).items()
    }
    for name in state:
        layer = name.split(".")[2] if ".layers." in name else ""
        if name.endswith("experts.gate_up_proj"):  # gate's rows, then up's
            both = meant[f"layers.{layer}.experts.gate_up"]
            state[name] = torch.cat((both[:, 0::2], both[:, 1::2]), dim=1)
        elif name.endswith("experts.down_proj"):
            state[name] = meant[f"layers.{layer}.experts.down"]
        elif name in ("lm_head.weight", "model.embed_tokens.weight"):
            state[name] = meant["embedding.weight"]
        else:
            ours = next(ours for ours in meant if published(ours) == name.replace("mlp.gate.moe", "mlp.moe"))
            state[name] = meant[ours].view_as(state[name])
    theirs.load_state_dict(state)
    with torch.inference_mode():
        return theirs(ids[None]).logits[0]


def published(ours: str) -> str:
    if not ours.startswith("layers."):
        return {"norm.weight": "model.norm.weight"}.get(ours, "")
    _, layer, below = ours.split(".", 2)
    for name, theirs in ernie.NAMES.items():
        if below.startswith(name):
            return f"model.layers.{layer}.{below.replace(name, theirs)}"
    return ""


def two_layers(kit: Kit) -> Subject:
    """Embedding, a dense layer, an MoE layer, head; tiny where the sizes are."""
    sizes, changes = kit.sizes, {"num_hidden_layers": 2}
    if sizes.hidden < 2560:
        changes |= {
            "hidden_size": sizes.hidden, "moe_intermediate_size": sizes.width, "intermediate_size": 2 * sizes.width,
            "moe_num_experts": sizes.experts, "moe_k": sizes.k, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads, "vocab_size": 512,
        }  # fmt: skip
    config = ernie.Config(ernie.LARGE, **changes)
    weights = ernie.random_weights(config, sizes.context, kit.generator(8))
    return Subject(config, weights, sizes.context, kit.device.torch)


def large(kit: Kit) -> list[str]:
    subject, tokens = two_layers(kit), 40 if kit.device.emulated else 300
    ids = torch.randint(
        0, subject.config.vocab_size, (tokens,), generator=kit.generator(9), device=kit.device.torch
    )
    want, failed = subject.plain(ids), []
    for dtype, bits in LIMITS:
        name = f"two layers of hidden {kit.sizes.hidden}, {dtype}, cache {bits}"
        if not compared(kit, name, subject.run(dtype, bits), ids, want, "plain PyTorch"):
            failed.append(name)
    return failed
