"""Checkpoints on disk: `config.json` and `model.safetensors` (trained tensors; frozen parts by their source).

Also the start of a training: BERT into a fresh Q-Former, stage 1 into stage 2. Knows files and names, nothing about steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from blip2rt.errors import Blip2rtError

from .blip2 import Blip2, Blip2Config
from .llm import load_tokenizer
from .qformer import load_bert
from .sources import resolve

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def read_config(folder: str | Path) -> Blip2Config:
    """The config of a checkpoint folder."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise Blip2rtError(f"{folder} is no checkpoint: it has no {CONFIG}; give the folder that training wrote")
    return Blip2Config.from_json(json.loads(path.read_text()))


def save_model(model: Blip2, folder: str | Path) -> None:
    """Write config and trained tensors into an existing folder."""
    save_file({k: v.contiguous() for k, v in model.trained_state().items()}, Path(folder) / WEIGHTS)
    (Path(folder) / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def load_model(folder: str | Path, *, vision: bool = True, llm: bool = True) -> Blip2:
    """Rebuild a model, frozen parts included unless declined, in eval mode."""
    model = Blip2(read_config(folder), vision=vision, llm=llm)
    _load(model, load_file(Path(folder) / WEIGHTS), str(folder))
    return model.eval()


def _load(model: Blip2, state: dict[str, torch.Tensor], source: str) -> None:
    wanted = model.trained_state()
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    misshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    if missing or extra or misshaped:
        raise Blip2rtError(
            f"{source} does not fit its config: missing {sorted(missing)}, unknown {sorted(extra)}, "
            f"of other shape {sorted(misshaped)}"
        )
    model.load_state_dict(state, strict=False)


def init_from_bert(model: Blip2) -> None:
    """Initialise the Q-Former from the BERT-family checkpoint that the config names."""
    folder = Path(resolve(model.config.qformer_init))
    load_bert(model.qformer, load_file(folder / WEIGHTS))


def init_from_stage1(model: Blip2, folder: str | Path) -> None:
    """Carry the query branch of a stage-1 checkpoint into a stage-2 model; text branch and heads are left behind."""
    state = load_file(Path(folder) / WEIGHTS)
    own = model.trained_state()
    shared = {name: tensor for name, tensor in state.items() if name in own}
    misshaped = [name for name in shared if shared[name].shape != own[name].shape]
    fresh = {name for name in own.keys() - shared.keys() if not name.startswith(("projection", "prefix_norm"))}
    if misshaped or fresh:
        raise Blip2rtError(f"{folder} does not fit: lacks {sorted(fresh)}, other shapes {sorted(misshaped)}")
    model.load_state_dict(shared, strict=False)


def qformer_tokenizer(config: Blip2Config) -> Any:
    """BERT's tokenizer with [DEC] (id 30522) added, as the ITG loss needs it."""
    tokenizer = load_tokenizer(config.qformer_init)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
