"""Weights of vision transformers in the checkpoints of several projects: names, geometry and readers.

To read another project's weights, add its names to STYLES.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError

from .vit import Vit, VitConfig
from .weights import Reader, Weights

_OURS = "class_embedding position_embedding patch_embedding layers norm1 norm2 qkv projection fc1 fc2 pre_norm".split()
_LAYERS = {1408: 39, 1024: 23}  # layers that BLIP-2 uses of ViT-g and ViT-L, by width


@dataclass(frozen=True)
class Style:
    """How a project names an encoder's tensors, and what it does not store."""

    prefixes: tuple[str, ...]
    names: Mapping[str, str | None]  # ours -> theirs; None: this project's encoders lack it
    clip: bool = False  # CLIP's activation, epsilon and first norm

    def name(self, ours: str) -> str | None:
        """Their name of one of our parameters, as "layers.3.fc1.bias"; None if they lack it."""
        found = re.fullmatch(r"(?:layers\.(\d+)\.)?(\w+)(?:\.(\w+))?", ours)
        theirs = None if found is None else self.names.get(found[2])
        if found is None or theirs is None:
            return None
        kind = found[3] or ""
        tensor = f"{theirs}{kind}" if theirs.endswith("_") or not kind else f"{theirs}.{kind}"
        return tensor if found[1] is None else f"{self.names['layers']}.{found[1]}.{tensor}"


def _style(prefixes: tuple[str, ...], names: str, clip: bool = False) -> Style:
    """A style from names in the order of _OURS; the last one, pre_norm, may be missing."""
    given: list[str | None] = [*names.split()]
    return Style(prefixes, dict(zip(_OURS, [*given, None][: len(_OURS)], strict=True)), clip)


STYLES = {
    "ours": _style(("vision.body.",), " ".join(_OURS)),
    "hf": _style(
        ("vision_model.",),
        "embeddings.class_embedding embeddings.position_embedding embeddings.patch_embedding encoder.layers "
        "layer_norm1 layer_norm2 self_attn.qkv self_attn.projection mlp.fc1 mlp.fc2",
    ),
    "eva": _style(
        ("visual_encoder.", ""),
        "cls_token pos_embed patch_embed.proj blocks norm1 norm2 attn.qkv attn.proj mlp.fc1 mlp.fc2",
    ),
    "clip": _style(
        ("visual_encoder.", "visual.", ""),
        "class_embedding positional_embedding conv1 transformer.resblocks ln_1 ln_2 attn.in_proj_ attn.out_proj "
        "mlp.c_fc mlp.c_proj ln_pre",
        clip=True,
    ),
}


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
    assert found is not None, "whoever reads the geometry has found an encoder"
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
