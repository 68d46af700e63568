"""A bundle -> its checkpoints, to continue training: `blip2rt-convert BUNDLE --to ours --out DIR`.

The trained parts are in the graphs, rounded as shipped, including a trained encoder. The config that the exporter left
in the bundle names the sources of other encoders and of the language model.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch

from blip2rt import bundle
from blip2rt.bundle import IMAGE_EMBED, ITM, QFORMER, TEXT_EMBED, VISION
from blip2rt.errors import Blip2rtError, boundary
from blip2rt.modeling.blip2 import Blip2, Blip2Config, TrainableModel
from blip2rt.modeling.checkpoint import WEIGHTS, save_model
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.modeling.sources import read_json
from blip2rt.modeling.vision import PRETRAINED, TRAINED_PREFIX, VisionConfig, VisionEncoder
from blip2rt.modeling.vit import find_style
from blip2rt.modeling.weights import Weights

from . import bundle_extras
from .parameters import convolutions, parameters

_GRAPHS = {1: (IMAGE_EMBED, TEXT_EMBED, ITM), 2: (QFORMER,)}
_NOT_IN_GRAPHS = ("lm_head.", "temperature")  # ITG's head starts fresh, the temperature is the manifest's
_PREFIX = "module.model."  # of parameter names in a graph
_ENCODER_PREFIX = "module."  # in the encoder's graph
ENCODER = "encoder"  # as vision.weights in a bundle: the weights are in its graph; unpacked, their folder


def config_file(stage: int) -> str:
    """The file in a bundle with the config of this stage."""
    return f"stage{stage}.json"


def save_config(config: Blip2Config, folder: Path) -> None:
    """Save a checkpoint's config in the bundle's folder."""
    if config.vision_trained or _is_own(config.vision):
        config = replace(config, vision=replace(config.vision, weights=ENCODER), vision_trained=False)
    (folder / config_file(config.stage)).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def _is_own(vision: VisionConfig) -> bool:
    """Whether the encoder's weights are in a checkpoint of ours, which may be their only copy."""
    if vision.weights in (None, PRETRAINED):
        return False
    folder = Path(str(vision.weights))
    if vision.vit is None:
        return folder.is_dir()
    own = folder / WEIGHTS
    return own.is_file() and find_style(Weights(own)) == (TRAINED_PREFIX, "ours")


def unpack(source: Path, folder: Path, out: Path) -> list[str]:
    """Write the checkpoints stage1, stage2 and encoder, as far as the bundle has them. Return their names.

    They are written into `folder`, which becomes `out`. Raises Blip2rtError.
    """
    found = replace(bundle.read(source), trusted_graphs=True)  # no graph is run
    files = found.manifest.files or {}
    stages = [stage for stage in _GRAPHS if config_file(stage) in files]
    if not stages:
        raise Blip2rtError(f"{source} has no config of its checkpoint (stage2.json): export the checkpoint again")
    with boundary(f"{source} cannot be converted to checkpoints"):  # its graphs and config are untrusted
        models: dict[str, TrainableModel] = {f"stage{stage}": _model(found, stage) for stage in stages}
        first = next(iter(models.values())).config
        if first.vision.weights == ENCODER:
            models = {ENCODER: _encoder(found, first), **models}
    for name, model in models.items():
        if model.config.vision.weights == ENCODER:
            model.config = replace(model.config, vision=replace(model.config.vision, weights=str(out / ENCODER)))
        (folder / name).mkdir(parents=True)
        save_model(model, folder / name)
    if "stage1" in models:
        bundle_extras.save(found, folder / "stage1")
    return list(models)


def _config(found: bundle.Bundle, stage: int) -> Blip2Config:
    with boundary(f"{found.file(config_file(stage))} is damaged, see blip2rt verify {found.path}"):
        return Blip2Config.from_json(read_json(found.file(config_file(stage))))


def _encoder(found: bundle.Bundle, config: Blip2Config) -> TrainableModel:
    """A checkpoint of the encoder alone. Batch norms are folded into the convolutions, and become identities.

    int8 weights stay rounded. Raises Blip2rtError if the graph lacks weights, as with int8 activations.
    """
    model = TrainableModel(Blip2Config(vision=config.vision, vision_trained=True, sources=config.sources))
    model.vision = encoder = VisionEncoder(config.vision, empty=True)
    path = found.checked_graph(VISION)
    values = parameters(path, _ENCODER_PREFIX)
    norms = _following_norms(encoder)
    for name, weight, bias in convolutions(path, _ENCODER_PREFIX):
        values[f"{name}.weight"] = weight
        owner = norms.get(name, name)
        if bias is not None:
            values[f"{owner}.bias"] = bias
        if owner != name:
            norm = encoder.get_submodule(owner)
            assert isinstance(norm, torch.nn.BatchNorm2d)
            values[f"{owner}.weight"] = torch.full_like(norm.weight, (1 + norm.eps) ** 0.5)
            values[f"{owner}.running_mean"] = torch.zeros_like(norm.weight)
            values[f"{owner}.running_var"] = torch.ones_like(norm.weight)
    own = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    faults = [name for name, value in own.items() if name not in values or values[name].shape != value.shape]
    if faults:
        raise Blip2rtError(f"{found.path}: its image encoder was trained, but its graph lacks {faults[0]}")
    encoder.load_state_dict({name: values[name] for name in own}, strict=False)
    return model


def _following_norms(encoder: VisionEncoder) -> dict[str, str]:
    """The batch norm after each convolution, by name."""
    named = {module: name for name, module in encoder.named_modules()}
    order: list[torch.nn.Module] = []
    kinds = torch.nn.Conv2d | torch.nn.BatchNorm2d
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in named
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        encoder(torch.zeros(1, 3, encoder.config.height, encoder.config.width))
    for hook in hooks:
        hook.remove()
    return {
        named[first]: named[second]
        for first, second in itertools.pairwise(order)
        if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d)
    }


def _model(found: bundle.Bundle, stage: int) -> Blip2:
    config = _config(found, stage)
    if config.llm is not None and config.llm.lora_rank:
        raise Blip2rtError(f"{found.path}: its language model has LoRA adapters, which are merged in the bundle")
    width = None if config.llm is None else LanguageModelSource(config.llm).hidden_size
    model = Blip2(config, llm_width=width)
    if stage == 1 and found.manifest.retrieval is not None:
        torch.nn.init.constant_(model.temperature, found.manifest.retrieval.temperature)
    values: dict[str, torch.Tensor] = {}
    for name in _GRAPHS[stage]:
        values |= parameters(found.checked_graph(name), _PREFIX)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    unused: tuple[str, ...] = _NOT_IN_GRAPHS
    if stage == 2:  # the last layer's text output is not used
        unused += (f"qformer.layers.{config.qformer.layers - 1}.text_ffn.",)
    missing = [name for name in own if name not in values and not name.startswith(unused)]
    misshaped = [name for name, value in values.items() if name in own and value.shape != own[name]]
    if missing or misshaped:
        what = ", ".join(sorted(missing + misshaped)[:6])
        whole = config.vision.weights if config.vision.vit is not None else None  # Hugging Face's folder, LAVIS' file
        fix = f": start from {whole}, which it was made of" if whole else ""
        raise Blip2rtError(f"{found.path}: its graphs of stage {stage} lack {what}, or have other shapes{fix}")
    model.load_state_dict({name: value for name, value in values.items() if name in own}, strict=False)
    return model
