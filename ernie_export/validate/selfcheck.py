"""selfcheck.safetensors in a bundle: what the checkpoint's own model answers to a few prompts.

An engine that builds may still talk nonsense where it is installed.  This file is small and needs
numpy alone to be compared with, so that every device asks before it switches: P prompts of S tokens
through the engine that it will run, against transformers' model of the checkpoint, which validation
ran anyway.

    tokens         the prompts
    top            the reference's N likeliest tokens behind each, the likeliest first
    top_logits     their logits
    rest           log of the sum of exp of all other logits
    spread         M tokens spread evenly over the vocabulary
    spread_logits  their logits
    layers         the L MoE layers
    experts        the reference's k experts, then those it came nearest to choosing: C of them
    choice         probability + correction bias, by which they were chosen

The metadata hold, as JSON under `selfcheck`, what else is in `About`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ernie_export.errors import UserError
from ernie_export.validate import tensors
from ernie_export.validate.metrics import compare_routing

Array = np.ndarray[Any, Any]
LARGEST = 64 << 20
"""Bytes; no honest file comes near, and a hostile one is not read."""
TIE = 1e-5
"""Choices of experts that the reference's router held to be as good within this are a tie: another
processor's last digits turn it."""
REMEDY = "Fetch or build the bundle again."
FORMS = {
    "tokens": ("int32", "PS"),
    "top": ("int32", "PSN"),
    "top_logits": ("float32", "PSN"),
    "rest": ("float32", "PS"),
    "spread": ("int32", "M"),
    "spread_logits": ("float32", "PSM"),
    "layers": ("int32", "L"),
    "experts": ("int16", "LPSC"),
    "choice": ("float32", "LPSC"),
}


