"""The language side of a model: prompts, tokenizers, the core's Language, and generations as texts, streams and chats.

It is given the prefix_embeds of images, and does not know the images themselves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .backends import Backend, Generation, OnToken, Sequences
from .bundle import Bundle, LlmSpec, QuestionSpec, RetrievalSpec
from .errors import OptionError, utf8_name
from .native import native
from .options import TextOptions
from .results import Scored, too_late

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .backends import Floats
    from .native import (
        CallerOptions,
        GenerationOptions,
        LlmTokenizer,
        QFormerTokenizer,
        TextStream,
        Tokenizer,
        Vocabulary,
    )


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

    Files that could blow up a short text are rejected: normalizers that replace a letter by a page, templates that
    repeat the text.
    """
    return native.open_tokenizer(os.fsencode(file))


def open_llm_tokenizer(file: Path, spec: LlmSpec, special_tokens: bool = True) -> LlmTokenizer:
    """The language model's tokenizer. Raises BundleError when its file fails.

    special_tokens: whether "<|im_end|>" in a caller's text is that token, or plain text.
    """
    return native.LlmTokenizer(utf8_name(str(file)), read_tokenizer(file), spec, special_tokens)


def open_qformer_tokenizer(
    file: Path, spec: RetrievalSpec | QuestionSpec, special_tokens: bool = True
) -> QFormerTokenizer:
    """The Q-Former's tokenizer; see open_llm_tokenizer."""
    return native.QFormerTokenizer(utf8_name(str(file)), read_tokenizer(file), spec, special_tokens)


