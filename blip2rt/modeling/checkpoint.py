"""A checkpoint of any format, opened once: ours, Hugging Face's folders and LAVIS' files, read into one model.

    checkpoint = Checkpoint("runs/stage2")
    checkpoint.config, checkpoint.language_model.tokenizer    # read on first use, and then kept
    model = checkpoint.load()

Ours is `config.json` and `model.safetensors` (trained tensors; the config names the sources of the frozen parts). Does
not know about training steps.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError, boundary, collected

from . import hugging_face, lavis, streaming
from .adapters import is_adapter
from .bert import BertSource
from .blip2 import Blip2, Blip2Config, TrainableModel
from .llm import LanguageModelSource, LlmConfig
from .names import hugging_face_name
from .peft_folder import base_of
from .preprocessing import find_processor
from .quantize import round_weights
from .sources import CONFIG as CONFIG
from .sources import NO_PARTS, ExternalParts, read_json, require_bounds
from .sources import WEIGHTS as WEIGHTS
from .sources import list_checkpoints as list_checkpoints
from .sources import locate as locate
from .vision import VisionEncoder, resized
from .vit import resized_positions
from .weights import Reader, Weights

_POSITIONS = "vision_positions"


class Checkpoint:
    """A checkpoint of any format; each part is read at most once, on first use.

    source: a folder, a training's folder (its newest checkpoint), a LAVIS file, or a hub id. parts: what the checkpoint
    does not contain. Everything raises Blip2rtError.
    """

    def __init__(self, source: str | Path, parts: ExternalParts = NO_PARTS) -> None:
        self.source, self.parts = str(source), parts

    def with_config(self, config: Blip2Config) -> Checkpoint:
        """The same checkpoint with another config of the same geometry; whatever was read is kept."""
        other, language = copy.copy(self), self.language_model
        if language is not None and config.llm is not None:
            language = language.with_config(config.llm)
        for derived in ("config", "language_model", "bert"):
            vars(other).pop(derived, None)
        other._read = config, language
        return other

    def with_image_size(self, size: int | None) -> Checkpoint:
        """The same checkpoint for square images of another size; None: its own."""
        config = self.config
        return self if size is None else self.with_config(replace(config, vision=resized(config.vision, size)))

    @cached_property
    def path(self) -> Path:
        """The local folder or file; a hub repository is downloaded."""
        return locate(self.source)

    @cached_property
    def base(self) -> Path:
        """`path`; of an adapter that peft saved, the folder of its base, which has config, tokenizer and processor."""
        return Path(base_of(str(self.path)))

    @cached_property
    def stored_config(self) -> dict[str, Any]:
        """config.json as it is stored, in our or Hugging Face's format."""
        data = read_json(self.base / CONFIG)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        return data

    @property
    def is_hugging_face(self) -> bool:
        """Whether it is a folder in Hugging Face's format, of whatever architecture."""
        return not self.path.is_file() and "model_type" in self.stored_config

    @property
    def assumption(self) -> str | None:
        """A sentence on the preprocessing, if a folder of Hugging Face's does not say how."""
        if not self.is_hugging_face or find_processor(self.base) is not None:
            return None
        return f"{self.source} has no image processor: BLIP-2's own mean, deviation and filter are assumed"

    @cached_property
    def _read(self) -> tuple[Blip2Config, LanguageModelSource | None]:
        """The config and its language model."""
        path, parts = self.path, self.parts
        if path.is_file():
            with boundary(f"checkpoint {path} is damaged"):
                config, language = lavis.read_config(self.weights, parts)
                return _with_tokenizers(config, parts), language
        with boundary(f"checkpoint {path}: its {CONFIG} is damaged"):
            if self.is_hugging_face:
                folder = LanguageModelSource(LlmConfig(source=str(path), tokenizer=parts.tokenizer))
                config = hugging_face.read_config(path, self.base, self.stored_config, folder)
            else:
                config = _relocated(Blip2Config.from_json(self.stored_config), path)
                folder = LanguageModelSource(config.llm or LlmConfig())
            require_bounds(config.to_json())
            config = _with_tokenizers(config, parts)
        return config, None if config.llm is None else folder.with_config(config.llm)

    @cached_property
    def config(self) -> Blip2Config:
        """The model's config; LAVIS' and Hugging Face's are translated to ours."""
        return self._read[0]

    @cached_property
    def language_model(self) -> LanguageModelSource | None:
        """The frozen language model with its tokenizer; None in stage 1."""
        return self._read[1]

    @cached_property
    def bert(self) -> BertSource:
        """The BERT behind the Q-Former; its tokenizer is the Q-Former's."""
        return BertSource(self.config.qformer_init)

    @cached_property
    def weights(self) -> Weights:
        """The tensors: trained ones, and in Hugging Face's folders frozen ones too."""
        return Weights(self.path)

    def load(self, *, vision: bool = True, llm: bool = True, streamed: bool = False) -> Blip2:
        """Build the model in eval mode, with its frozen parts unless declined.

        streamed: large weights stay on disk (see streaming.py). Raises Blip2rtError, which lists the faults of all
        parts.
        """
        path, config, model = self.path, self.config, self._empty()
        faults: list[str] = []
        with collected(faults):
            streaming.bind(model, self._trained_readers(model))
            if config.qformer_bits:
                round_weights(model, config.qformer_bits, config.qformer_block)
        with collected(faults), boundary(f"checkpoint {path}: its image encoder cannot be built"):
            if vision:
                opened = self.weights if config.vision.weights == str(path) else None
                model.vision = VisionEncoder(config.vision, streamed=streamed, weights=opened)
        with collected(faults):
            if llm and self.language_model is not None:
                opened = self.weights if self.language_model.config.source == str(path) else None
                model.llm = self.language_model.load(streamed=streamed, weights=opened)
        if faults:
            raise Blip2rtError("; ".join(dict.fromkeys(faults)))
        if not streamed:
            streaming.fill(model)
        return model.eval()

    def load_into(self, model: Blip2, fresh: tuple[str, ...] = ()) -> None:
        """Copy the trained tensors into a model, but not its encoder's and language model's.

        Names that begin with one of `fresh`, and tensors that the model lacks, are skipped; learned positions of
        another square grid are interpolated. Raises Blip2rtError.
        """
        vision = replace(self.config.vision, positions=model.config.vision.positions)
        state = self.with_config(replace(self.config, vision=vision)).load(vision=False, llm=False).trained_state()
        own = {name: t for name, t in model.trained_state().items() if not name.startswith(("vision.", "llm."))}
        shared = {name: tensor for name, tensor in state.items() if name in own and not name.startswith(fresh)}
        misshaped = [name for name in shared if shared[name].shape != own[name].shape]
        missing = {name for name in own.keys() - shared.keys() if not name.startswith(fresh)}
        if misshaped or missing:
            faults = [f"lacks {', '.join(sorted(missing))}"] * bool(missing)
            faults += [f"has other shapes of {', '.join(sorted(misshaped))}"] * bool(misshaped)
            raise Blip2rtError(f"{self.source} does not fit: {'; '.join(faults)}")
        model.load_state_dict(shared, strict=False)

    def load_adapters_into(self, model: Blip2) -> None:
        """Copy the language model's adapters, of a checkpoint of ours, into a model that has them too."""
        wanted = {n: tuple(p.shape) for n, p in model.named_parameters() if is_adapter(n)}
        readers = self.weights.readers(wanted, lambda name: name)
        model.load_state_dict({name: read() for name, read in readers.items()}, strict=False)

    def _empty(self) -> Blip2:
        """The model without values and frozen parts."""
        width = None if self.language_model is None else self.language_model.hidden_size
        with streaming.empty(), boundary(f"checkpoint {self.path}: its {CONFIG} describes no model"):
            return Blip2(self.config, llm_width=width)

    def _trained_readers(self, model: Blip2) -> dict[str, Reader]:
        wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if self.path.is_file():
            return lavis.readers(self.weights, wanted)
        if not self.is_hugging_face:
            return self._own_readers(wanted)
        extra = {name: shape for name, shape in wanted.items() if hugging_face_name(name) is None}
        standard = {name: shape for name, shape in wanted.items() if name not in extra}
        readers = self.weights.readers(standard, hugging_face_name)
        file = self.base / hugging_face.OWN_WEIGHTS
        if file.is_file():
            return readers | Weights(file).readers(extra, lambda name: name)
        width = None if self.language_model is None else self.language_model.hidden_size
        fresh = dict(Blip2(self.config, llm_width=width).named_parameters())  # temperature and ITG's head: not used
        return readers | {name: fresh[name].detach for name in extra}

    def _own_readers(self, wanted: dict[str, tuple[int, ...]]) -> dict[str, Reader]:
        """Readers for a checkpoint of ours. Positions that were learned on another square grid are interpolated."""
        weights = self.weights
        unknown = sorted(n for n in weights.shapes.keys() - wanted.keys() if not n.startswith(("vision.", "llm.")))
        if unknown:
            raise Blip2rtError(f"{self.path} does not fit its {CONFIG}: unknown {', '.join(unknown)}")
        ours, theirs = wanted.get(_POSITIONS), weights.shapes.get(_POSITIONS)
        if ours is None or theirs is None or ours == theirs or ours[2:] != theirs[2:]:
            return weights.readers(wanted, lambda name: name)
        (side, first), (_, before) = _grid(ours[1]), _grid(theirs[1])
        if first > 1 or first != before:
            return weights.readers(wanted, lambda name: name)
        readers = weights.readers(wanted | {_POSITIONS: theirs}, lambda name: name)
        read = readers[_POSITIONS]
        return readers | {_POSITIONS: lambda: resized_positions(read(), (side, side), first)}


