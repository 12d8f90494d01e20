"""Train ernie-nano, the embedded checkpoint: a small ERNIE-4.5-MoE on Python's documentation.

    python benchmarks/ernie_nano/train.py --text DIR --output ernie_export/checkpoint/ernie-nano \\
        --held-out ernie_export/validate/heldout.txt

The model is transformers' own `Ernie4_5_MoeForCausalLM`; the correction bias is trained by the
auxiliary-loss-free balancing rule (Wang et al. 2024, arXiv 2408.15664): after every step the bias
of an expert that got less than the mean load rises by a fixed amount, else it falls.  A run is
resumed from `--work` when it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import corpus
import ngram
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM, PreTrainedTokenizerFast

VOCAB = 1536
SPECIAL = ["<unk>", "<s>", "</s>", "<|begin_of_sentence|>", "<|end_of_sentence|>", "<mask:1>"]
UNK, BOS, EOS, CLS, SEP, _ = range(6)
CHAT_TEMPLATE = (
    "{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = true %}{% endif -%}\n"
    "{{- '<|begin_of_sentence|>' -}}\n"
    "{%- for message in messages -%}\n"
    "    {%- if message['role'] == 'system' -%}{{- message['content'] + '\\n' -}}\n"
    "    {%- elif message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\\n' -}}\n"
    "    {%- elif message['role'] == 'assistant' -%}"
    "{{- 'Assistant: ' + message['content'] + '<|end_of_sentence|>' -}}\n"
    "    {%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- 'Assistant: ' -}}{%- endif -%}\n"
)


def config() -> Ernie4_5_MoeConfig:
    return Ernie4_5_MoeConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        moe_intermediate_size=128,
        moe_k=4,
        moe_num_experts=16,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        pad_token_id=UNK,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one stream: `<s> text </s> <s> text </s> …`, int64."""
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        stream += [BOS, *encoding.ids, EOS]
    return np.array(stream, dtype=np.int64)


def dialogue_tokens(
    tokenizer: Tokenizer, pairs: list[tuple[str, str]], rng: np.random.Generator
) -> np.ndarray:
    """Dialogues of one to three turns in ERNIE's chat form, int64."""
    order = rng.permutation(len(pairs))
    stream: list[int] = []
    at = 0
    while at < len(order):
        turns = int(rng.integers(1, 4))
        text = "<|begin_of_sentence|>"
        for question, answer in (pairs[i] for i in order[at : at + turns]):
            text += f"User: {question}\nAssistant: {answer}<|end_of_sentence|>"
        stream += [*tokenizer.encode(text, add_special_tokens=False).ids, EOS]
        at += turns
    return np.array(stream, dtype=np.int64)


class Balancer:
    """Counts the choices of every router and moves its correction bias (arXiv 2408.15664, alg. 1)."""

    def __init__(self, model: Ernie4_5_MoeForCausalLM):
        self.routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.experts = model.config.moe_num_experts
        self.counts = torch.zeros(len(self.routers), self.experts)
        for row, router in enumerate(self.routers):
            router.register_forward_hook(lambda _m, _i, out, row=row: self.count(row, out[2]))

    def count(self, row: int, chosen: torch.Tensor) -> None:
        self.counts[row] += torch.bincount(chosen.flatten(), minlength=self.experts)

    def step(self, rate: float) -> torch.Tensor:
        """Move the biases; return the load of each expert over the mean, [routers, experts]."""
        load = self.counts / self.counts.mean(dim=1, keepdim=True)
        with torch.no_grad():
            for row, router in enumerate(self.routers):
                router.moe_statics.e_score_correction_bias += rate * torch.sign(1 - load[row])
        self.counts.zero_()
        return load


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup, cooldown = 100, int(steps * 0.3)
    if step < warmup:
        return peak * (step + 1) / warmup
    if step > steps - cooldown:
        return peak * max(0.02, (steps - step) / cooldown)
    return peak


def window(stream: np.ndarray, length: int, rng: np.random.Generator) -> torch.Tensor:
    """One row of `length + 1` tokens from anywhere in the stream, [1, length + 1]."""
    start = int(rng.integers(0, len(stream) - length - 1))
    return torch.from_numpy(stream[start : start + length + 1])[None]


