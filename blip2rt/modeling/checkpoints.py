"""Checkpoints on disk: `config.json` and `model.safetensors` (trained tensors; frozen parts by their source).

Also the start of a training: BERT into a fresh Q-Former, stage 1 into stage 2. Knows files and names, no steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
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
    return Blip2Config.from_json(json.loads((locate(folder) / CONFIG).read_text()))


def save_model(model: Blip2, folder: str | Path) -> None:
    """Write config and trained tensors into an existing folder."""
    save_file({k: v.contiguous() for k, v in model.trained_state().items()}, Path(folder) / WEIGHTS)
    (Path(folder) / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n")


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints `step-NNNNNN` of a training's folder, oldest first."""
    return sorted(path for path in Path(run).glob("step-*") if (path / CONFIG).is_file())


def locate(folder: str | Path) -> Path:
    """A checkpoint folder as it is, or the newest checkpoint of a training's folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Blip2rtError(f"checkpoint {str(folder)!r} is no folder; give the one that training wrote")
    if (folder / CONFIG).is_file():
        return folder
    found = list_checkpoints(folder)
    if not found:
        raise Blip2rtError(f"{folder} is no checkpoint: it has neither {CONFIG} nor step-* folders")
    return found[-1]


def load_model(folder: str | Path, *, vision: bool = True, llm: bool = True) -> Blip2:
    """Rebuild a model, frozen parts included unless declined, in eval mode."""
    folder = locate(folder)
    model = Blip2(read_config(folder), vision=vision, llm=llm)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: Blip2, folder: str | Path) -> None:
    """Trained tensors of a checkpoint folder into a model of the same config."""
    source = str(folder)
    try:
        state = load_file(Path(folder) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise Blip2rtError(f"{Path(folder) / WEIGHTS} cannot be read ({error}); name a whole checkpoint") from error
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
    path = Path(resolve(source)) / CONFIG
    if not path.is_file():
        raise Blip2rtError(f"qformer_init {source!r}: there is no {CONFIG} in {path.parent}")
    bert = json.loads(path.read_text())
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
    """Initialise the Q-Former from the BERT-family checkpoint that the config names."""
    folder = Path(resolve(model.config.qformer_init))
    load_bert(model.qformer, load_file(folder / WEIGHTS))


def init_from_stage1(model: Blip2, folder: str | Path) -> None:
    """Carry the query branch of a stage-1 checkpoint into a stage-2 model; text branch and heads are left behind.

    Its last layer starts from BERT again: ITC and ITM have made it their own head, which leaves hardly anything of an
    image but one vector for all queries (ITG reads the layers' inputs and keeps those below apart).
    """
    init_from_bert(model)
    last = f"qformer.layers.{len(model.qformer.layers) - 1}."
    state = load_file(locate(folder) / WEIGHTS)
    own = model.trained_state()
    shared = {name: tensor for name, tensor in state.items() if name in own and not name.startswith(last)}
    misshaped = [name for name in shared if shared[name].shape != own[name].shape]
    stage2 = ("projection", "prefix_norm", "query_offsets", last)
    fresh = {name for name in own.keys() - shared.keys() if not name.startswith(stage2)}
    if misshaped or fresh:
        raise Blip2rtError(f"{folder} does not fit: lacks {sorted(fresh)}, other shapes {sorted(misshaped)}")
    model.load_state_dict(shared, strict=False)


def qformer_tokenizer(config: Blip2Config) -> Any:
    """BERT's tokenizer with [DEC] (id 30522) added, as the ITG loss needs it."""
    tokenizer = load_tokenizer(config.qformer_init)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
