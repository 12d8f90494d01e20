"""Models of 28 layers from models of four: the layers come again and again, each with bytes of its own on disk.

Speed does not ask what the weights are, and a checkpoint of 28 layers would need 44 GB beside what is made of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ernie_export.checkpoint.config import ErnieConfig
from ernie_export.engine.info import EngineInfo
from ernie_export.graph import onnxruntime, trace, write
from ernie_export.recipe import Recipe
from ernie_export.target import Target

SHALLOW = 4


def source(layer: int, layers: int) -> int:
    """The layer of a model of four that becomes this one.

    llama-quantize gives some layers more bits (`use_more_bits` in its llama-quant.cpp): of four, the last two.
    A layer that it would give them among `layers` is made of one of these, another of layer 1. Layer 0 alone is
    dense, so it keeps its own, of fewer bits.
    """
    if layer == 0:
        return 0
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return 2 + layer % 2 if more else 1


def engine(shallow: Path, folder: Path, config: ErnieConfig, recipe: Recipe, context: int) -> None:
    """The bundle `shallow` with as many layers as `config` has."""
    layers = config.num_hidden_layers
    shutil.copytree(shallow, folder, ignore=shutil.ignore_patterns("weights", "model.onnx"))
    (folder / "weights").mkdir()
    info = json.loads((shallow / EngineInfo.FILE).read_text())
    info |= {"num_layers": layers, "moe_layers": config.moe_layers}
    (folder / EngineInfo.FILE).write_text(json.dumps(info))
    published = json.loads((shallow / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(published))
    model = trace.trace(config, recipe.parts, context)
    bodies = Target.find("cpu").bodies
    proto = write.assemble(model, write.weight_files(model), bodies, onnxruntime.SHIPPED_ACCURACY_LEVEL)
    (folder / write.FILE).write_bytes(write.serialize(proto))
    for path in sorted((shallow / "weights").iterdir()):
        if not path.name.startswith("layer-"):
            copy(path, folder / "weights" / path.name)
    for layer in range(layers):
        copy(
            shallow / "weights" / f"layer-{source(layer, layers):03}.bin",
            folder / "weights" / f"layer-{layer:03}.bin",
        )


def copy(path: Path, to: Path) -> None:
    """Bytes of its own, on disk at once: what is not written yet cannot be dropped from memory."""
    with path.open("rb") as read, to.open("wb") as write_to:
        shutil.copyfileobj(read, write_to, 8 << 20)
        write_to.flush()
        os.fsync(write_to.fileno())


def gguf(shallow: Path, path: Path, layers: int, gguf_py: Path) -> None:
    """The GGUF file `shallow` with `layers` layers."""
    sys.path.insert(0, str(gguf_py))
    import gguf as library  # type: ignore[import-not-found]

    reader = library.GGUFReader(shallow)
    architecture = reader.fields["general.architecture"].contents()
    writer = library.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = layers if name == f"{architecture}.block_count" else field.contents()
        writer.add_key_value(name, value, field.types[0])
    of_layer: dict[int, list[Any]] = {number: [] for number in range(SHALLOW)}
    named = []
    for tensor in reader.tensors:
        if tensor.name.startswith("blk."):
            of_layer[int(tensor.name.split(".")[1])].append(tensor)
        else:
            named.append((tensor.name, tensor))
    for layer in range(layers):
        for tensor in of_layer[source(layer, layers)]:
            named.append((f"blk.{layer}.{tensor.name.split('.', 2)[2]}", tensor))
    for name, tensor in named:
        writer.add_tensor_info(
            name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in named:
        writer.write_tensor_data(tensor.data)
    writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())
