from __future__ import annotations

import numpy as np

from ernie_export.bench.memory import Highest, held


def test_what_is_touched_and_freed_is_seen() -> None:
    before = held().anonymous
    with Highest() as highest:
        block = np.ones(32 << 20, np.uint8)
        assert held().anonymous >= before + (30 << 20)
        for _ in range(100):
            if highest.anonymous >= before + (30 << 20):
                break
            block.sum()
        del block
    assert highest.anonymous >= before + (30 << 20)
