"""The paper's parts as configs without weights, so that a training can be planned before anything is downloaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers

from blip2rt.errors import boundary
from blip2rt.modeling.sources import is_local

_OPT = {"vocab_size": 50272, "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048}
_T5 = {"vocab_size": 32128, "d_kv": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
_T5["tie_word_embeddings"] = False
KNOWN: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "google-bert/bert-base-uncased": (transformers.BertConfig, {}),
    "facebook/opt-2.7b": (transformers.OPTConfig, {"hidden_size": 2560, "ffn_dim": 10240, **_OPT}),
    "facebook/opt-6.7b": (transformers.OPTConfig, {"hidden_size": 4096, "ffn_dim": 16384, **_OPT}),
    "google/flan-t5-xl": (transformers.T5Config, {"d_model": 2048, "d_ff": 5120, "num_heads": 32, **_T5}),
    "google/flan-t5-xxl": (transformers.T5Config, {"d_model": 4096, "d_ff": 10240, "num_heads": 64, **_T5}),
}


def with_known_parts(settings: Any, folder: Path) -> Any:
    """The settings with BERT and language model as configs in `folder`; a stage 1 that is not there yet is left out.

    Of other hub ids, the config alone is downloaded. Raise Blip2rtError if that fails.
    """
    bert = _config(settings.qformer.qformer_init, folder / "bert")
    settings = replace(settings, qformer=replace(settings.qformer, qformer_init=bert))
    if hasattr(settings, "llm"):
        settings = replace(
            settings, llm=replace(settings.llm, llm_source=_config(settings.llm.llm_source, folder / "llm"))
        )
        if not Path(settings.prefix.stage1).exists():
            settings = replace(settings, prefix=replace(settings.prefix, stage1=""))
    return settings


def known_config(source: str, folder: Path) -> str:
    """Write the config of a part in KNOWN; return the folder."""
    kind, values = KNOWN[source]
    if kind is transformers.OPTConfig:
        values = {"word_embed_proj_dim": values["hidden_size"], **values}
    kind(**values).save_pretrained(folder)
    return str(folder)


def _config(source: str, folder: Path) -> str:
    """A folder with the source's config, or the source if it is on this machine."""
    if is_local(source):
        return source
    if source in KNOWN:
        return known_config(source, folder)
    from huggingface_hub import snapshot_download

    with boundary(f"{source!r} is no folder with a config, and none can be downloaded"):
        found: str = snapshot_download(source, allow_patterns="config.json")
    return found
