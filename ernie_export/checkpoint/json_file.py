"""A JSON file that must hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ernie_export import regular_file
from ernie_export.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The object in the file; UserError when it cannot be read, is not UTF-8, not JSON or not an object."""
    try:
        value = json.loads(regular_file.read(path).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "Give a readable checkpoint") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start})", "Take the file as published"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})", "Take the file as published") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", "Take the file as published")
    return value