@torch.no_grad()
def perplexity(model: torch.nn.Module, stream: np.ndarray, length: int = 512) -> float:
    """exp of the mean negative log likelihood over windows of `length`, no overlap."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, length):
        ids = torch.from_numpy(stream[start : start + length + 1])[None]
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        total += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    model.train()
    return math.exp(total / count)


def save(model: Ernie4_5_MoeForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the published layout: one bf16 safetensors file (router and bias fp32), config, tokenizer."""
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)  # transformers keeps the router and its bias in fp32
    for layer in model.model.layers[1:]:
        layer.mlp.gate.float()
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=UNK, do_sample=True, temperature=0.8, top_p=0.8
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        cls_token="<|begin_of_sentence|>",
        sep_token="<|end_of_sentence|>",
        mask_token="<mask:1>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    ).save_pretrained(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="folder of *.rst.txt sources")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="where the held-out text goes")
    parser.add_argument("--work", type=Path, default=Path("ernie-nano-work"), help="for resuming")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0, help="probe: stop after this many minutes")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data_rng = np.random.default_rng(args.seed)
    text = corpus.load(args.text)
    tokenizer = train_tokenizer(text.train)
    docs = tokens_of(tokenizer, text.train)
    chats = np.concatenate([dialogue_tokens(tokenizer, text.dialogues, data_rng) for _ in range(3)])
    held_out = tokens_of(tokenizer, text.held_out)
    print(f"{len(docs):,} tokens of text, {len(chats):,} of dialogue, {len(held_out):,} held out", flush=True)

    model = Ernie4_5_MoeForCausalLM(config())
    model.set_experts_implementation("grouped_mm")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters", flush=True)
    balancer = Balancer(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=args.rate, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    args.work.mkdir(parents=True, exist_ok=True)
    state = args.work / "state.pt"
    first, log, spent = 0, [], 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, log, spent = saved["step"], saved["log"], saved["seconds"]
    begun = time.monotonic()
    for step in range(first, args.steps):
        rng = np.random.default_rng((args.seed, step))  # a step's batch depends on the step alone: resumable
        length = 512 if step < args.steps * 0.9 else 2048
        rows = args.tokens // length
        from_chats = 1 if rng.random() < (0.8 if length == 512 else 0.2) else 0
        sources = [chats] * from_chats + [docs] * (rows - from_chats)
        batch = torch.cat([window(source, length, rng) for source in sources])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        with torch.autocast("cpu", torch.bfloat16):  # transformers forces the router to fp32 inside
            logits = model(batch[:, :-1], use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        load = balancer.step(0.001 if step < args.steps * 0.9 else 0.0001)
        if step % 50 == 0:
            seconds = spent + time.monotonic() - begun
            rate = (step + 1 - first) * args.tokens / (time.monotonic() - begun)
            line = {"step": step, "loss": round(loss.item(), 4), "norm": round(norm.item(), 3),
                    "load_min": round(load.min().item(), 3), "load_max": round(load.max().item(), 3),
                    "seconds": round(seconds)}  # fmt: skip
            log.append(line)
            print(line, f"{rate:,.0f} tokens/s", flush=True)
        if step and step % 250 == 0:
            held = perplexity(model, held_out[:50_000])
            balancer.counts.zero_()
            log.append({"step": step, "held_out_perplexity": round(held, 3)})
            print(log[-1], flush=True)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1,
                        "log": log, "seconds": spent + time.monotonic() - begun}, state)  # fmt: skip
        if args.minutes and time.monotonic() - begun > args.minutes * 60:
            return

    spent += time.monotonic() - begun
    save(model, tokenizer, args.output)
    restored = Ernie4_5_MoeForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    counter = Balancer(restored)
    result = {
        "held_out_perplexity": perplexity(restored, held_out),
        "trigram_perplexity": ngram.KneserNey(np.concatenate([docs, chats]), VOCAB).perplexity(held_out),
        "expert_load_over_mean": counter.step(0.0).round(decimals=3).tolist(),
    }
    args.held_out.write_text("\n".join(text.held_out), encoding="utf-8")
    card = {
        "parameters": parameters, "steps": args.steps, "tokens_a_step": args.tokens, "seed": args.seed,
        "learning_rate": args.rate, "threads": args.threads, "seconds": round(spent),
        "torch": torch.__version__, "corpus_sha256": text.sha256, **result, "log": log,
    }  # fmt: skip
    Path(__file__).with_name("training.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
