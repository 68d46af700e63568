"""Text <-> token ids. Knows tokenizer files, nothing about images or models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .bundle.manifest import LlmSpec, QuestionSpec, RetrievalSpec
from .errors import OptionError
from .native import cached_property, native
from .untrusted.tokenizer import guarded, read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAY_JOIN = re.compile(r"\s+(n|n't?|n'|'\w{0,2}|[.,!?;:])?$")  # an end whose space may go when more follows
_MAY_CHANGE = frozenset(" .?!,'ntmsver")  # characters that clean-up may still reach
_MAX_TOKEN_CHARACTERS = 100  # a longer text than this times the model's tokens cannot fit
_TURNS = frozenset(  # special tokens of chat models that begin or end a turn
    """<|im_start|> <|im_end|> <|endoftext|> <|start_header_id|> <|eot_id|> <|end_of_text|> <start_of_turn>
    <end_of_turn> <|user|> <|assistant|> <|system|> <|end|> <|start_of_role|> <|end_of_role|> [INST] [/INST]""".split()
)


class Prompt(NamedTuple):
    """The language model's input: a caller's text, and the bundle's template before and after it."""

    before: str = ""
    text: str = ""
    after: str = ""

    @property
    def whole(self) -> str:
        return self.before + self.text + self.after


class LlmTokenizer:
    """Prompts -> token ids of the language model, and back to text. Raises BundleError when its file fails."""

    def __init__(self, file: Path, spec: LlmSpec, special_tokens: bool = True) -> None:
        """special_tokens: whether "<|im_end|>" in a caller's text is that token, or plain text."""
        self._file = file
        self._tokenizer = read_tokenizer(file)
        self._special_tokens = special_tokens
        self._room = _MAX_TOKEN_CHARACTERS * spec.max_positions
        self._size = spec.vocab_size
        self._first = [spec.bos_token_id] if spec.prepend_bos and spec.bos_token_id is not None else []
        self._special, self._empty = spec.add_special_tokens, spec.empty_prompt_ids
        self._ends = spec.eos_token_ids
        self.cleans = spec.clean_up_tokenization_spaces

    def encode(self, prompt: Prompt | str) -> list[int]:
        """A prompt -> its token ids, with the special tokens of the model's prompts. Raises OptionError.

        A str is a caller's text without a template.
        """
        prompt = _as_prompt(prompt)
        if prompt.whole == "" and self._empty is not None:
            return list(self._empty)
        return self._first + self._encode(prompt, self._special)

    def encode_more(self, prompt: Prompt | str) -> list[int]:
        """A prompt that continues another text -> its token ids. Raises OptionError."""
        return self._encode(_as_prompt(prompt), False)

    def _encode(self, prompt: Prompt, special: bool) -> list[int]:
        if len(prompt.text) > self._room:
            raise OptionError(f"a text has {len(prompt.text):,} characters, too many for the model: shorten it")
        words = None if self._special_tokens else self._special_words
        pieces = [(prompt.whole, False)]
        if words is not None and _count(words, prompt.whole) > _count(words, prompt.before, prompt.after):
            # Only the template's special tokens count. They split a text before anything else.
            before, after = words.split(prompt.before), words.split(prompt.after)  # odd pieces are special tokens
            texts = [*before[:-1], before[-1] + prompt.text + after[0], *after[1:]]
            pieces = [(text, i % 2 == 0) for i, text in enumerate(texts)]
        for text, _ in pieces:
            _check_text(text)
        with guarded(self._file):
            return self._tokenizer.encode(pieces, special)

    @cached_property
    def _special_words(self) -> re.Pattern[str] | None:
        special = [name for _, name, special in self._tokenizer.added_tokens if special]
        longest_first = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        return re.compile(f"({longest_first})") if special else None

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text on one line, without special tokens or spaces before punctuation."""
        return native().tidied(self.decode_raw(token_ids))

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text as Hugging Face's tokenizer decodes it, without special tokens, stripped."""
        text = self.decode_raw(token_ids)
        return (native().cleaned_up(text) if self.cleans else text).strip()

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text as the tokenizer decodes it, without special tokens."""
        with guarded(self._file):
            return self._tokenizer.decode(token_ids, True)

    def shown(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Token ids of an answer up to the first that begins or ends a chat turn."""
        if not self.turns:
            return token_ids
        return token_ids[: next((i for i, token in enumerate(token_ids) if token in self.turns), len(token_ids))]

    @cached_property
    def turns(self) -> dict[int, str]:
        """Special tokens that begin or end a chat turn, by id, except stop tokens."""
        added = self._tokenizer.added_tokens
        return {i: name for i, name, special in added if special and name in _TURNS and i not in self._ends}

    def written(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text with the names of special tokens."""
        with guarded(self._file):
            return self._tokenizer.decode(token_ids, False)

    def settled(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Token ids without a trailing run of byte tokens, which is decoded as a whole."""
        return token_ids[: self._tokenizer.settled(token_ids)]

    def token_bytes(self) -> list[bytes]:
        """The bytes that each token of the language model adds to a text; special tokens add their names."""
        with guarded(self._file):
            return self._tokenizer.token_bytes(self._size)


class QFormerTokenizer:
    """Texts -> token ids and mask of the Q-Former, in the tokenizer's template: [CLS] ... [SEP]."""

    def __init__(self, file: Path, spec: RetrievalSpec | QuestionSpec, special_tokens: bool = True) -> None:
        """Raises BundleError if `file` is not a tokenizer. special_tokens: see LlmTokenizer."""
        self._file = file
        self._pad, self._clean = spec.pad_token_id, spec.clean_captions
        self._max_characters = 10 * _MAX_TOKEN_CHARACTERS * spec.max_text_length  # the rest is cut in any case
        self._tokenizer, self._plain, self._most = read_tokenizer(file), not special_tokens, spec.max_text_length

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """B texts -> token_ids (B, L) int64, text_mask (B, L) int64, 1 for a token and 0 for padding.

        L is the longest text's length in tokens; texts too long for the model are cut. Raises OptionError.
        """
        for text in texts:
            _check_text(text)
        with guarded(self._file):
            rows = [self._tokenizer.encode([(self.written(text), self._plain)], True, self._most) for text in texts]
        length = max(map(len, rows), default=0)
        token_ids = np.full((len(rows), length), self._pad, np.int64)
        text_mask = np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            token_ids[i, : len(row)] = row
            text_mask[i, : len(row)] = 1
        return token_ids, text_mask

    def written(self, text: str) -> str:
        """The text in the form that the model was trained on."""
        return native().clean_caption(text[: self._max_characters]) if self._clean else text[: self._max_characters]


def _as_prompt(prompt: Prompt | str) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    _check_text(prompt)
    return Prompt(text=prompt)


def _count(words: re.Pattern[str], *texts: str) -> int:
    return sum(len(words.findall(text)) for text in texts)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise OptionError(f"a text is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeError:  # lone surrogates
        raise OptionError(f"the text {text!r} is not valid Unicode") from None


class StopCut:
    """Pieces of a text -> its pieces before the first of some stop strings. Holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._whole = ""
        self._emitted = 0  # characters
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add a piece. Return the new part of the text that is final; it may be empty."""
        if self.stopped:
            return ""
        self._whole += piece
        starts = (n for stop in self._stops for n in range(1, len(stop)) if self._whole.endswith(stop[:n]))
        text = self._cut(len(self._whole) - max(starts, default=0))
        return self._rest(text if text == self._whole else text.rstrip())

    def finish(self, whole: str | None = None) -> tuple[str, str]:
        """Return the text, and what its pieces lack of it. whole: the uncut text, if it is not that of the pieces."""
        self._whole = self._whole if whole is None else whole
        text = self._cut(len(self._whole))
        text = text.rstrip() if self.stopped else text
        return text, self._rest(text)

    def _cut(self, end: int) -> str:
        places = [place for stop in self._stops if (place := self._whole.find(stop)) >= 0]
        self.stopped = bool(places)
        return self._whole[: min([*places, end])]

    def _rest(self, text: str) -> str:
        piece, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return piece


class TextStream:
    """Tokens of one text, one by one -> pieces of the text.

    Joined, they are LlmTokenizer.text of all shown tokens or, `tidied`, LlmTokenizer.decode. A piece never ends within
    a character, nor where later tokens may still change it.
    """

    def __init__(self, tokenizer: LlmTokenizer, given: Sequence[int] = (), tidied: bool = False) -> None:
        """given: tokens at the beginning of the text."""
        self._tokenizer, self._tidied = tokenizer, tidied
        self._ids = list(given)
        self._emitted = 0  # characters
        self.ended = False  # by a token that begins or ends a turn

    def push(self, token_id: int) -> str:
        """Add a token. Return the new part of the text that is final; it may be empty."""
        self.ended = self.ended or token_id in self._tokenizer.turns
        if self.ended:
            return ""
        self._ids.append(token_id)
        text = self._tokenizer.decode_raw(self._tokenizer.settled(self._ids))
        text = text.rstrip("\ufffd")  # it may end in half a character
        if self._tidied:
            return self._emit(native().tidied(_MAY_JOIN.sub("", text)))
        if self._tokenizer.cleans:  # up to the last character that clean-up cannot reach
            end = next((i for i in range(len(text), 0, -1) if text[i - 1] not in _MAY_CHANGE), 0)
            text = native().cleaned_up(text[:end])
        return self._emit(text.strip())

    def end(self) -> str:
        """Return the rest of the text."""
        return self._emit((self._tokenizer.decode if self._tidied else self._tokenizer.text)(self._ids))

    def rest(self, text: str) -> str:
        """Return what the pieces so far lack of the whole text."""
        return self._emit(text)

    def _emit(self, text: str) -> str:
        piece, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return piece
