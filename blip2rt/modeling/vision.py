"""The frozen image encoder: `pixels (B, 3, h, w) -> vision_features (B, N, C)`.

Any timm model with `forward_features` or Hugging Face vision model; a grid (B, C, h', w') is flattened to a sequence
row by row. Knows nothing about queries or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from blip2rt.errors import Blip2rtError

from .sources import resolve


@dataclass(frozen=True)
class VisionConfig:
    """Which encoder, which weights, and the images it expects."""

    source: str = "timm:tf_efficientnet_lite2"  # timm:NAME, or hf:PATH-OR-HUB-ID
    weights: str | None = None  # state dict file (a path or pkg:...); None: random for timm, the checkpoint's for hf
    height: int = 260
    width: int = 260
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    positions: int = 81  # N
    features: int = 1280  # C


def freeze(module: nn.Module) -> nn.Module:
    """No gradients, no dropout, and no way back by a parent's `.train()`."""
    module.eval().requires_grad_(False)
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


class VisionEncoder(nn.Module):
    """A frozen encoder behind one signature."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        kind, _, name = config.source.partition(":")
        if kind == "timm":
            self.body: nn.Module = _timm_encoder(name, config.weights)
        elif kind == "hf":
            self.body = _hugging_face_encoder(resolve(name))
        else:
            raise Blip2rtError(f"vision source {config.source!r}: choose timm:NAME or hf:PATH")
        freeze(self)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.body(pixels)
        return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


class _TimmBody(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(pixels)  # type: ignore[operator]


def _timm_encoder(name: str, weights: str | None) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise Blip2rtError("timm is not installed; pip install 'blip2rt[train]'") from error
    if not timm.is_model(name):
        raise Blip2rtError(f"vision source timm:{name}: timm has no such model; see timm.list_models()")
    model = timm.create_model(name, pretrained=False)
    if weights is not None:
        state = torch.load(resolve(weights), map_location="cpu", weights_only=True)
        model.load_state_dict(_match_names(state, model.state_dict(), weights))
    model.reset_classifier(0)  # type: ignore[operator]
    return _TimmBody(model)


def _match_names(
    state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Give a foreign state dict the model's names: by name, else tensor by tensor when order and shapes agree."""
    if state.keys() == wanted.keys():
        return state
    shapes = [tuple(t.shape) for t in state.values()]
    if shapes != [tuple(t.shape) for t in wanted.values()]:
        raise Blip2rtError(
            f"vision weights {source!r} do not fit: {len(state)} tensors there, {len(wanted)} in the model, "
            "and they agree neither by name nor by order and shape"
        )
    return dict(zip(wanted, state.values(), strict=True))


class _HuggingFaceBody(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).last_hidden_state


def _hugging_face_encoder(path: str) -> nn.Module:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(path, dtype=torch.float32)
    return _HuggingFaceBody(getattr(model, "vision_model", model))
