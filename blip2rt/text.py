"""Text <-> token ids, by the `tokenizers` library. Knows tokenizer files, nothing about images or models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from .errors import BundleError, OptionError
from .manifest import LlmSpec, RetrievalSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LlmTokenizer:
    """Prompts -> token ids of the language model, and back to text."""

    def __init__(self, file: Path, spec: LlmSpec) -> None:
        """Raises BundleError when `file` is not a tokenizer."""
        self._tokenizer = _read(file)
        self._first = [spec.bos_token_id] if spec.prepend_bos and spec.bos_token_id is not None else []
        self._special, self._empty = spec.add_special_tokens, spec.empty_prompt_ids

    def encode(self, prompt: str) -> list[int]:
        """Ids of the prompt, with the special tokens that the model's prompts have. Raises OptionError."""
        if prompt == "" and self._empty is not None:
            return list(self._empty)
        return self._first + _encode(self._tokenizer, prompt, special=self._special)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text on a single line, special tokens left out, no space before punctuation."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return re.sub(r" (?=[.,!?;:](\s|$)|n't\b|'(s|m|re|ve|ll|d)\b)", "", " ".join(text.split()))


class QFormerTokenizer:
    """Texts -> token ids and mask of the Q-Former: [CLS] ... [SEP], as the tokenizer's own template has it."""

    def __init__(self, file: Path, spec: RetrievalSpec) -> None:
        """Raises BundleError when `file` is not a tokenizer."""
        self._pad = spec.pad_token_id
        self._tokenizer = _read(file)
        self._tokenizer.enable_truncation(spec.max_text_length)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """B texts -> token_ids (B, L) int64, text_mask (B, L) int64, 1 for a token and 0 for padding.

        L is the longest text's length in tokens; longer ones than the model's are cut. Raises OptionError.
        """
        rows = [_encode(self._tokenizer, text, special=True) for text in texts]
        length = max(map(len, rows), default=0)
        token_ids = np.full((len(rows), length), self._pad, np.int64)
        text_mask = np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            token_ids[i, : len(row)] = row
            text_mask[i, : len(row)] = 1
        return token_ids, text_mask


def _read(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # the library raises plain Exception
        raise BundleError(f"{file} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    if not isinstance(text, str):
        raise OptionError(f"a text is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeError:  # lone surrogates, of which the library's versions make different things
        raise OptionError(f"the text {text!r} is not valid Unicode") from None
    ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids
