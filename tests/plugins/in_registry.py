"""What TensorRT's own registry, of the lean runtime that PYTHONPATH names, makes of a library of plugins.

`in_registry.py LIBRARY` reads {operator: attributes} as JSON and writes what it found.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as tensorrt


def collection(attributes: dict[str, int | float]) -> Any:
    kinds = {
        int: (np.int32, tensorrt.PluginFieldType.INT32),
        float: (np.float32, tensorrt.PluginFieldType.FLOAT32),
    }
    fields = []
    for name, value in attributes.items():
        dtype, kind = kinds[type(value)]
        fields.append(tensorrt.PluginField(name, np.array([value], dtype), kind))
    return tensorrt.PluginFieldCollection(fields)


def made(registry: Any, name: str, attributes: dict[str, int | float]) -> dict[str, Any]:
    creator = registry.get_creator(name, "1", "ernie")
    build, run = tensorrt.TensorRTPhase.BUILD, tensorrt.TensorRTPhase.RUNTIME
    plugin = creator.create_plugin("layer", collection(attributes), build)
    one_short = collection(dict(list(attributes.items())[:-1]))
    core, builder, runtime = (
        plugin.get_capability_interface(getattr(tensorrt.PluginCapabilityType, kind))
        for kind in ("CORE", "BUILD", "RUNTIME")
    )
    return {
        "kind": creator.interface_info.kind,
        "attributes": [field.name for field in creator.field_names],
        "core": [core.plugin_namespace, core.plugin_name, core.plugin_version],
        "build": [builder.interface_info.kind, builder.interface_info.major, builder.num_outputs],
        "runtime": runtime.interface_info.kind,
        "metadata": builder.metadata_string,
        "for the runtime": creator.create_plugin("layer", collection(attributes), run) is not None,
        "one short": creator.create_plugin("layer", one_short, run) is not None,
    }


def main() -> None:
    registry = tensorrt.get_plugin_registry()
    before = {creator.name for creator in registry.all_creators}
    handle = registry.load_library(sys.argv[1])
    creators = [creator for creator in registry.all_creators if creator.name not in before]
    answer = {
        "version": tensorrt.__version__,
        "loaded": handle is not None,
        "listed": [f"{each.plugin_namespace}::{each.name} {each.plugin_version}" for each in creators],
        "made": {name: made(registry, name, attributes) for name, attributes in json.load(sys.stdin).items()},
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
