"""`doctor`, `targets`, `recipes`: what can be done here, for what, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ernie_export.cli.inspect import Json
from ernie_export.cli.terminal import coloured, facts, table, terminal
from ernie_export.errors import WorkError
from ernie_export.readable import size

if TYPE_CHECKING:
    from ernie_export.doctor import Diagnosis, Plugins
    from ernie_export.recipe import PartFormat
    from ernie_export.stack import Stack
    from ernie_export.target import Target


def doctor(json: Json = False) -> None:
    """Tell what this machine can do, and what is missing."""
    from ernie_export.doctor import diagnose

    found = diagnose()
    if json:
        terminal.emit(found)
    else:
        _show(found)
    cpu = next(target for target in found.targets if target.name == "cpu")
    if not cpu.can_build:
        raise WorkError(f"The cpu target cannot be built here ({', '.join(cpu.missing)})", cpu.remedy)


def targets(json: Json = False) -> None:
    """List what can be built for, and what can be planned for."""
    from ernie_export.cli.outputs import TargetsOutput
    from ernie_export.stack import Stack
    from ernie_export.target import Target

    found, stacks = Target.all(), Stack.all()
    if json:
        terminal.emit(TargetsOutput(targets=found, stacks=stacks))
        return
    titles = ("target", "status", "runs on", "memory", "GB/s", "")
    terminal.show(table(titles, [_target(target) for target in found], right=(3, 4)))
    terminal.show("")
    terminal.show(table(("stack", "", ""), [_stack(stack) for stack in stacks]))


def recipes(json: Json = False) -> None:
    """List the recipes that come along."""
    from ernie_export.cli.outputs import RecipesOutput
    from ernie_export.recipe import Recipe

    found = [Recipe.find(name) for name in Recipe.names()]
    if json:
        terminal.emit(RecipesOutput(recipes=found))
    else:
        rows = [
            (recipe.name, _format(recipe.parts.experts), _format(recipe.parts.head), recipe.description)
            for recipe in found
        ]
        terminal.show(table(("recipe", "experts", "head", ""), rows))


def _target(target: Target) -> tuple[str, ...]:
    memory = size(target.memory.bytes) if target.memory else "-"
    bandwidth = f"{target.bandwidth.gb_per_s:,.0f}" if target.bandwidth else "-"
    return target.name, target.status, ", ".join(target.stack), memory, bandwidth, target.description


def _stack(stack: Stack) -> tuple[str, ...]:
    return stack.name, stack.description, f"planned: {stack.planned}" if stack.planned else ""


def _format(part: PartFormat) -> str:
    return part.format if part.block_size is None else f"{part.format}, block {part.block_size}"


def _plugins(plugins: Plugins) -> str:
    if plugins.path is None:
        return "none"
    return f"for TensorRT, CUDA {plugins.cuda}, SM {' '.join(plugins.sm)}"


def _show(found: Diagnosis) -> None:
    terminal.show(
        facts(
            [
                ("python", f"{found.python} on {found.platform}"),
                ("cores", found.cores),
                ("memory", f"{size(found.memory_available)} free of {size(found.memory)}"),
                *(("disk", f"{size(disk.free)} free in {disk.folder}") for disk in found.disks),
                ("gpu", ", ".join(found.gpus) or "none"),
                ("providers", ", ".join(found.providers) or "none"),
                ("plugins", _plugins(found.plugins)),
            ]
        )
    )
    packages = [
        (
            package.name,
            package.version or "-",
            f">= {package.minimum}",
            coloured(package.state, package.state == "ok"),
        )
        for package in found.packages
    ]
    targets = [
        (
            target.name,
            coloured("builds" if target.can_build else "cannot build", target.can_build),
            coloured("runs" if target.can_run else "cannot run", target.can_run),
            target.remedy or "; ".join(target.missing),
        )
        for target in found.targets
    ]
    for titles, rows in ((("package", "here", "needed", ""), packages), (("target", "", "", ""), targets)):
        terminal.show("")
        terminal.show(table(titles, rows))
