"""Which bits for a budget: what may be chosen, what each choice costs, and the recipe that comes of it.

What is chosen is a group: the matrices of one part in one layer, or the embedding, or the head; an
embedding that is the head too is one.  The options of a group are the integer formats that there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from ernie_export.graph.weights import RECIPE_PARTS
from ernie_export.plan.knapsack import least_loss
from ernie_export.plan.memory import held, memory
from ernie_export.plan.setting import Setting
from ernie_export.plan.weights import weight_files
from ernie_export.quantize.formats import BITS
from ernie_export.recipe import LayerParts, PartFormat, Parts, layers_of

if TYPE_CHECKING:
    from ernie_export.checkpoint.config import ErnieConfig
    from ernie_export.target import Target


class Group(NamedTuple):
    part: str
    layer: int | None
    """None for embedding and head."""

    def __str__(self) -> str:
        return self.part if self.layer is None else f"{self.part} of layer {self.layer}"


Costs = dict[Group, dict[PartFormat, int]]
"""Bytes in memory."""
Losses = Mapping[Group, Mapping[PartFormat, float]]


def groups(config: ErnieConfig, parts: Parts) -> list[Group]:
    """What may be chosen: parts in an integer format, but for what a layer's own table says."""
    told = told_by_layer(parts)
    found = [] if is_float(parts.embedding) else [Group("embedding", None)]
    for layer in range(config.num_hidden_layers):
        inside = ["experts", "shared"] if config.is_moe_layer(layer) else ["dense"]
        if not config.shared_intermediate_size and "shared" in inside:
            inside.remove("shared")
        for part in ("attention", *inside):
            if not is_float(getattr(parts, part)) and Group(part, layer) not in told:
                found.append(Group(part, layer))
    if not is_float(parts.head) and not is_one(config, parts):
        found.append(Group("head", None))
    return found


def told_by_layer(parts: Parts) -> dict[Group, PartFormat]:
    """What the layers' own tables say."""
    return {
        Group(part, layer): form
        for key, table in parts.layers.items()
        for part, form in table.given().items()
        for layer in layers_of(key)
    }


def is_float(form: PartFormat) -> bool:
    return form.format not in BITS


def is_one(config: ErnieConfig, parts: Parts) -> bool:
    """Whether embedding and head are chosen together, so that they stay one copy."""
    return config.tie_word_embeddings and parts.embedding == parts.head


def options(form: PartFormat) -> list[PartFormat]:
    """Every integer format with the same blocks, from the largest to the smallest."""
    names = sorted(BITS, key=lambda name: -BITS[name])
    return [PartFormat.model_validate({"format": name, "block_size": form.block_size}) for name in names]


def costs(config: ErnieConfig, target: Target, setting: Setting) -> Costs:
    """What each group takes of the target's memory in each of its formats."""
    chosen = groups(config, setting.parts)
    found: Costs = {group: {} for group in chosen}
    for name in BITS:
        choice = {
            group: next(form for form in options(setting.parts.of(group.part)) if form.format == name)
            for group in chosen
        }
        made = setting.model_copy(update={"parts": with_formats(config, setting.parts, choice)})
        files = weight_files(config, made.parts, made.context)
        for _, stored, size in held(config, target, files, made):
            group = group_of(stored.name, config, setting.parts)
            if group in choice:
                sizes = found[group]
                sizes[choice[group]] = sizes.get(choice[group], 0) + size
    return found


def group_of(initializer: str, config: ErnieConfig, parts: Parts) -> Group | None:
    stem, *rest = initializer.split(".")
    if stem == "layers":
        part = RECIPE_PARTS.get(rest[1])
        return Group(part, int(rest[0])) if part else None
    if stem == "head" and is_one(config, parts):
        return Group("embedding", None)
    return Group(stem, None)


def with_formats(config: ErnieConfig, parts: Parts, choice: Mapping[Group, PartFormat]) -> Parts:
    """The parts with a choice made, told shortly: the commonest format for the model, and what is otherwise."""
    chosen = {group: parts.of(*group) for group in groups(config, parts)} | dict(choice)
    here = told_by_layer(parts) | chosen
    model = {part: choice.get(Group(part, None), form) for part, form in parts.of_model().items()}
    if is_one(config, parts):
        model["head"] = model["embedding"]
    for part in LayerParts.model_fields:
        if common := Counter(form for group, form in chosen.items() if group.part == part).most_common(1):
            model[part] = common[0][0]
    tables = [
        {
            part: form
            for part in LayerParts.model_fields
            if (form := here.get(Group(part, layer), model[part])) != model[part]
        }
        for layer in range(config.num_hidden_layers)
    ]
    return Parts(**model, layers=_ranges(tables))


def _ranges(tables: Sequence[Mapping[str, PartFormat]]) -> dict[str, LayerParts]:
    """What each layer has of its own, neighbours that have the same in one range."""
    found = {}
    for table, run in groupby(range(len(tables)), key=tables.__getitem__):
        layers = list(run)
        key = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        if table:
            found[key] = LayerParts(**table)
    return found


def best(
    config: ErnieConfig, target: Target, setting: Setting, losses: Losses, budget: int
) -> tuple[Setting, float]:
    """The setting of the least loss that needs no more than the budget, and its loss, all groups' summed.

    Raises:
        ValueError: the smallest formats need more.
    """
    spent = costs(config, target, setting)
    least = smallest(config, setting)
    for_weights = (
        budget - memory(config, target, least).running + sum(min(sizes.values()) for sizes in spent.values())
    )
    while True:
        picked = least_loss(
            [list(sizes.values()) for sizes in spent.values()],
            [[losses[group][form] for form in sizes] for group, sizes in spent.items()],
            for_weights,
        )
        choice = {group: list(sizes)[at] for (group, sizes), at in zip(spent.items(), picked, strict=True)}
        made = setting.model_copy(update={"parts": with_formats(config, setting.parts, choice)})
        over = memory(config, target, made).peak - budget
        if over <= 0:
            return made, sum(losses[group][form] for group, form in choice.items())
        for_weights -= over  # opening the engine may take more than running it


def smallest(config: ErnieConfig, setting: Setting) -> Setting:
    """Every group in its smallest format."""
    choice = {group: options(setting.parts.of(group.part))[-1] for group in groups(config, setting.parts)}
    return setting.model_copy(update={"parts": with_formats(config, setting.parts, choice)})
