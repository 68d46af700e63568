"""Text <-> token ids, by the `tokenizers` library. Knows tokenizer files, nothing about images or models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from .bundle.manifest import LlmSpec, QuestionSpec, RetrievalSpec
from .errors import OptionError
from .native import cached_property
from .untrusted.tokenizer import guarded, read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXTRA_SPACES = re.compile(r" (?=[.,!?;:](\s|$)|n't\b|'(s|m|re|ve|ll|d)\b)")  # before punctuation and clitics
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # lose their space, in this order
_MAY_CHANGE = set("".join(_CLEANED))
_MAX_TOKEN_CHARACTERS = 100  # a longer text than this times the model's tokens cannot fit
_TURNS = frozenset(  # special tokens of chat models that begin or end a turn
    """<|im_start|> <|im_end|> <|endoftext|> <|start_header_id|> <|eot_id|> <|end_of_text|> <start_of_turn>
    <end_of_turn> <|user|> <|assistant|> <|system|> <|end|> <|start_of_role|> <|end_of_role|> [INST] [/INST]""".split()
)
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")  # clean_caption removes it


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
        with guarded(self._file):
            if words is not None and _count(words, prompt.whole) > _count(words, prompt.before, prompt.after):
                return self._encode_plain(prompt, words, special)
            return _encode(self._tokenizer, prompt.whole, special=special)

    def _encode_plain(self, prompt: Prompt, words: re.Pattern[str], special: bool) -> list[int]:
        """Encode special tokens of the template only. They split a text before anything else."""
        before, after = words.split(prompt.before), words.split(prompt.after)  # odd pieces are special tokens
        pieces = [*before[:-1], before[-1] + prompt.text + after[0], *after[1:]]
        readers = (self._plain, self._tokenizer)
        encodings = [readers[i % 2].encode(piece, add_special_tokens=False) for i, piece in enumerate(pieces)]
        whole = Encoding.merge(encodings, growing_offsets=True)
        return list(self._tokenizer.post_process(whole, add_special_tokens=special).ids)

    @cached_property
    def _special_words(self) -> re.Pattern[str] | None:
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        longest_first = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        return re.compile(f"({longest_first})") if special else None

    @cached_property
    def _plain(self) -> Tokenizer:
        """The tokenizer that reads special tokens as text."""
        tokenizer = read_tokenizer(self._file)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text on one line, without special tokens or spaces before punctuation."""
        return tidy(self.decode_raw(token_ids))

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text as Hugging Face's tokenizer decodes it, without special tokens, stripped."""
        text = self.decode_raw(token_ids)
        return (clean_up(text) if self.cleans else text).strip()

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text as the tokenizer decodes it, without special tokens."""
        with guarded(self._file):
            text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def shown(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Token ids of an answer up to the first that begins or ends a chat turn."""
        if not self.turns:
            return token_ids
        return token_ids[: next((i for i, token in enumerate(token_ids) if token in self.turns), len(token_ids))]

    @cached_property
    def turns(self) -> dict[int, str]:
        """Special tokens that begin or end a chat turn, by id, except stop tokens."""
        special = self._tokenizer.get_added_tokens_decoder().items()
        named = {i: token.content for i, token in special if token.special and token.content in _TURNS}
        return {i: name for i, name in named.items() if i not in self._ends}

    def written(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text with the names of special tokens."""
        with guarded(self._file):
            text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    def settled(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Token ids without trailing byte tokens: the library decodes an incomplete run byte by byte.

        Special tokens, which are not shown, do not end a run.
        """
        end = len(token_ids)
        while end > 0 and token_ids[end - 1] in self._unsettled:
            end -= 1
        return token_ids[:end]

    @cached_property
    def _unsettled(self) -> frozenset[int]:
        """The byte tokens and the special ones, if the library decodes a run of bytes as a whole."""
        if '"ByteFallback"' not in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder")):
            return frozenset()
        found = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        special = (i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)
        return frozenset((*(token for token in found if token is not None), *special))

    def token_bytes(self) -> list[bytes]:
        """The bytes that each token of the language model adds to a text; special tokens add their names."""
        with guarded(self._file):
            return token_bytes(self._tokenizer, self._size)


def clean_caption(text: str) -> str:
    """Normalise a text like the reference's caption processor: lower case, no sentence punctuation, single spaces."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())


def tidy(text: str) -> str:
    """Put a generated text on one line, without spaces before punctuation and clitics."""
    return _EXTRA_SPACES.sub("", " ".join(text.split()))


def clean_up(text: str) -> str:
    """Do what Hugging Face's clean_up_tokenization does."""
    for joined in _CLEANED:
        text = text.replace(joined, joined.replace(" ", ""))
    return text


class QFormerTokenizer:
    """Texts -> token ids and mask of the Q-Former, in the tokenizer's template: [CLS] ... [SEP]."""

    def __init__(self, file: Path, spec: RetrievalSpec | QuestionSpec, special_tokens: bool = True) -> None:
        """Raises BundleError if `file` is not a tokenizer. special_tokens: see LlmTokenizer."""
        self._file = file
        self._pad, self._clean = spec.pad_token_id, spec.clean_captions
        self._max_characters = 10 * _MAX_TOKEN_CHARACTERS * spec.max_text_length  # the rest is cut in any case
        self._tokenizer = read_tokenizer(file)
        self._tokenizer.encode_special_tokens = not special_tokens
        self._tokenizer.enable_truncation(spec.max_text_length)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """B texts -> token_ids (B, L) int64, text_mask (B, L) int64, 1 for a token and 0 for padding.

        L is the longest text's length in tokens; texts too long for the model are cut. Raises OptionError.
        """
        with guarded(self._file):
            rows = [_encode(self._tokenizer, self.written(text), special=True) for text in texts]
        length = max(map(len, rows), default=0)
        token_ids = np.full((len(rows), length), self._pad, np.int64)
        text_mask = np.zeros((len(rows), length), np.int64)
        for i, row in enumerate(rows):
            token_ids[i, : len(row)] = row
            text_mask[i, : len(row)] = 1
        return token_ids, text_mask

    def written(self, text: str) -> str:
        """The text in the form that the model was trained on."""
        if not isinstance(text, str):
            return text
        return clean_caption(text[: self._max_characters]) if self._clean else text[: self._max_characters]


def token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes of tokens 0 to size - 1 after another token; a token may hold half a character.

    A special token has the bytes of its name: stop strings may match it, although texts do not show it.
    """
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
    letters = _byte_letters() if '"ByteLevel"' in decoder else {}
    tried = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "0", "the"))
    before = next(filter(None, tried), [])
    start = len(tokenizer.decode(before))

    def text_of(i: int) -> bytes:
        token = tokenizer.id_to_token(i)
        if token is None or i in special:
            return (token or "").encode()
        if letters and all(letter in letters for letter in token):
            return bytes(letters[letter] for letter in token)
        if '"ByteFallback"' in decoder and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return tokenizer.decode([*before, i], skip_special_tokens=False)[start:].encode()

    return [text_of(i) for i in range(size)]


def _byte_letters() -> dict[str, int]:
    """Letter -> byte in byte-level tokenizers: printable bytes are themselves, others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _as_prompt(prompt: Prompt | str) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    _check_text(prompt)
    return Prompt(text=prompt)


def _count(words: re.Pattern[str], *texts: str) -> int:
    return sum(len(words.findall(text)) for text in texts)


def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    _check_text(text)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise OptionError(f"a text is {type(text).__name__}, not str")
    try:
        text.encode()
    except UnicodeError:  # lone surrogates, which the library's versions treat differently
        raise OptionError(f"the text {text!r} is not valid Unicode") from None


class TextStream:
    """Tokens of one text, one by one -> pieces of the text. Joined, they are LlmTokenizer.text of all shown tokens.

    A piece never ends within a character, nor where later tokens may still change it.
    """

    def __init__(self, tokenizer: LlmTokenizer, given: Sequence[int] = ()) -> None:
        """given: tokens at the beginning of the text."""
        self._tokenizer = tokenizer
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
        if self._tokenizer.cleans:  # up to the last character that clean-up cannot reach
            end = next((i for i in range(len(text), 0, -1) if text[i - 1] not in _MAY_CHANGE), 0)
            text = clean_up(text[:end])
        return self._emit(text.strip())

    def end(self) -> str:
        """Return the rest of the text."""
        return self._emit(self._tokenizer.text(self._ids))

    def _emit(self, text: str) -> str:
        piece, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return piece
