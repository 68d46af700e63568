"""Vision transformers of BLIP-2: EVA-CLIP ViT-g/14 and CLIP ViT-L/14, without their last block and final norm.

(Li et al. 2023, section 3.4.) `pixels (B, 3, h, w) -> vision_features (B, 1 + patches, width)`; the first is [CLS].
Their weights are read from the checkpoints of several projects, whose names are in names.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError

from .names import STYLES
from .weights import Reader, Weights


@dataclass(frozen=True)
class VitConfig:
    """Geometry; the defaults are EVA-CLIP ViT-g/14's."""

    width: int = 1408
    layers: int = 39
    heads: int = 16
    mlp_width: int = 6144
    patch: int = 14
    activation: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    pre_norm: bool = False  # a LayerNorm before the first block, as CLIP has it


EVA_G = VitConfig()  # EVA-CLIP ViT-g/14 without its last block
CLIP_L = VitConfig(
    width=1024, layers=23, mlp_width=4096, activation="quick_gelu", layer_norm_eps=1e-5, patch_bias=False, pre_norm=True
)  # CLIP ViT-L/14 without its last block
_LAYERS = {1408: 39, 1024: 23}  # layers that BLIP-2 uses of ViT-g and ViT-L, by width
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its pixels


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": _quick_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    drop: Callable[[torch.Tensor], torch.Tensor] | None = None,
    fused: bool | None = None,
) -> torch.Tensor:
    """Attention of query (B, heads, T, D) over key and value (B, heads, S, D): (B, heads, T, D).

    mask: True where a query sees a key. drop: dropout of the shares (B, heads, T, S). fused: use PyTorch's kernel,
    which stores no shares; None: on GPUs, without dropout. On CPUs its backward is four times slower at these lengths,
    and exports trace the written-out products.
    """
    if (query.is_cuda and drop is None) if fused is None else fused:
        return F.scaled_dot_product_attention(query, key, value, mask)
    scores = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1)
    return (drop(shares) if drop else shares).to(value.dtype) @ value


class Block(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.projection(self.attend(self.norm1(x)))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, width) -> (B, N, width)"""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return attention(query, key, value).transpose(1, 2).flatten(2)


class Vit(nn.Module):
    """A vision transformer for images of one size."""

    def __init__(self, config: VitConfig, height: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.grid = (height // config.patch, width // config.patch)
        positions = 1 + self.grid[0] * self.grid[1]
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embedding = nn.Parameter(torch.zeros(1, positions, config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=config.patch_bias)
        self.pre_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        nn.init.normal_(self.class_embedding, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(patches.shape[0], -1, -1)
        x = self.pre_norm(torch.cat((start, patches), 1) + self.position_embedding)
        for layer in self.layers:
            x = layer(x)
        return x


def find_style(weights: Weights) -> tuple[str, str] | None:
    """The prefix and the style (a key of STYLES) of the encoder in `weights`; None if there is no encoder."""
    for key, style in STYLES.items():
        for prefix in style.prefixes:
            if f"{prefix}{style.name('class_embedding')}" in weights:
                return prefix, key
    return None


def read_geometry(weights: Weights, *, heads: int, layers: int | None, frozen: bool) -> tuple[VitConfig, int]:
    """The geometry of the encoder in `weights`, and the size of its images, from the tensors' shapes.

    frozen: the file is EVA-CLIP's or CLIP's own, which may have one layer more than BLIP-2 uses.
    """
    found = find_style(weights)
    assert found is not None, "the caller has found an encoder"
    prefix, key = found
    style, shapes = STYLES[key], weights.shapes
    width, _, patch, _ = shapes[f"{prefix}{style.name('patch_embedding.weight')}"]
    pattern = rf"{re.escape(prefix + str(style.names['layers']))}\.(\d+)\."
    count = 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
    if layers is None:
        layers = min(count, _LAYERS.get(width, count - 1)) if frozen and key in ("eva", "clip") else count
    side = round((shapes[f"{prefix}{style.name('position_embedding')}"][-2] - 1) ** 0.5)
    vit = VitConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=shapes[f"{prefix}{style.name('layers.0.fc1.weight')}"][0],
        patch=patch,
        activation="quick_gelu" if style.clip else "gelu",
        layer_norm_eps=1e-5 if style.clip else 1e-6,
        patch_bias=f"{prefix}{style.name('patch_embedding.bias')}" in weights,
        pre_norm=style.clip,
    )
    return vit, side * patch


def vit_readers(vit: Vit, weights: Weights) -> dict[str, Reader]:
    """A reader for each parameter. Raises Blip2rtError, which lists missing tensors and wrong shapes."""
    found = find_style(weights)
    if found is None:
        raise Blip2rtError(
            f"{weights.source} has no image encoder: give the file of EVA-CLIP ViT-g (eva_vit_g.pth), of CLIP ViT-L "
            "(clip_vit_L.pth), or a Hugging Face BLIP-2 folder"
        )
    prefix, key = found
    shapes = {name: tuple(parameter.shape) for name, parameter in vit.named_parameters()}
    names = {name: theirs and prefix + theirs for name in shapes for theirs in [STYLES[key].name(name)]}
    special: dict[str, Reader] = {}
    for name, theirs in names.items():
        if theirs is None:
            continue
        if key == "eva" and name.endswith("qkv.bias") and theirs not in weights:
            special[name] = _joined_bias(weights, theirs[: -len("qkv.bias")])
        elif name in ("class_embedding", "position_embedding") and theirs in weights:
            special[name] = _row(weights, theirs, vit if name == "position_embedding" else None)
    return weights.readers(shapes, names.get, special)


def _joined_bias(weights: Weights, attention: str) -> Reader:
    """EVA-CLIP stores the biases of queries and values, and has none for keys."""

    def read() -> torch.Tensor:
        query, value = (weights.read(f"{attention}{name}_bias") for name in "qv")
        return torch.cat((query, torch.zeros_like(query), value))

    return read


def _row(weights: Weights, name: str, positions_of: Vit | None) -> Reader:
    """Read [CLS] or position embeddings as (1, n, width); the latter are resized to the encoder's grid."""

    def read() -> torch.Tensor:
        values = weights.read(name)
        values = values.reshape(1, -1, values.shape[-1])
        return values if positions_of is None else resized_positions(values, positions_of.grid)

    return read


def resized_positions(embedding: torch.Tensor, grid: tuple[int, int], first: int = 1) -> torch.Tensor:
    """Interpolate position embeddings (1, first + s * s, C) of a square grid to (1, first + grid, C), bicubic.

    The `first` ones, of [CLS], stay unchanged. Raises Blip2rtError if the source is not a square grid.
    """
    count = embedding.shape[1] - first
    side = round(count**0.5)
    if side * side != count:
        raise Blip2rtError(f"position embeddings of {count} patches do not form a square grid and cannot be resized")
    if (side, side) == grid:
        return embedding
    patches = embedding[:, first:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((embedding[:, :first].float(), resized.permute(0, 2, 3, 1).flatten(1, 2)), 1)