class Language:
    """A bundle's language model and tokenizer. Raises OptionError for bad texts and options before anything runs."""

    def __init__(self, bundle: Bundle, backend: Backend, special_tokens: bool = True) -> None:
        assert bundle.manifest.llm is not None, "reading the bundle checks that llm comes with its components"
        self.spec, self.backend = bundle.manifest.llm, backend
        file = bundle.file(self.spec.tokenizer)
        core = native.Language(utf8_name(str(file)), read_tokenizer(file), bundle.manifest, special_tokens)
        self.core, self.tokenizer = core, core.tokenizer
        # The core's functions: engines/language/language.h documents them.
        self.caption_prompt, self.ask_prompt, self.settings = core.caption_prompt, core.ask_prompt, core.settings
        self.encode, self.encode_more = core.tokenizer.encode, core.tokenizer.encode_more
        self.caption_tokens, self.forced_prefix = core.caption_tokens, core.forced_prefix
        self.need_chat = core.need_chat

    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[Prompt],
        settings: GenerationOptions,
        first_image: int = 0,
        on_token: OnToken | None = None,
        tidied: bool = False,
    ) -> list[list[Scored]]:
        """prefix_embeds (B, Q, D), B prompts -> the texts of each image, best first.

        first_image: number of the first image in the random streams. tidied: texts on a single line, as captions are.
        """
        prompt_ids = [self.encode(prompt) for prompt in prompts]
        options = settings.changed(first_image=first_image)
        if settings.max_time == math.inf:
            return self.scored(self.backend.generate(prefix_embeds, prompt_ids, options, on_token), settings, tidied)
        generation = self.backend.begin(prefix_embeds, prompt_ids, options)  # only begin reports what max_time ended
        wanted = True
        while wanted and not generation.done:
            for token in generation.step():
                wanted = wanted and (on_token is None or on_token(*token) is not False)
        return self.scored(generation.results(), settings, tidied, generation.cut if wanted else None)

    def scored(
        self,
        sequences: Sequences,
        settings: GenerationOptions,
        tidied: bool = False,
        cut: Callable[[int, int], bool] | None = None,
    ) -> list[list[Scored]]:
        """Token ids of each image's texts -> the texts. tidied: see generate. cut: see backends.Generation."""

        def one(image: int, token_ids: list[int], score: float) -> Scored:
            timed_out = cut is not None and cut(image, len(token_ids))
            return Scored(*self.core.text_of(token_ids, score, settings, tidied, timed_out))

        return [[one(image, token_ids, score) for token_ids, score in best] for image, best in enumerate(sequences)]

    def text_stream(self, settings: GenerationOptions, tidied: bool = False) -> TextStream:
        """A stream that turns tokens into pieces of text. tidied: see generate."""
        return native.TextStream(self.tokenizer, settings.forced_prefix, tidied)

    def pieces(self, generation: Generation, settings: GenerationOptions, tidied: bool = False) -> Iterator[str]:
        """A generation of one text -> its pieces. Each token is computed when the caller asks for the next piece.

        With beams, a piece comes once all beams agree on it, and the rest at the end.
        """
        stream = self.text_stream(settings, tidied)
        while not (generation.done or stream.ended):
            for _image, _draw, token_id in generation.step():
                if piece := stream.push(token_id):
                    yield piece
        [[scored]] = self.scored(generation.results(), settings, tidied)
        if piece := stream.rest(scored.text):
            yield piece

    def text(self, generation: Generation, settings: GenerationOptions) -> str:
        """A generation of one text -> the whole text. Raises DeadlineError."""
        while not generation.done:
            generation.step()
        token_ids, score = generation.results()[0][0]
        if len(token_ids) < 2 and settings.max_time < math.inf and generation.cut(0, len(token_ids)):
            raise too_late(settings.max_time)
        return self.core.text_of(token_ids, score, settings)[0]

    @property
    def vocabulary(self) -> Vocabulary:
        """The text of every token."""
        return self.tokenizer.vocabulary()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text. Raises OptionError for ids outside the vocabulary."""
        wrong = [each for each in token_ids if not 0 <= each < self.spec.vocab_size]
        if wrong:
            raise OptionError(f"{wrong[0]} is no token id: give numbers from 0 to {self.spec.vocab_size - 1}")
        return self.tokenizer.decode(self.tokenizer.shown(token_ids))


class Chat:
    """A conversation about one image. It stays in the language model's cache, so a question costs only its own tokens,
    and memory grows with the conversation. One thread uses it at a time.

    Methods raise OptionError for bad questions and options, and when the chat is full: then start a new one.
    """

    def __init__(
        self,
        language: Language,
        prefix_embeds: Floats,
        options: CallerOptions,
        begun: Callable[[Prompt, GenerationOptions], Scored | GenerationOptions] = lambda _, settings: settings,
        rewords: bool = False,
    ) -> None:
        """prefix_embeds (1, Q, D). `options` are the defaults of every question.

        begun: a question and its settings -> its answer, if that needs no language model, or the settings with guides.
        rewords: read each question without typos and role labels.
        """
        self._begun, self._language = begun, language
        self._dialogue = native.Dialogue(language.core, options, rewords)
        self._chat = language.backend.chat(prefix_embeds, self._dialogue.max_beams, language.spec.max_positions)
        self._last: Generation | None = None

    def ask(self, question: str, **options: Unpack[TextOptions]) -> str:
        """Question -> answer. Options are those of Model.ask; they override the chat's."""
        begun, settings, until = self._begin(question, native.CallerOptions(options))
        if isinstance(begun, Scored):
            return begun.text
        return native.StopCut(until).finish(self._language.text(begun, settings))[0]

    def stream(self, question: str, **options: Unpack[TextOptions]) -> Iterator[str]:
        """Question -> pieces of the answer; see Model.stream.

        Of an answer that was not taken to its end, the chat keeps what was decoded; with beams, by the best of them.
        """
        begun, settings, until = self._begin(question, native.CallerOptions(options))
        return iter([begun.text]) if isinstance(begun, Scored) else self._pieces(begun, settings, until)

    def _pieces(self, generation: Generation, settings: GenerationOptions, until: Sequence[str]) -> Iterator[str]:
        cut = native.StopCut(until)
        for piece in self._language.pieces(generation, settings):
            if shown := cut.push(piece):
                yield shown
        if shown := cut.finish()[1]:
            yield shown

    def _begin(
        self, question: str, options: CallerOptions
    ) -> tuple[Generation | Scored, GenerationOptions, Sequence[str]]:
        """The answer or its generation, the settings, and the texts before which it ends."""
        if self._last is not None and self._last.stepped:
            self._dialogue.add_answer(len(self._last.results()[0][0][0]))
        self._last = None
        turn = self._dialogue.begin(question, options)
        begun = self._begun(turn.prompt, turn.options)
        if isinstance(begun, Scored):
            self._dialogue.answered(turn, begun.tokens)
            return begun, turn.options, turn.until
        self._dialogue.read(turn)
        self._last = self._chat.ask(turn.token_ids, begun)
        return self._last, begun, turn.until
