"""Checkpoints on disk: ours, Hugging Face's folders and LAVIS' files, read into one model.

Ours is `config.json` and `model.safetensors` (trained tensors; frozen parts by their source). Also the start of a
training: BERT into a fresh Q-Former, one checkpoint's tensors into another model. Knows files and names, no steps.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from blip2rt.bundle.names import MANIFEST
from blip2rt.errors import Blip2rtError, boundary

from . import hugging_face, lavis, streaming
from .adapters import is_adapter
from .blip2 import Blip2, Blip2Config, Trained
from .json_file import read_json, require_bounds
from .llm import load_llm, load_tokenizer
from .names import hugging_face_name
from .qformer import load_bert, load_bert_head
from .quantize import round_weights
from .sources import fetch
from .vision import VisionEncoder
from .vit import resized_positions
from .weights import Reader, Weights

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
POSITIONS = "vision_positions"
_STEP = re.compile(r"step-\d+")  # what a training writes; a copy of another name is its user's


def read_config(source: str | Path, parts: lavis.Parts = lavis.NO_PARTS) -> Blip2Config:
    """The config of a checkpoint of any format; `parts` say what it leaves out."""
    path = locate(source)
    if path.is_file():
        with boundary(f"checkpoint {path} is damaged"):
            return _with_tokenizers(lavis.read_config(path, parts), parts)
    with boundary(f"checkpoint {path}: its {CONFIG} is damaged"):
        if hugging_face.is_hugging_face(path):
            config = hugging_face.read_config(path, parts.tokenizer)
        else:
            config = _at(Blip2Config.from_json(read_json(path / CONFIG)), path)
        require_bounds(config.to_json())
        return _with_tokenizers(config, parts)


def _with_tokenizers(config: Blip2Config, parts: lavis.Parts) -> Blip2Config:
    """The tokenizers that were named stand for the checkpoint's own."""
    of_qformer = parts.qformer_tokenizer or (parts.tokenizer if config.stage == 1 else None)
    if of_qformer is not None:
        config = replace(config, qformer_init=of_qformer)
    if parts.tokenizer is not None and config.llm is not None:
        config = replace(config, llm=replace(config.llm, tokenizer=parts.tokenizer))
    return config


def _at(config: Blip2Config, folder: Path) -> Blip2Config:
    """What the checkpoint itself holds of encoder and LLM is found in it, wherever it has been moved."""
    vision, llm = config.vision, config.llm
    if config.vision_trained:
        vision = replace(vision, weights=str(folder))
    if llm is not None and llm.lora_rank:
        llm = replace(llm, adapters=str(folder))
    return replace(config, vision=vision, llm=llm)


