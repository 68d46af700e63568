"""The image encoder: `pixels (B, 3, h, w) -> vision_features (B, N, C)`; frozen, unless a finetune trains it.

The paper's vision transformers, any timm model with `forward_features`, or a Hugging Face vision model; a grid
(B, C, h', w') is flattened to a sequence row by row. Knows nothing about queries or text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from blip2rt.errors import Blip2rtError, boundary
from blip2rt.install_hints import pip_install

from . import streaming
from .names import vit_name
from .sources import fetch, resolve
from .vit import Vit, VitConfig, resized_positions
from .weights import Reader, Weights, torch_state

PRETRAINED = "pretrained"
INSIDE = "vision.body."  # of a checkpoint of ours whose encoder was trained


@dataclass(frozen=True)
class VisionConfig:
    """Which encoder, which weights, and the images it expects."""

    source: str = "timm:tf_efficientnet_lite2"  # timm:NAME, hf:PATH-OR-HUB-ID, or vit, which `vit` describes
    # State dict file, or a checkpoint with an encoder; "pretrained": timm's own; None: random for timm and vit, hf has
    # its own.
    weights: str | None = None
    height: int = 260
    width: int = 260
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    positions: int = 81  # N
    features: int = 1280  # C
    vit: VitConfig | None = None  # geometry, of the source vit


def is_checkpoint(config: VisionConfig) -> bool:
    """Whether a training of ours has changed the weights of an encoder of timm or Hugging Face."""
    if config.source.partition(":")[0] == "vit" or config.weights in (None, PRETRAINED):
        return False
    assert config.weights is not None
    return Path(resolve(config.weights)).is_dir()


def freeze(module: nn.Module) -> nn.Module:
    """No gradients, no dropout, and no way back by a parent's `.train()`."""
    module.eval().requires_grad_(False)
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


class VisionEncoder(nn.Module):
    """An encoder behind one signature. `streamed`: a vit's weights stay on disk (see streaming.py). `empty`: it has no
    weights; under torch.device("meta") it takes no memory."""

    def __init__(self, config: VisionConfig, *, streamed: bool = False, empty: bool = False) -> None:
        super().__init__()
        self.config = config
        kind, _, name = config.source.partition(":")
        if empty:
            self.body: nn.Module = _without_weights(config)
        elif is_checkpoint(config):
            self.body = _from_checkpoint(config)
        elif kind == "timm":
            self.body = _timm_encoder(name, config.weights)
        elif kind == "hf":
            self.body = _hugging_face_encoder(resolve(name))
        elif kind == "vit":
            self.body = _vit(config)
        else:
            raise Blip2rtError(f"vision source {config.source!r}: choose timm:NAME, hf:PATH or vit")
        if not streamed:
            streaming.fill(self.body)
        freeze(self)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return _as_sequence(self.body(pixels))

    def unfreeze(self) -> None:
        """Gradients for every parameter that the features depend on. It stays in eval mode: no dropout, and the
        statistics of batch norms are those that it came with."""
        used = self._used()
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(name in used)

    def _used(self) -> set[str]:
        """Names of the parameters that the features depend on: some encoders have a head of which we do not ask."""
        config, body = self.config, self.body
        named = {n: p.detach().to("meta").requires_grad_() for n, p in body.named_parameters()}
        buffers = {n: b.to("meta") for n, b in body.named_buffers()}
        pixels = torch.zeros(1, 3, config.height, config.width, device="meta")
        features = _as_sequence(torch.func.functional_call(body, {**named, **buffers}, (pixels,)))
        found = torch.autograd.grad(features.sum(), list(named.values()), allow_unused=True)
        return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def longest_list(model: nn.Module) -> tuple[str, nn.Module]:
    """The layers of a model, and their name in it: its longest list of modules."""
    lists = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    return max(lists, key=lambda item: len(item[1]))


