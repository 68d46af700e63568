"""Prompts, and a bundle's tokenizers, which the core applies: text <-> token ids. Knows no images and no models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .bundle.manifest import LlmSpec, QuestionSpec, RetrievalSpec
from .errors import BundleError, boundary, utf8_name
from .native import native

if TYPE_CHECKING:
    from .native import LlmTokenizer, QFormerTokenizer, Tokenizer


class Prompt(NamedTuple):
    """The language model's input: a caller's text, and the bundle's template before and after it."""

    before: str = ""
    text: str = ""
    after: str = ""

    @property
    def whole(self) -> str:
        return self.before + self.text + self.after


def read_tokenizer(file: Path) -> Tokenizer:
    """An untrusted tokenizer.json without padding and truncation. Raises BundleError.

    The library `tokenizers` applies one with a part that the core does not know. Files that could blow up a short text
    are rejected: normalizers that replace a letter by a page, templates that repeat the text.
    """

    def library(data: bytes) -> object:
        from .untrusted.library_tokenizer import LibraryTokenizer  # an import that most bundles never need

        return LibraryTokenizer(data, str(file))

    with boundary(f"{file} is not a tokenizer", BundleError):
        return native().open_tokenizer(os.fsencode(file), library)


def open_llm_tokenizer(file: Path, spec: LlmSpec, special_tokens: bool = True) -> LlmTokenizer:
    """The language model's tokenizer. Raises BundleError when its file fails.

    special_tokens: whether "<|im_end|>" in a caller's text is that token, or plain text.
    """
    return native().LlmTokenizer(utf8_name(str(file)), read_tokenizer(file), spec, special_tokens)


def open_qformer_tokenizer(
    file: Path, spec: RetrievalSpec | QuestionSpec, special_tokens: bool = True
) -> QFormerTokenizer:
    """The Q-Former's tokenizer; see open_llm_tokenizer."""
    return native().QFormerTokenizer(utf8_name(str(file)), read_tokenizer(file), spec, special_tokens)
