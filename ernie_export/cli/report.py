"""`report`, and the forms of a report that `validate` can write too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_export.cli.report_table import show_report
from ernie_export.errors import UserError

if TYPE_CHECKING:
    from ernie_export.validate.report import Claim, Report

HtmlFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page to read.")]
JunitFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit XML, for CI.")
]
Compare = Annotated[
    list[Path] | None,
    typer.Option(metavar="REPORT", help="Show another build of the checkpoint beside it; may be repeated."),
]


@dataclass
class Forms:
    """The files to write a report to; made before the work, so that a mistake shows at once."""

    html: Path | None = None
    junit: Path | None = None
    json: Path | None = None
    compare: Sequence[Path] = ()
    others: list[tuple[str, Report]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises UserError where a file cannot be written, or a report to compare with cannot be read."""
        for path in filter(None, (self.html, self.junit, self.json)):
            if path.is_dir() or not path.absolute().parent.is_dir():
                why = "it is a folder" if path.is_dir() else "there is no such folder"
                raise UserError(f"{path} cannot be written: {why}", "Name a file in a folder that is there.")
        if self.compare and self.html is None:
            raise UserError("There is no page to show other builds on", "Add --html FILE.")
        self.others = [(_name(path), _read(path)) for path in self.compare]

    def write(self, report: Report, built: Sequence[Claim] = ()) -> None:
        """Write them all; raises UserError where a report to compare with is of something else."""
        from ernie_export import atomic
        from ernie_export.validate import html, junit
        from ernie_export.validate.baseline import require_comparable

        for path, (_, other) in zip(self.compare, self.others, strict=True):
            require_comparable(path, other, report)
        if self.json:
            report.write(self.json)
        if self.html:
            atomic.write(self.html, html.render(report, self.others, built))
        if self.junit:
            atomic.write(self.junit, junit.render(report))


def report(
    source: Annotated[Path, typer.Argument(metavar="REPORT", help="A bundle, or a report's JSON file.")],
    html: HtmlFile = None,
    junit: JunitFile = None,
    compare: Compare = None,
) -> None:
    """Show a report that is there already; write it as a page, or for CI."""
    from ernie_export.bundle.manifest import Manifest

    forms = Forms(html, junit, compare=compare or ())
    found = _read(source)
    built = Manifest.read(source).claims if source.is_dir() else ()
    forms.write(found, built)
    show_report(found)


def _read(path: Path) -> Report:
    from ernie_export.validate.report import Report

    return Report.read(path / Report.FILE if path.is_dir() else path)


def _name(path: Path) -> str:
    """What to call the build of a report: `int8` for int8/report.json and int8.report.json alike."""
    path = path.absolute()
    return (
        path.parent.name
        if path.name == "report.json"
        else path.name.removesuffix(".json").removesuffix(".report")
    )
