"""Tokenizers of language models and BERTs, loaded with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError, boundary

from .sources import fetch


def load_tokenizer(source: str, bos: str | None = None) -> Any:
    """Load a Hugging Face tokenizer; `bos` replaces the token that texts begin with. Raises Blip2rtError."""
    from transformers import AutoTokenizer

    path = fetch(source)
    with boundary(f"no tokenizer can be loaded from {source!r}"):
        location, options = pretrained_location(path)
        tokenizer = AutoTokenizer.from_pretrained(location, **options, trust_remote_code=False)
        words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        if bos is not None:
            _replace_bos(tokenizer, bos)
    if len(words) < 2:  # without a tokenizer file, transformers builds an empty one
        raise Blip2rtError(f"{source!r} has no tokenizer: save one there with tokenizer.save_pretrained(FOLDER)")
    return tokenizer


def pretrained_location(path: str) -> tuple[str, dict[str, str]]:
    """The folder and options that transformers' from_pretrained takes for a folder or a GGUF file."""
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def _replace_bos(tokenizer: Any, bos: str) -> None:
    """Begin texts with another token. Raise ValueError if the tokenizer does not have it."""
    from tokenizers.processors import TemplateProcessing

    backend, number = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids(bos)
    if number is None or backend.token_to_id(bos) is None:
        raise ValueError(f"it has no token {bos!r}")
    tokenizer.bos_token = bos
    backend.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, number)])
