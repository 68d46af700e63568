"""A bundle -> the checkpoints that it was made of: `blip2rt-convert BUNDLE --to ours DIR`. Trainings start from them.

What was trained lies in the graphs, rounded as it ships, an encoder that was trained too; other encoders and the
language model are named in the config that the exporter leaves beside them. Knows models; nothing about training.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch

from blip2rt import bundle
from blip2rt.bundle import IMAGE_EMBED, ITM, QFORMER, TEXT_EMBED, VISION
from blip2rt.errors import Blip2rtError, boundary
from blip2rt.modeling.blip2 import Blip2, Blip2Config, Trained
from blip2rt.modeling.checkpoints import WEIGHTS, save_model
from blip2rt.modeling.json_file import read_json
from blip2rt.modeling.sources import resolve
from blip2rt.modeling.vision import INSIDE, VisionConfig, VisionEncoder, is_checkpoint, vit_style
from blip2rt.modeling.weights import Weights
from blip2rt.untrusted.graphs import checked_graph

from .parameters import convolutions, parameters

_GRAPHS = {1: (IMAGE_EMBED, TEXT_EMBED, ITM), 2: (QFORMER,)}
_NOWHERE = ("lm_head.", "temperature")  # what no graph needs: ITG's head starts anew, the temperature is the manifest's
_PREFIX = "module.model."  # of a parameter's name in a graph
_ENCODER_PREFIX = "module."  # in the encoder's
ENCODER = "encoder"  # in such a config: weights that are nowhere but in the bundle; unpacked, the folder of them


def config_file(stage: int) -> str:
    """Name the file of the config that a bundle's graphs of this stage were made from."""
    return f"stage{stage}.json"


def save_config(config: Blip2Config, folder: Path) -> None:
    """Leave a checkpoint's config in the bundle's folder."""
    if config.vision_trained or _is_own(config.vision):
        config = replace(config, vision=replace(config.vision, weights=ENCODER), vision_trained=False)
    (folder / config_file(config.stage)).write_text(json.dumps(config.to_json(), indent=2) + "\n")


def _is_own(vision: VisionConfig) -> bool:
    """Whether the encoder's weights lie in a checkpoint of ours, where alone they may be."""
    if vision.vit is None or vision.weights is None:
        return is_checkpoint(vision)
    own = Path(resolve(vision.weights)) / WEIGHTS
    return own.is_file() and vit_style(Weights(own)) == (INSIDE, "ours")


def unpack(source: Path, folder: Path, out: Path) -> list[str]:
    """Write stage1 and stage2, those that the bundle has, and encoder where that was trained. Return their names.

    They are written into `folder`, which will be `out`. Raises Blip2rtError.
    """
    found = bundle.read(source)
    files = found.manifest.files or {}
    stages = [stage for stage in _GRAPHS if config_file(stage) in files]
    if not stages:
        raise Blip2rtError(f"{source} does not say what it was made of (stage2.json): export the checkpoint again")
    with boundary(f"{source} cannot be taken back to checkpoints"):  # the graphs and their config may be anyone's
        models: dict[str, Trained] = {f"stage{stage}": _model(found, _config(found, stage), stage) for stage in stages}
        first = next(iter(models.values())).config
        if first.vision.weights == ENCODER:
            models = {ENCODER: _encoder(found, first), **models}
    for name, model in models.items():
        if model.config.vision.weights == ENCODER:
            model.config = replace(model.config, vision=replace(model.config.vision, weights=str(out / ENCODER)))
        (folder / name).mkdir(parents=True)
        save_model(model, folder / name)
    return list(models)


def _config(found: bundle.Bundle, stage: int) -> Blip2Config:
    with boundary(f"{found.file(config_file(stage))} is damaged, see blip2rt verify {found.path}"):
        return Blip2Config.from_json(read_json(found.file(config_file(stage))))


def _encoder(found: bundle.Bundle, config: Blip2Config) -> Trained:
    """Make a checkpoint of the encoder alone. Batch norms are in the convolutions, and have nothing left to do.

    Weights in int8 stay as they were rounded. Raises Blip2rtError: the graph does not say them, as with int8
    activations.
    """
    model = Trained(Blip2Config(vision=config.vision, vision_trained=True, sources=config.sources))
    model.vision = encoder = VisionEncoder(config.vision, empty=True)
    path = checked_graph(found, VISION)
    values = parameters(path, _ENCODER_PREFIX)
    behind = _norms_behind(encoder)
    for name, weight, bias in convolutions(path, _ENCODER_PREFIX):
        values[f"{name}.weight"] = weight
        owner = behind.get(name, name)
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
        raise Blip2rtError(f"{found.path}: its image encoder was trained, and its graph does not hold {faults[0]}")
    encoder.load_state_dict({name: values[name] for name in own}, strict=False)
    return model


def _norms_behind(encoder: VisionEncoder) -> dict[str, str]:
    """Find the batch norm that reads each convolution, by name."""
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


def _model(found: bundle.Bundle, config: Blip2Config, stage: int) -> Blip2:
    if config.llm is not None and config.llm.lora_rank:
        raise Blip2rtError(f"{found.path}: its language model learned by LoRA, and is in the bundle with that added")
    model = Blip2(config, vision=False, llm=False)
    if stage == 1 and found.manifest.retrieval is not None:
        torch.nn.init.constant_(model.temperature, found.manifest.retrieval.temperature)
    values: dict[str, torch.Tensor] = {}
    for name in _GRAPHS[stage]:
        values |= parameters(checked_graph(found, name), _PREFIX)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    nowhere: tuple[str, ...] = _NOWHERE
    if stage == 2:  # nobody reads what the last layer says of a question
        nowhere += (f"qformer.layers.{config.qformer.layers - 1}.text_ffn.",)
    missing = [name for name in own if name not in values and not name.startswith(nowhere)]
    misshaped = [name for name, value in values.items() if name in own and value.shape != own[name]]
    if missing or misshaped:
        what = ", ".join(sorted(missing + misshaped)[:6])
        whole = config.vision.weights if config.vision.vit is not None else None  # Hugging Face's folder, LAVIS' file
        fix = f": start from {whole}, which it was made of" if whole else ""
        raise Blip2rtError(f"{found.path}: its graphs of stage {stage} do not hold {what}, or in another shape{fix}")
    model.load_state_dict({name: value for name, value in values.items() if name in own}, strict=False)
    return model
