"""Vision transformers of BLIP-2: EVA-CLIP ViT-g/14 and CLIP ViT-L/14, without their last block and final norm.

(Li et al. 2023, section 3.4.) `pixels (B, 3, h, w) -> vision_features (B, 1 + patches, width)`; the first is [CLS].
Does not know where weights come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


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
    dropout: float = 0.0,
    fused: bool | None = None,
) -> torch.Tensor:
    """Attention of query (B, heads, T, D) over key and value (B, heads, S, D): (B, heads, T, D).

    mask: True where a query sees a key. fused: use PyTorch's kernel, which stores no scores (B, heads, T, S); None: on
    GPUs. On CPUs its backward is four times slower at these lengths, and exports trace the written-out products.
    """
    if query.is_cuda if fused is None else fused:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    scores = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1)
    return (F.dropout(shares, dropout) if dropout else shares).to(value.dtype) @ value


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