@dataclass(frozen=True)
class Bound:
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class About:
    vocab_size: int
    num_experts: int
    experts_per_token: int
    bounds: dict[str, Bound]
    """What the metrics of `SelfCheck.metrics` must be; the names are those of gates."""
    schema_version: int = 1

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From JSON; ValueError or TypeError where it is no such thing."""
        said = json.loads(text)
        bounds = {name: Bound(**limits) for name, limits in said.pop("bounds").items()}
        about = cls(bounds=bounds, **said)
        least = {"schema_version": 1, "vocab_size": 1, "num_experts": 0, "experts_per_token": 0}
        for name, value in ((name, getattr(about, name)) for name in least):
            if type(value) is not int or value < least[name]:
                raise ValueError(f"{name} is {value!r}")
        if about.schema_version != 1:
            raise ValueError(f"schema_version is {about.schema_version}")
        for name, bound in bounds.items():
            if not all(limit is None or type(limit) in (int, float) for limit in (bound.min, bound.max)):
                raise ValueError(f"the bound of {name} is no number")
        return about


@dataclass(frozen=True)
class Answer:
    """What an engine made of one prompt."""

    logits: Array
    """[S,V]"""
    experts: Mapping[int, Array]
    """By MoE layer, [S,k]; empty where the runtime cannot show them."""


@dataclass(frozen=True)
class SelfCheck:
    FILE: ClassVar[str] = "selfcheck.safetensors"

    about: About
    tokens: Array
    top: Array
    top_logits: Array
    rest: Array
    spread: Array
    spread_logits: Array
    layers: Array
    experts: Array
    choice: Array

    def write(self, path: Path) -> None:
        """The same content gives the same bytes. The caller syncs."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in FORMS}
        path.write_bytes(save(arrays, {"selfcheck": self.about.to_json()}))

    @classmethod
    def read(cls, folder: Path) -> SelfCheck:
        """The self-check of a bundle.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = folder / cls.FILE
        if not path.is_file():
            raise UserError(
                f"{folder} holds no {cls.FILE}, so nobody can tell whether its engine is right here",
                "Build it again with this version.",
            )
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is over {LARGEST >> 20} MB", REMEDY)
        try:
            metadata, arrays = tensors.parse(path.read_bytes())
            check = cls(About.parse(metadata["selfcheck"]), **{name: arrays[name] for name in FORMS})
        except KeyError as error:
            raise UserError(f"{path} is damaged (it holds no {error})", REMEDY) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", REMEDY) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({str(error).splitlines()[0][:200]})", REMEDY) from error
        check._require_consistent(path)
        return check

    def _require_consistent(self, path: Path) -> None:
        sizes: dict[str, int] = {}
        wrong = []
        for name, (dtype, letters) in FORMS.items():
            array = getattr(self, name)
            wrong += [name] * (array.dtype != dtype or array.ndim != len(letters))
            for letter, size in zip(letters, array.shape, strict=False):
                wrong += [name] * (sizes.setdefault(letter, size) != size)
        about = self.about
        for name, end in (("tokens", about.vocab_size), ("top", about.vocab_size),
                          ("spread", about.vocab_size), ("experts", about.num_experts)):  # fmt: skip
            values = getattr(self, name)
            wrong += [name] * bool(values.size and not 0 <= values.min() <= values.max() < end)
        if not wrong:
            wrong += ["tokens"] * (not sizes["P"] or sizes["S"] < 2 or not sizes["N"])
            wrong += ["experts"] * bool(sizes["L"] and sizes["C"] < about.experts_per_token)
        if wrong:
            raise UserError(f"{path} is damaged ({wrong[0]} does not fit)", REMEDY)

    @property
    def tokens_sha256(self) -> str:
        """Over the token ids of all prompts, as little-endian int64."""
        return hashlib.sha256(self.tokens.astype("<i8").tobytes()).hexdigest()

    def metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """How far the engine's answers to all prompts are from the reference's; the names are those of gates.

        The KL divergence is that of the likeliest tokens and of all others as one, which is at most the
        whole one.  Routing is left out where the engine does not show it.

        Raises:
            UserError: the engine has another vocabulary, or other layers.
        """
        shape = (self.tokens.shape[1], self.about.vocab_size)
        if any(answer.logits.shape != shape for answer in answers):
            raise UserError(f"The engine's logits are not of the shape {shape} of the self-check", REMEDY)
        found = [self._compare(number, answer.logits) for number, answer in enumerate(answers)]
        kl, same, difference, non_finite = (np.concatenate(column) for column in zip(*found, strict=True))
        metrics = {
            "logits.kl_mean": float(kl.mean()),
            "logits.same_top1": float(same.mean()),
            "logits.max_difference": float(difference.max()),
            "logits.non_finite": float(non_finite.sum()),
        }
        if len(self.layers) and all(answer.experts for answer in answers):
            metrics |= routing_metrics(*self._compare_experts(answers))
        return metrics

    def _compare(self, number: int, logits: Array) -> tuple[Array, Array, Array, Array]:
        """[S] each, of the prompt `number`: KL, same likeliest token, largest difference, what is not finite."""
        finite = np.isfinite(logits).all(-1)
        logits = logits.astype(np.float64)
        top, likeliest, rest = self.top[number], self.top_logits[number].astype(np.float64), self.rest[number]
        ours = np.take_along_axis(logits, top, -1)
        others = logits.copy()
        np.put_along_axis(others, top, -np.inf, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            p = _log_normalized(np.concatenate([likeliest, rest[:, None]], -1))
            q = _log_normalized(np.concatenate([ours, _log_sum(others)[:, None]], -1))
            terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
            kl = np.where(finite, np.maximum(terms.sum(-1), 0.0), np.nan)
            apart = np.abs(
                np.concatenate([ours - likeliest, logits[:, self.spread] - self.spread_logits[number]], -1)
            )
            difference = np.where(finite, apart.max(-1), np.inf)
        same = finite & (logits.argmax(-1) == top[:, 0])
        return kl, same, difference, (~np.isfinite(logits)).sum(-1)

    def _compare_experts(self, answers: Sequence[Answer]) -> tuple[Array, Array]:
        """Of every choice of every layer: whether it is the same, and the gap as in metrics.RoutingComparison."""
        same, gap = [], []
        for at, layer in enumerate(self.layers.tolist()):
            for number, answer in enumerate(answers):
                chosen = answer.experts.get(layer)
                if chosen is None or chosen.shape != (self.tokens.shape[1], self.about.experts_per_token):
                    raise UserError(f"The engine shows no such experts in layer {layer}", REMEDY)
                near = self.experts[at, number].astype(np.int64)
                # All that is not stored was less than the last that is.
                choice = np.repeat(self.choice[at, number, :, -1:], self.about.num_experts, -1)
                np.put_along_axis(choice, near, self.choice[at, number], -1)
                none = np.zeros(chosen.shape)
                wanted = near[:, : chosen.shape[1]]
                compared = compare_routing((wanted, chosen), (none, none), choice)
                same.append(compared.same)
                gap.append(compared.gap)
        return np.concatenate(same), np.concatenate(gap)


def routing_metrics(same: Array, gap: Array) -> dict[str, float]:
    """Of choices of experts; a tie that fell the other way is no change."""
    return {
        "routing.agreement": float((same | (gap <= TIE)).mean()),
        "routing.largest_changed_gap": float(np.where(gap <= TIE, 0.0, gap).max()),
    }


def _log_sum(values: Array) -> Array:
    """log of the sum of exp along the last axis; −inf where all are."""
    largest = values.max(-1, keepdims=True)
    shifted = np.where(
        np.isneginf(values), 0.0, np.exp(values - np.where(np.isneginf(largest), 0.0, largest))
    )
    with np.errstate(divide="ignore"):
        result: Array = np.log(shifted.sum(-1)) + largest[..., 0]
    return result


def _log_normalized(values: Array) -> Array:
    result: Array = values - _log_sum(values)[..., None]
    return result
