"""A bundle -> the checkpoints that it was made of, to train on from: `blip2rt-convert BUNDLE --to ours DIR`.

What was trained lies in the graphs, rounded as it ships; encoder and language model are named in the config that the
exporter leaves beside them. Knows graphs and names; nothing about training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from blip2rt import bundle
from blip2rt.bundle import IMAGE_EMBED, ITM, QFORMER, TEXT_EMBED
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import save_model
from blip2rt.modeling.quantize import QuantizedWeight, dequantize_blockwise

_GRAPHS = {1: (IMAGE_EMBED, TEXT_EMBED, ITM), 2: (QFORMER,)}
_NOWHERE = ("lm_head.", "temperature")  # what no graph needs: ITG's head starts anew, the temperature is the manifest's
_PREFIX = "module.model."  # of a parameter's name in a graph


def config_file(stage: int) -> str:
    """Where a bundle has the config of the checkpoint that its graphs of this stage came from."""
    return f"stage{stage}.json"


def save_config(config: Blip2Config, folder: Path) -> None:
    (folder / config_file(config.stage)).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def unpack(source: Path, out: Path) -> list[Path]:
    """Writes `out`/stage1 and `out`/stage2, those that the bundle has. Raises Blip2rtError."""
    found = bundle.read(source)
    files = found.manifest.files or {}
    stages = [stage for stage in _GRAPHS if config_file(stage) in files]
    if not stages:
        raise Blip2rtError(f"{source} does not say what it was made of (stage2.json): export the checkpoint again")
    models = [_model(found, stage) for stage in stages]
    folders = []
    for stage, model in zip(stages, models, strict=True):
        folder = out / f"stage{stage}"
        folder.mkdir(parents=True)
        save_model(model, folder)
        folders.append(folder)
    return folders


def _model(found: bundle.Bundle, stage: int) -> Blip2:
    try:
        config = Blip2Config.from_json(json.loads(found.file(config_file(stage)).read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise Blip2rtError(
            f"{found.file(config_file(stage))} is damaged ({error}): blip2rt verify {found.path}"
        ) from error
    faults = {
        "its image encoder was trained, and is in the bundle as a graph alone": config.vision_trained,
        "its language model learned by LoRA, and is in the bundle with that added": bool(
            config.llm and config.llm.lora_rank
        ),
    }
    if any(faults.values()):
        raise Blip2rtError(f"{found.path}: {'; '.join(what for what, true in faults.items() if true)}")
    model = Blip2(config, vision=False, llm=False)
    if stage == 1 and found.manifest.retrieval is not None:
        torch.nn.init.constant_(model.temperature, found.manifest.retrieval.temperature)
    values: dict[str, torch.Tensor] = {}
    for name in _GRAPHS[stage]:
        values |= _parameters(found.graph(name))
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    nowhere: tuple[str, ...] = _NOWHERE
    if stage == 2:  # nobody reads what the last layer says of a question
        nowhere += (f"qformer.layers.{config.qformer.layers - 1}.text_ffn.",)
    missing = [name for name in own if name not in values and not name.startswith(nowhere)]
    misshaped = [name for name, value in values.items() if name in own and value.shape != own[name]]
    if missing or misshaped:
        what = ", ".join(sorted(missing + misshaped)[:6])
        raise Blip2rtError(f"{found.path}: its graphs of stage {stage} do not hold {what}, or in another shape")
    model.load_state_dict({name: value for name, value in values.items() if name in own}, strict=False)
    return model


def _parameters(path: Path) -> dict[str, torch.Tensor]:
    """The trained tensors in a graph, by our names. Raises Blip2rtError: a precision that cannot be undone."""
    model = onnx.load(str(path))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    values = {
        _stem(name): _array(tensor).float()
        for name, tensor in constants.items()
        if name.startswith(_PREFIX) and tensor.data_type in floats
    }
    for name, weight in _matrices(model.graph, constants):
        values[name] = weight
    return values


def _array(tensor: onnx.TensorProto) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _matrices(graph: Any, constants: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices of linear layers (out, in) and embeddings. One that lost its name is that of the bias behind it."""
    made = {output: node for node in graph.node for output in node.output}
    readers: dict[str, Any] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, node)

    def constant(name: str) -> Any:
        """The initializer, through casts from fp16."""
        while name in made and made[name].op_type == "Cast":
            name = made[name].input[0]
        return constants.get(name)

    for node in graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            codes, scales, zeros = (constant(name) for name in node.input[1:4])
            shape = (attributes["N"], attributes["K"])
            weight = dequantize_blockwise(
                QuantizedWeight(
                    _array(codes), _array(scales), _array(zeros), attributes["bits"], attributes["block_size"], shape
                )
            )
            stem = node.input[1].removesuffix(".codes")
        elif node.op_type == "GatherBlockQuantized":
            codes, scales, zeros = (constant(name) for name in (node.input[0], node.input[2], node.input[3]))
            weight = _table(codes, scales, zeros, attributes["block_size"])
            stem = codes.name.removesuffix(".codes")
        elif node.op_type == "MatMul" and constant(node.input[1]) is not None:
            weight = _array(constant(node.input[1])).float().T.contiguous()
            stem = constant(node.input[1]).name
        elif node.op_type in ("DynamicQuantizeMatMul", "DequantizeLinear"):
            raise Blip2rtError(
                f"{node.name}: a graph in int8 cannot be trained on from; export the checkpoint in another precision"
            )
        else:
            continue
        yield _name(stem, node, readers), weight


def _name(stem: str, node: Any, readers: dict[str, Any]) -> str:
    if stem.startswith(_PREFIX):
        return _stem(stem)
    behind = readers[node.output[0]]
    for name in behind.input:
        if name.startswith(_PREFIX) and name.endswith(".bias"):
            return name.removeprefix(_PREFIX).removesuffix("bias") + "weight"
    raise Blip2rtError(f"{node.name}: its weights have no name in this graph")


def _stem(name: str) -> str:
    """A parameter's name of its constant's: transposed, or in fp16."""
    return name.removeprefix(_PREFIX).removesuffix(".half").removesuffix(".T")


def _table(codes: Any, scales: Any, zeros: Any, block: int) -> torch.Tensor:
    """An embedding whose rows are codes in blocks."""
    rounded, zero, scale = (_array(each) if each is scales else _unpacked(each) for each in (codes, zeros, scales))
    wide = [each.float().repeat_interleave(block, 1)[:, : rounded.shape[1]] for each in (zero, scale)]
    return (rounded.float() - wide[0]) * wide[1]


def _unpacked(tensor: Any) -> torch.Tensor:
    """4-bit or 8-bit numbers, each in a byte."""
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)).astype(np.uint8))
