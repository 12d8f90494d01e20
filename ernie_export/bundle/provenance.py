"""provenance.json: from what and by what a bundle was made, as SLSA says it in an in-toto statement.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.1/provenance

It is signed with the bundle, being one of its files.  It has no time: that is in the report.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import ernie_export
from ernie_export import regular_file
from ernie_export.bundle.sbom import package_url
from ernie_export.errors import UserError
from ernie_export.spelling import spelled

if TYPE_CHECKING:
    from ernie_export.bundle.manifest import FileEntry
    from ernie_export.validate.report import Source

TOOL = "ernie-export"
RECIPE = "recipe.toml"
CHECKPOINT = "checkpoint"
FINGERPRINT = "ernieExportFingerprint"
"""Checkpoint.fingerprint: SHA-256 over the names, forms and digests of all tensors, and the config."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resource(_Part):
    name: str | None = None
    uri: str | None = None
    digest: dict[str, str] | None = None


class Parameters(_Part):
    checkpoint: str
    recipe: str
    target: str


class BuildDefinition(_Part):
    build_type: str = Field(alias="buildType")
    external_parameters: Parameters = Field(alias="externalParameters")
    resolved_dependencies: list[Resource] = Field(alias="resolvedDependencies")


class Builder(_Part):
    id: str
    version: dict[str, str]


class RunDetails(_Part):
    builder: Builder


class Predicate(_Part):
    build_definition: BuildDefinition = Field(alias="buildDefinition")
    run_details: RunDetails = Field(alias="runDetails")


class Provenance(_Part):
    FILE: ClassVar[str] = "provenance.json"

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Resource]
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = Field(alias="predicateType")
    predicate: Predicate

    @classmethod
    def made(
        cls,
        checkpoint: Source,
        recipe: str,
        target: str,
        files: Mapping[str, FileEntry],
        software: Mapping[str, str],
    ) -> Provenance:
        """`files`: all that the manifest will list but this one."""
        from_what: list[dict[str, Any]] = [
            {"name": CHECKPOINT, "digest": {FINGERPRINT: checkpoint.fingerprint}}
        ]
        if RECIPE in files:
            from_what.append({"name": RECIPE, "digest": {"sha256": files[RECIPE].sha256}})
        for name, version in sorted(software.items()):
            uri = f"pkg:generic/python@{version}" if name == "python" else package_url(name, version)
            commit = source_commit() if name == TOOL else None
            from_what.append({"name": name, "uri": uri, "digest": {"gitCommit": commit} if commit else None})
        tool = package_url(TOOL, ernie_export.__version__)
        definition = {
            "buildType": f"{tool.partition('@')[0]}#build/v1",
            "externalParameters": {"checkpoint": checkpoint.name, "recipe": recipe, "target": target},
            "resolvedDependencies": from_what,
        }
        builder = {"id": tool, "version": {TOOL: ernie_export.__version__}}
        return cls.model_validate(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [
                    {"name": path, "digest": {"sha256": entry.sha256}}
                    for path, entry in sorted(files.items())
                ],
                "predicateType": "https://slsa.dev/provenance/v1",
                "predicate": {"buildDefinition": definition, "runDetails": {"builder": builder}},
            }
        )

    def render(self) -> bytes:
        return spelled(json.loads(self.model_dump_json(by_alias=True, exclude_none=True)))

    @classmethod
    def read(cls, folder: Path) -> Provenance | None:
        """That of a bundle; None where it has none, being from before there was one.

        Raises:
            UserError: it is damaged.
        """
        try:
            return cls.model_validate_json(regular_file.read(folder / cls.FILE))
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            raise UserError(
                f"{folder / cls.FILE} is no provenance of a bundle ({str(error).splitlines()[0]})",
                "Fetch or build the bundle again.",
            ) from error

    def told(self) -> str:
        """For a person, in a line."""
        definition, tool = self.predicate.build_definition, self.predicate.run_details.builder
        by = f"{TOOL} {tool.version.get(TOOL, '')}{f' of commit {self.commit[:12]}' if self.commit else ''}"
        return (
            f"built from {definition.external_parameters.checkpoint} (fingerprint {(self.fingerprint or '?')[:12]}) "
            f"by {by}, as {definition.external_parameters.recipe} for {definition.external_parameters.target}"
        )

    def subjects(self) -> dict[str | None, str | None]:
        """SHA-256 by path."""
        return {each.name: (each.digest or {}).get("sha256") for each in self.subject}

    def digest(self, name: str, kind: str) -> str | None:
        """Of one of the resolved dependencies."""
        found = (each for each in self.predicate.build_definition.resolved_dependencies if each.name == name)
        resource = next(found, None)
        return (resource.digest or {}).get(kind) if resource else None

    @property
    def commit(self) -> str | None:
        """Of ernie-export's source, where it was known."""
        return self.digest(TOOL, "gitCommit")

    @property
    def fingerprint(self) -> str | None:
        """The checkpoint's."""
        return self.digest(CHECKPOINT, FINGERPRINT)


def source_commit() -> str | None:
    """The commit that this very program is of: what the installer noted (PEP 610), or of the checkout it runs in;
    None where neither tells, or the checkout was changed."""
    try:
        noted = json.loads(metadata.distribution(TOOL).read_text("direct_url.json") or "{}")
        if commit := noted.get("vcs_info", {}).get("commit_id"):
            return str(commit)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    package = Path(ernie_export.__file__).parent
    if not (package.parent / ".git").exists():
        return None
    changed, head = (
        _git(package, *words) for words in (("status", "--porcelain", "."), ("rev-parse", "HEAD"))
    )
    return head if changed == "" and head else None


def _git(folder: Path, *words: str) -> str | None:
    try:
        ran = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None
