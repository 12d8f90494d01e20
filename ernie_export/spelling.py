"""JSON in one spelling only, so that no byte of a document can change unseen."""

from __future__ import annotations

import json


def spelled(content: object) -> bytes:
    """UTF-8 JSON: keys sorted, one space of indentation, a newline at the end."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