def _with_tokenizers(config: Blip2Config, parts: ExternalParts) -> Blip2Config:
    """The config with the named tokenizers in place of the checkpoint's own."""
    of_qformer = parts.qformer_tokenizer or (parts.tokenizer if config.stage == 1 else None)
    if of_qformer is not None:
        config = replace(config, qformer_init=of_qformer)
    if parts.tokenizer is not None and config.llm is not None:
        config = replace(config, llm=replace(config.llm, tokenizer=parts.tokenizer))
    return config


def _relocated(config: Blip2Config, folder: Path) -> Blip2Config:
    """The config of a checkpoint of ours: a trained encoder and adapters are in it, wherever it is now."""
    vision, llm = config.vision, config.llm
    if config.vision_trained:
        vision = replace(vision, weights=str(folder))
    if llm is not None and llm.lora_rank:
        llm = replace(llm, adapters=str(folder))
    return replace(config, vision=vision, llm=llm)


def _grid(positions: int) -> tuple[int, int]:
    """The side of a square grid, and the number of other positions: 1 for [CLS]."""
    side = math.isqrt(positions)
    return side, positions - side**2


def save_model(model: TrainableModel, folder: str | Path, trained: dict[str, torch.Tensor] | None = None) -> None:
    """Write config and trained tensors into an existing folder; `trained`: the tensors, if the model is sharded."""
    trained = model.trained_state() if trained is None else trained
    save_file({k: v.contiguous() for k, v in trained.items()}, Path(folder) / WEIGHTS)
    (Path(folder) / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def load_weights(model: TrainableModel, folder: str | Path) -> None:
    """Load the exact trained tensors of a checkpoint of ours into a model of the same config."""
    with boundary(f"{Path(folder) / WEIGHTS} cannot be read, name a whole checkpoint"):
        state = load_file(Path(folder) / WEIGHTS)
    wanted = model.trained_state()
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    misshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    if missing or extra or misshaped:
        raise Blip2rtError(
            f"{folder} does not fit its config: missing {sorted(missing)}, unknown {sorted(extra)}, "
            f"of other shape {sorted(misshaped)}"
        )
    model.load_state_dict(state, strict=False)
