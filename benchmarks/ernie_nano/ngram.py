"""The rival that ernie-nano must beat: an interpolated Kneser-Ney trigram over the same tokens."""

from __future__ import annotations

import math

import numpy as np


class KneserNey:
    """Interpolated Kneser-Ney of order 3 (Chen & Goodman 1998, eq. 24), one discount per order."""

    def __init__(self, tokens: np.ndarray, vocab: int):
        self.vocab = vocab
        v = vocab
        tri = tokens[:-2] * v * v + tokens[1:-1] * v + tokens[2:]
        self.tri, tri_count = np.unique(tri, return_counts=True)
        self.tri_count = tri_count.astype(np.float64)
        self.bi, self.bi_count = np.unique(self.tri % (v * v), return_counts=True)  # continuation counts
        uni = np.bincount(self.bi % v, minlength=v)
        self.d3, self.d2 = discount(tri_count), discount(self.bi_count)
        self.uni = (uni + 1) / (uni.sum() + v)
        pair = self.tri // v
        self.pair, first = np.unique(pair, return_index=True)
        self.pair_total = np.add.reduceat(self.tri_count, first)
        self.pair_kinds = np.diff(np.append(first, len(pair)))
        self.ctx_total = np.bincount(self.bi // v, weights=self.bi_count, minlength=v)
        self.ctx_kinds = np.bincount(self.bi // v, minlength=v)

    def perplexity(self, tokens: np.ndarray) -> float:
        a, b, c = tokens[:-2], tokens[1:-1], tokens[2:]
        v = self.vocab
        p1 = self.uni[c]
        n2 = lookup(self.bi, self.bi_count, b * v + c)
        total, kinds = self.ctx_total[b], self.ctx_kinds[b]
        seen = total > 0
        safe = np.where(seen, total, 1)
        p2 = np.where(seen, (np.maximum(n2 - self.d2, 0) + self.d2 * kinds * p1) / safe, p1)
        n3 = lookup(self.tri, self.tri_count, (a * v + b) * v + c)
        total, kinds = (lookup(self.pair, x, a * v + b) for x in (self.pair_total, self.pair_kinds))
        seen = total > 0
        safe = np.where(seen, total, 1)
        p3 = np.where(seen, (np.maximum(n3 - self.d3, 0) + self.d3 * kinds * p2) / safe, p2)
        return math.exp(-np.log(p3).mean())


def discount(counts: np.ndarray) -> float:
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(once / (once + 2 * twice))


def lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
