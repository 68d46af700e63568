"""The image encoder: `pixels (B, 3, h, w) -> vision_features (B, N, C)`; frozen, unless a finetune trains it.

The paper's vision transformers, any timm model with `forward_features`, or a Hugging Face vision model (encoders.py); a
grid (B, C, h', w') is flattened to a sequence row by row. Does not know about queries or text.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import nn

from blip2rt.errors import Blip2rtError

from . import streaming
from .encoders import VisionConfig as VisionConfig
from .encoders import build_encoder, load_encoder
from .weights import Weights


def freeze(module: nn.Module) -> nn.Module:
    """Turn off gradients and dropout for good: a parent's `.train()` has no effect."""
    module.eval().requires_grad_(False)
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


class VisionEncoder(nn.Module):
    """An encoder of any source. streamed: a vit's weights stay on disk (see streaming.py). empty: it has no weights,
    and takes no memory under torch.device("meta"). weights: those that the config names, if they are open."""

    def __init__(
        self, config: VisionConfig, *, streamed: bool = False, empty: bool = False, weights: Weights | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.body: nn.Module = build_encoder(config) if empty else load_encoder(config, weights)
        if not streamed:
            streaming.fill(self.body)
        freeze(self)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return _as_sequence(self.body(pixels))

    def unfreeze(self) -> None:
        """Turn on gradients for every parameter that the features depend on. It stays in eval mode: no dropout, and
        fixed batch norm statistics."""
        used = self._used()
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(name in used)

    def _used(self) -> set[str]:
        """Names of the parameters that the features depend on: some encoders have an unused head."""
        config, body = self.config, self.body
        named = {n: p.detach().to("meta").requires_grad_() for n, p in body.named_parameters()}
        buffers = {n: b.to("meta") for n, b in body.named_buffers()}
        pixels = torch.zeros(1, 3, config.height, config.width, device="meta")
        features = _as_sequence(torch.func.functional_call(body, {**named, **buffers}, (pixels,)))
        found = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
        return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def longest_list(model: nn.Module) -> tuple[str, nn.Module]:
    """The layers of a model and their name in it: its longest list of modules."""
    lists = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    return max(lists, key=lambda item: len(item[1]))


def layer_numbers(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 before the blocks (patches, positions), 1 to L in them, L + 1 after them."""
    blocks, found = longest_list(encoder)
    count = len(found)  # type: ignore[arg-type]
    numbers, number = {}, 0
    for name, _ in encoder.named_parameters():
        if name.startswith(f"{blocks}."):
            number = 1 + int(name[len(blocks) + 1 :].partition(".")[0])
        elif number:
            number = count + 1
        numbers[name] = number
    return numbers


def _as_sequence(features: torch.Tensor) -> torch.Tensor:
    """(B, C, h', w') -> (B, h' * w', C); a sequence as it is."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


@cache
def encoder_shape(config: VisionConfig) -> tuple[int, int, int]:
    """(positions N, width C, parameters) of the encoder that the config names, measured without its weights.

    The config's own positions and features are ignored. Raises Blip2rtError.
    """
    with torch.device("meta"):
        body = build_encoder(config)
        try:
            features = _as_sequence(body.eval()(torch.zeros(1, 3, config.height, config.width)))
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:  # TypeError: NaFlex takes other inputs
            reason = str(error).splitlines()[0]
            size = f"{config.height} x {config.width}"
            fix = "choose another encoder or image size"
            raise Blip2rtError(f"{config.source} cannot read {size} pixels ({reason}): {fix}") from error
    return features.shape[1], features.shape[2], sum(p.numel() for p in body.parameters())


def measured(config: VisionConfig) -> VisionConfig:
    """The config with the encoder's positions and features at its image size. Raises Blip2rtError."""
    positions, features, _ = encoder_shape(config)
    return replace(config, positions=positions, features=features)


def resized(config: VisionConfig, size: int) -> VisionConfig:
    """The config for square images of another size; position embeddings are interpolated."""
    if config.vit is None:
        return measured(replace(config, height=size, width=size))
    patch = config.vit.patch
    if size < patch:
        raise Blip2rtError(f"the image size is {size}, less than a patch of {patch}")
    return replace(config, height=size, width=size, positions=1 + (size // patch) ** 2)
