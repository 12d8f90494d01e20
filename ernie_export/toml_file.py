"""A TOML file that a person wrote, as a pydantic model; or one line that says what is wrong with it, and where."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ernie_export import regular_file
from ernie_export.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, kind: str, missing: str = "Name another file.") -> dict[str, Any]:
    """What the file says; `kind` is what it is to be: "policy", and `missing` the remedy where there is none.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(regular_file.read(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {kind} {path}", missing) from error
    except OSError as error:
        raise UserError(
            f"The {kind} {path} cannot be read ({error.strerror})", "Name a readable TOML file."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The {kind} {path} is not UTF-8 (byte {error.start})", "Save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The {kind} {path} is not TOML: {error}", "Correct that line.") from error
    except RecursionError as error:
        raise UserError(f"The {kind} {path} is nested too deep", "Write it flat.") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"The {kind} {path} cannot be read ({error})", "Correct the number.") from error


def checked(model: type[Model], content: object, path: Path, kind: str, remedy: str = "Mend it.") -> Model:
    """What was read from `path`, as `model`.

    Raises:
        UserError: it says what no such file can say.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # A misspelt key is told before the key that is missing for it.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"])) or kind
        raise UserError(f"The {kind} {path} is wrong ({where}: {first['msg']})", remedy) from error