def layer_numbers(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter: 0 before the blocks (patches, positions), 1 to L in them, L + 1 behind them."""
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
    """(positions N, width C, parameters) of the encoder that the config names, without its weights.

    positions and features of the config are not looked at. Raises Blip2rtError.
    """
    with torch.device("meta"):
        body = _without_weights(config)
        try:
            features = _as_sequence(body.eval()(torch.zeros(1, 3, config.height, config.width)))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            size = f"{config.height} x {config.width}"
            raise Blip2rtError(f"{config.source} cannot read {size} pixels: {reason}") from error
    return features.shape[1], features.shape[2], sum(p.numel() for p in body.parameters())


def measured(config: VisionConfig) -> VisionConfig:
    """With positions and features as the encoder has them at the config's size. Raises Blip2rtError."""
    positions, features, _ = encoder_shape(config)
    return replace(config, positions=positions, features=features)


def resized(config: VisionConfig, size: int) -> VisionConfig:
    """The same encoder for square images of another size, position embeddings interpolated."""
    if config.vit is None:
        return measured(replace(config, height=size, width=size))
    patch = config.vit.patch
    if size < patch:
        raise Blip2rtError(f"the image size is {size}, less than a patch of {patch}")
    return replace(config, height=size, width=size, positions=1 + (size // patch) ** 2)


def _without_weights(config: VisionConfig) -> nn.Module:
    kind, _, name = config.source.partition(":")
    if kind == "timm":
        return _timm_encoder(name, None)
    if kind == "hf":
        return _HuggingFaceBody(_empty_hugging_face(name))
    if kind == "vit" and config.vit is not None:
        return Vit(config.vit, config.height, config.width)
    raise Blip2rtError(f"vision source {config.source!r}: choose timm:NAME, hf:PATH or vit")


def _from_checkpoint(config: VisionConfig) -> nn.Module:
    """An encoder of timm or Hugging Face that a training of ours has changed."""
    assert config.weights is not None
    body, weights = _without_weights(config), Weights(resolve(config.weights))
    wanted = {name: tuple(values.shape) for name, values in body.state_dict().items()}
    readers = weights.readers(wanted, lambda name: f"{INSIDE}{name}")
    body.load_state_dict({name: read() for name, read in readers.items()})
    return body


def _empty_hugging_face(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    with boundary(f"vision source hf:{name} cannot be loaded"):
        config = AutoConfig.from_pretrained(fetch(name), trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        model = AutoModel.from_config(config, trust_remote_code=False)
        return getattr(model, "vision_model", model)


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
        raise Blip2rtError(f"timm is not installed: {pip_install('train')}") from error
    if not timm.is_model(name):
        raise Blip2rtError(f"vision source timm:{name}: timm has no such model: see timm.list_models()")
    model = timm.create_model(name, pretrained=weights == PRETRAINED)
    if weights not in (None, PRETRAINED):
        assert weights is not None
        with boundary(f"vision weights {weights!r} cannot be read"):
            state = torch_state(Path(resolve(weights)))
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

    with boundary(f"vision source hf:{path} cannot be loaded"):
        model = AutoModel.from_pretrained(fetch(path), trust_remote_code=False).float()
    return _HuggingFaceBody(getattr(model, "vision_model", model))


def _vit(config: VisionConfig) -> Vit:
    assert config.vit is not None, "a vit's config says its geometry"
    if config.weights is None:
        return Vit(config.vit, config.height, config.width)
    with streaming.empty():
        vit = Vit(config.vit, config.height, config.width)
    streaming.bind(vit, _vit_readers(vit, Weights(resolve(config.weights))))
    return vit


def vit_style(weights: Weights) -> tuple[str, str] | None:
    """(prefix, style) of an encoder's names in `weights`: style is ours, hf, eva or clip. None: there is no encoder."""
    starts = {
        "ours": ((INSIDE,), "class_embedding"),
        "hf": (("vision_model.",), "embeddings.class_embedding"),
        "eva": (("visual_encoder.", ""), "cls_token"),
        "clip": (("visual_encoder.", "visual.", ""), "class_embedding"),
    }
    for style, (prefixes, name) in starts.items():
        for prefix in prefixes:
            if prefix + name in weights:
                return prefix, style
    return None


def _vit_readers(vit: Vit, weights: Weights) -> dict[str, Reader]:
    """Where each parameter's values are. Raises Blip2rtError: all that is missing or of another shape."""
    found = vit_style(weights)
    if found is None:
        raise Blip2rtError(
            f"{weights.source} holds no image encoder: give the file of EVA-CLIP ViT-g (eva_vit_g.pth), of CLIP ViT-L "
            "(clip_vit_L.pth), or a Hugging Face BLIP-2 folder"
        )
    prefix, style = found
    shapes = {name: tuple(parameter.shape) for name, parameter in vit.named_parameters()}
    special: dict[str, Reader] = {}
    for name in shapes:
        theirs = f"{prefix}{vit_name(name, style)}"
        if style == "eva" and name.endswith("qkv.bias") and theirs not in weights:
            special[name] = _joined_bias(weights, theirs[: -len("qkv.bias")])
        elif name in ("class_embedding", "position_embedding") and theirs in weights:
            special[name] = _row(weights, theirs, vit if name == "position_embedding" else None)
    return weights.readers(
        shapes, lambda name: None if (inner := vit_name(name, style)) is None else prefix + inner, special
    )


def _joined_bias(weights: Weights, attention: str) -> Reader:
    """EVA-CLIP keeps the biases of queries and values, and has none for keys."""

    def read() -> torch.Tensor:
        query, value = (weights.read(f"{attention}{name}_bias") for name in "qv")
        return torch.cat((query, torch.zeros_like(query), value))

    return read


def _row(weights: Weights, name: str, positions_of: Vit | None) -> Reader:
    """[CLS] or the position embeddings as (1, n, width), the latter of the grid that the encoder has."""

    def read() -> torch.Tensor:
        values = weights.read(name)
        values = values.reshape(1, -1, values.shape[-1])
        return values if positions_of is None else resized_positions(values, positions_of.grid)

    return read