def save_model(model: Trained, folder: str | Path, trained: dict[str, torch.Tensor] | None = None) -> None:
    """Write config and trained tensors into an existing folder; `trained`: these, where the model has parts of them."""
    trained = model.trained_state() if trained is None else trained
    save_file({k: v.contiguous() for k, v in trained.items()}, Path(folder) / WEIGHTS)
    (Path(folder) / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints `step-NNNNNN` of a training's folder, oldest first."""
    steps = {int(path.name[5:]): path for path in Path(run).glob("step-*") if _STEP.fullmatch(path.name)}
    return [path for _, path in sorted(steps.items()) if (path / CONFIG).is_file()]


def locate(source: str | Path) -> Path:
    """A checkpoint: a folder, the newest one of a training's folder, a LAVIS file, or a hub id, which is downloaded."""
    path = Path(fetch(str(source)))
    if path.is_file() or (path / CONFIG).is_file():
        return path
    if (path / MANIFEST).is_file():
        raise Blip2rtError(
            f"{path} is a bundle: blip2rt-convert {path} --to ours --out DIR makes the checkpoints DIR/stage1 and "
            "DIR/stage2 of it"
        )
    found = list_checkpoints(path)
    if not found:
        raise Blip2rtError(f"{path} is no checkpoint: it has neither {CONFIG} nor step-* folders")
    return found[-1]


def load_model(
    source: str | Path, *, vision: bool = True, llm: bool = True, streamed: bool = False,
    config: Blip2Config | None = None, parts: lavis.Parts = lavis.NO_PARTS,
) -> Blip2:  # fmt: skip
    """Rebuild a model, frozen parts included unless declined, in eval mode.

    streamed: large weights stay on disk (see streaming.py). config: instead of the checkpoint's own, of the same
    geometry. Raises Blip2rtError: every fault of every part.
    """
    path = locate(source)
    config = read_config(path, parts) if config is None else config
    with streaming.empty(), boundary(f"checkpoint {path}: its {CONFIG} describes no model"):
        model = Blip2(config, vision=False, llm=False)
    faults: list[str] = []
    try:
        streaming.bind(model, _trained_readers(model, path))
        if config.qformer_bits:
            round_weights(model, config.qformer_bits, config.qformer_block)
    except Blip2rtError as error:
        faults.append(str(error))
    try:
        with boundary(f"checkpoint {path}: its image encoder cannot be built"):
            if vision:
                model.vision = VisionEncoder(config.vision, streamed=streamed)
    except Blip2rtError as error:
        faults.append(str(error))
    try:
        if llm and config.llm is not None:
            model.llm = load_llm(config.llm, streamed=streamed)
    except Blip2rtError as error:
        faults.append(str(error))
    if faults:
        raise Blip2rtError("; ".join(dict.fromkeys(faults)))
    if not streamed:
        streaming.fill(model)
    return model.eval()


def _trained_readers(model: Blip2, path: Path) -> dict[str, Reader]:
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if path.is_file():
        return lavis.readers(Weights(path), wanted)
    if not hugging_face.is_hugging_face(path):
        weights = Weights(path / WEIGHTS)
        unknown = sorted(n for n in weights.shapes.keys() - wanted.keys() if not n.startswith(("vision.", "llm.")))
        if unknown:
            raise Blip2rtError(f"{path} does not fit its {CONFIG}: unknown {', '.join(unknown)}")
        return _own_readers(weights, wanted)
    own = path / hugging_face.OWN_WEIGHTS
    extra = Weights(own) if own.is_file() else None
    beside = {name: shape for name, shape in wanted.items() if hugging_face_name(name) is None}
    theirs = {name: shape for name, shape in wanted.items() if name not in beside}
    readers = Weights(path).readers(theirs, hugging_face_name)
    if extra is not None:
        return readers | extra.readers(beside, lambda name: name)
    fresh = dict(Blip2(model.config, vision=False, llm=False).named_parameters())  # a temperature, a head never used
    return readers | {name: fresh[name].detach for name in beside}


def _own_readers(weights: Weights, wanted: dict[str, tuple[int, ...]]) -> dict[str, Reader]:
    """What reads the tensors of a file of ours. Positions that were learned on another square grid are interpolated."""
    ours, theirs = wanted.get(POSITIONS), weights.shapes.get(POSITIONS)
    if ours is None or theirs is None or ours == theirs or ours[2:] != theirs[2:]:
        return weights.readers(wanted, lambda name: name)
    (side, first), (_, before) = _grid(ours[1]), _grid(theirs[1])
    if first > 1 or first != before:
        return weights.readers(wanted, lambda name: name)
    readers = weights.readers(wanted | {POSITIONS: theirs}, lambda name: name)
    read = readers[POSITIONS]
    return readers | {POSITIONS: lambda: resized_positions(read(), (side, side), first)}


def _grid(positions: int) -> tuple[int, int]:
    """The side of a square grid, and what is left: 1 for [CLS]."""
    side = math.isqrt(positions)
    return side, positions - side**2


def load_weights(model: Trained, folder: str | Path) -> None:
    """Trained tensors of a checkpoint folder of ours into a model of the same config."""
    source = str(folder)
    with boundary(f"{Path(folder) / WEIGHTS} cannot be read, name a whole checkpoint"):
        state = load_file(Path(folder) / WEIGHTS)
    wanted = model.trained_state()
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    misshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    if missing or extra or misshaped:
        raise Blip2rtError(
            f"{source} does not fit its config: missing {sorted(missing)}, unknown {sorted(extra)}, "
            f"of other shape {sorted(misshaped)}"
        )
    model.load_state_dict(state, strict=False)


def read_bert_geometry(source: str) -> dict[str, Any]:
    """The fields of QFormerConfig that follow from a BERT-family folder (one more word for [DEC])."""
    path = Path(fetch(source)) / CONFIG
    if not path.is_file():
        raise Blip2rtError(f"qformer_init {source!r}: there is no {CONFIG} in {path.parent}")
    with boundary(f"qformer_init {source!r}: its {CONFIG} is not BERT's"):
        bert = read_json(path)
        faults = [
            f"{name} is {bert[name]!r}, and a Q-Former has {supported!r}"
            for name, supported in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"))
            if bert.get(name, supported) != supported
        ]
        if faults:
            raise Blip2rtError(f"qformer_init {source!r}: {'; '.join(faults)}: give a BERT that has it too")
        return {
            "hidden_size": bert["hidden_size"],
            "layers": bert["num_hidden_layers"],
            "heads": bert["num_attention_heads"],
            "intermediate_size": bert["intermediate_size"],
            "vocab_size": bert["vocab_size"] + 1,
            "max_positions": bert["max_position_embeddings"],
            "layer_norm_eps": bert["layer_norm_eps"],
        }


def init_from_bert(model: Blip2) -> None:
    """Initialise the Q-Former, and ITG's head, from the BERT-family checkpoint that the config names."""
    folder = Path(fetch(model.config.qformer_init))
    with boundary(f"qformer_init {model.config.qformer_init!r} cannot be read"):
        state = load_file(folder / WEIGHTS)
        load_bert(model.qformer, state)
        if model.config.stage == 1:
            load_bert_head(model.lm_head, state)


def init_from_stage1(
    model: Blip2, folder: str | Path, fresh_layers: int = 0, parts: lavis.Parts = lavis.NO_PARTS
) -> None:
    """Carry the query branch of a stage-1 checkpoint of any format into a stage-2 model; the rest is left behind.

    fresh_layers: so many of the last layers start from BERT instead. ITC and ITM make the last layer their own head,
    behind which all queries of an image say much the same; ITG reads the layers' inputs and keeps those below apart.
    """
    if fresh_layers:
        init_from_bert(model)
    count = len(model.qformer.layers)
    fresh = tuple(f"qformer.layers.{index}." for index in range(count - fresh_layers, count))
    init_from(model, folder, ("projection", "prefix_norm", "query_offsets", *fresh), parts)


def init_from(
    model: Blip2, source: str | Path, fresh: tuple[str, ...] = (), parts: lavis.Parts = lavis.NO_PARTS
) -> None:
    """Carry the trained tensors of a checkpoint of any format into a model, whose encoder and LLM stay as they are.

    What begins with a name of `fresh` stays as it is, what the model lacks is left behind; learned positions of another
    square grid are interpolated. Raises Blip2rtError.
    """
    config = read_config(source, parts)
    config = replace(config, vision=replace(config.vision, positions=model.config.vision.positions))
    state = load_model(source, vision=False, llm=False, parts=parts, config=config).trained_state()
    own = {name: t for name, t in model.trained_state().items() if not name.startswith(("vision.", "llm."))}
    shared = {name: tensor for name, tensor in state.items() if name in own and not name.startswith(fresh)}
    misshaped = [name for name in shared if shared[name].shape != own[name].shape]
    missing = {name for name in own.keys() - shared.keys() if not name.startswith(fresh)}
    if misshaped or missing:
        faults = [f"lacks {', '.join(sorted(missing))}"] * bool(missing)
        faults += [f"has other shapes of {', '.join(sorted(misshaped))}"] * bool(misshaped)
        raise Blip2rtError(f"{source} does not fit: {'; '.join(faults)}")
    model.load_state_dict(shared, strict=False)


def init_adapters(model: Blip2, source: str | Path) -> None:
    """Carry the LLM's adapters of a checkpoint of ours into a model that has such."""
    weights = Weights(locate(source) / WEIGHTS)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters() if is_adapter(n)}
    readers = weights.readers(wanted, lambda name: name)
    model.load_state_dict({name: read() for name, read in readers.items()}, strict=False)


def qformer_tokenizer(config: Blip2Config) -> Any:
    """BERT's tokenizer with [DEC] (id 30522) added, as the ITG loss needs it."""
    tokenizer = load_tokenizer(config.qformer_init)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
