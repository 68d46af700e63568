"""The BERT behind a Q-Former: geometry, initial weights and tokenizer.

BERT's layers initialise the queries' and the text's branch; queries and cross-attention start fresh.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError, boundary

from .blip2 import Blip2
from .llm import load_tokenizer
from .qformer import LanguageHead, QFormer
from .sources import WEIGHTS, fetch, read_json

GEOMETRY = {  # fields of QFormerConfig and of BERT's config
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "layer_norm_eps": "layer_norm_eps",
}
_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.inner": "intermediate.dense",
    "ffn.outer": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
_HEAD_NAMES = {"transform": "transform.dense", "norm": "transform.LayerNorm"}


class BertSource:
    """A BERT-family folder or hub id (`qformer_init`); its files are read once, on first use."""

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def path(self) -> Path:
        """The local folder; a hub repository is downloaded."""
        return Path(fetch(self.source))

    @cached_property
    def tokenizer(self) -> Any:
        """BERT's tokenizer with [DEC] (id 30522) added, which ITG needs."""
        tokenizer = load_tokenizer(self.source)
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        return tokenizer

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """The fields of QFormerConfig that follow from BERT's config, with room for [DEC] in the vocabulary."""
        path = self.path / "config.json"
        if not path.is_file():
            raise Blip2rtError(f"qformer_init {self.source!r}: there is no config.json in {path.parent}")
        with boundary(f"qformer_init {self.source!r}: its config.json is not BERT's"):
            bert = read_json(path)
            faults = [
                f"{name} is {bert[name]!r}, but a Q-Former has {supported!r}"
                for name, supported in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"))
                if bert.get(name, supported) != supported
            ]
            if faults:
                raise Blip2rtError(f"qformer_init {self.source!r}: {'; '.join(faults)}: give a BERT with that")
            found = {ours: bert[theirs] for ours, theirs in GEOMETRY.items()}
            return found | {"vocab_size": found["vocab_size"] + 1}

    def initialize(self, model: Blip2) -> None:
        """Copy BERT's weights into the Q-Former, and in stage 1 its masked-LM head into ITG's head."""
        with boundary(f"qformer_init {self.source!r} cannot be read"):
            state = _modern_names(load_file(self.path / WEIGHTS))
            _initialize_qformer(model.qformer, state)
            if model.config.stage == 1:
                _initialize_head(model.lm_head, state)

    def require_weights(self) -> None:
        """Raise Blip2rtError if the folder has no tokenizer or no weights."""
        assert self.tokenizer is not None
        if not (self.path / WEIGHTS).is_file():
            raise Blip2rtError(f"qformer_init {self.source!r} has no {WEIGHTS} in {self.path}: give a BERT's folder")


def _bert_name(name: str, shared_norm: bool) -> str | None:
    """The BERT tensor that initialises our tensor `name`; None for queries and cross-attention."""
    if name.startswith(("word_embeddings", "position_embeddings")):
        return "embeddings." + name
    norm = "query_norm" if shared_norm else "text_norm"
    if name.startswith(norm):
        return "embeddings.LayerNorm" + name[len(norm) :]
    if not name.startswith("layers.") or "cross_attention" in name:
        return None
    _, index, rest = name.split(".", 2)
    rest = rest.replace("query_ffn", "ffn").replace("text_ffn", "ffn")  # both start as copies of BERT's
    part, _, kind = rest.rpartition(".")
    return f"encoder.layer.{index}.{_NAMES[part]}.{kind}"


@torch.no_grad()
def _initialize_qformer(qformer: QFormer, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in qformer.state_dict().items():
        source = _bert_name(name, qformer.config.query_gain is None)
        if source is None:
            continue
        values = state[source]
        if name.startswith("word_embeddings") and values.shape[0] < tensor.shape[0]:  # [DEC] starts as BERT's mean
            missing = tensor.shape[0] - values.shape[0]
            values = torch.cat((values, values.mean(0, keepdim=True).expand(missing, -1)))
        tensor.copy_(values)


@torch.no_grad()
def _initialize_head(head: LanguageHead, state: dict[str, torch.Tensor]) -> None:
    """Copy BERT's masked-LM head if the file has a whole one; [DEC] starts without a bias."""
    theirs = {}
    for name in head.state_dict():
        part, _, kind = name.rpartition(".")
        theirs[name] = state.get(f"cls.predictions.{_HEAD_NAMES[part]}.{kind}" if part else "cls.predictions.bias")
    for name, tensor in head.state_dict().items():
        values = theirs[name]
        if values is not None and None not in theirs.values():
            tensor.copy_(F.pad(values, (0, len(tensor) - len(values))) if name == "bias" else values)


def _modern_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a norm's gamma and beta, as the oldest files call weight and bias."""
    return {
        name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in state.items()
    }
