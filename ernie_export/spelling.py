"""JSON in one spelling only, so that no byte of a document can change unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def spelled(content: object) -> bytes:
    """UTF-8 JSON: keys sorted, one space of indentation, a newline at the end."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a report's content but its seal, as UTF-8 JSON with sorted keys and no spaces."""
    sealed = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(sealed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
