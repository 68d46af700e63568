"""The image encoder: `pixels (B, 3, h, w) -> vision_features (B, N, C)`; frozen, unless a finetune trains it.

Its source is `timm:NAME` (any model with `forward_features`), `hf:PATH-OR-HUB-ID`, or `vit` with a geometry: the
paper's. A grid (B, C, h', w') is flattened to a sequence row by row. Everything else (positions and width, layers,
freezing, caching, export) follows from the module. To add a source, add a case to `build_encoder`, which builds it
without weights, and to `load_encoder`, which builds it with its weights. Does not know about queries or text.
"""

import contextlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from blip2rt.errors import Blip2rtError, boundary
from blip2rt.install_hints import pip_install

from . import streaming
from .peft_folder import has_adapter
from .sources import fetch, resolve, without_progress_bar
from .vit import Vit, VitConfig, vit_readers
from .weights import Weights

PRETRAINED = "pretrained"  # as VisionConfig.weights: timm downloads them
TRAINED_PREFIX = "vision.body."  # of tensor names, if one of our checkpoints contains the encoder


@dataclass(frozen=True)
class VisionConfig:
    """Which encoder, which weights, and the images it expects."""

    source: str = "timm:tf_efficientnet_lite2"  # timm:NAME, hf:PATH-OR-HUB-ID, or vit, which `vit` describes
    # A state dict file, or a checkpoint with an encoder; "pretrained": timm's own; None: random for timm and vit, and
    # the source's for hf.
    weights: str | None = None
    height: int = 260
    width: int = 260
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    positions: int = 81  # N
    features: int = 1280  # C
    vit: VitConfig | None = None  # geometry, of the source vit


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


def build_encoder(config: VisionConfig) -> nn.Module:
    """Build an encoder without weights. Raises Blip2rtError."""
    kind, _, name = config.source.partition(":")
    if kind == "timm":
        return _TimmEncoder(name)
    if kind == "hf":
        return _HuggingFaceEncoder(name, pretrained=False)
    if kind == "vit" and config.vit is not None:
        return Vit(config.vit, config.height, config.width)
    raise Blip2rtError(f"vision source {config.source!r}: choose timm:NAME, hf:PATH or vit")


def load_encoder(config: VisionConfig, weights: Weights | None = None) -> nn.Module:
    """Build an encoder with its weights; a ViT's large ones stay on disk (see streaming.py). Raises Blip2rtError.

    weights: those that the config names, if they are open.
    """
    kind, _, name = config.source.partition(":")
    if config.weights in (None, PRETRAINED):
        if kind == "timm":
            return _TimmEncoder(name, pretrained=config.weights == PRETRAINED)
        return _HuggingFaceEncoder(name, pretrained=True) if kind == "hf" else build_encoder(config)
    weights = weights or Weights(resolve(str(config.weights)))
    if kind != "vit" and weights.source.is_file():
        return _TimmEncoder(name, weights) if kind == "timm" else _HuggingFaceEncoder(name, pretrained=True)
    with streaming.empty() if kind == "vit" else contextlib.nullcontext():
        encoder = build_encoder(config)
    if isinstance(encoder, Vit):
        readers = vit_readers(encoder, weights)
        streaming.bind(encoder, readers)
    else:  # one of our checkpoints contains the encoder
        wanted = {name: tuple(values.shape) for name, values in encoder.state_dict().items()}
        readers = weights.readers(wanted, lambda name: f"{TRAINED_PREFIX}{name}")
        encoder.load_state_dict({name: read() for name, read in readers.items()})
    return encoder


class _TimmEncoder(nn.Module):
    """timm's features before pooling and head."""

    def __init__(self, name: str, weights: Weights | None = None, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise Blip2rtError(f"timm is not installed: {pip_install('train')}") from error
        if not timm.is_model(name):
            raise Blip2rtError(f"vision source timm:{name}: timm has no such model: see timm.list_models()")
        model = timm.create_model(name, pretrained=pretrained)
        if weights is not None:
            with boundary(f"vision weights {str(weights.source)!r} cannot be read"):
                model.load_state_dict(_match_names(weights, model.state_dict()))
        model.reset_classifier(0)  # type: ignore[operator]
        self.model: nn.Module = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(pixels)  # type: ignore[operator]


class _HuggingFaceEncoder(nn.Module):
    """A vision model of transformers, or the vision part of another."""

    def __init__(self, name: str, *, pretrained: bool) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        with boundary(f"vision source hf:{name} cannot be loaded"), without_progress_bar():
            if has_adapter(Path(fetch(name))):
                raise ValueError("it holds an adapter of peft: merge it with merge_and_unload() and save the result")
            if pretrained:
                model = AutoModel.from_pretrained(fetch(name), trust_remote_code=False).float()
            else:
                config = AutoConfig.from_pretrained(fetch(name), trust_remote_code=False)
                config = getattr(config, "vision_config", config)
                model = AutoModel.from_config(config, trust_remote_code=False)
            self.model = getattr(model, "vision_model", model)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).last_hidden_state


def _match_names(weights: Weights, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Read tensors under the model's names: by name, or by order if the shapes agree. Raises Blip2rtError."""
    names, shapes = list(weights.shapes), list(weights.shapes.values())
    if weights.shapes.keys() == wanted.keys():
        names = list(wanted)
    elif shapes != [tuple(tensor.shape) for tensor in wanted.values()]:
        raise Blip2rtError(
            f"vision weights {str(weights.source)!r} do not fit: {len(names)} tensors there, {len(wanted)} in the "
            "model, and they agree neither by name nor by order and shape"
        )
    return {ours: weights.read(theirs) for ours, theirs in zip(wanted, names, strict=True)}
