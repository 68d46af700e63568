"""The language side of a model: prompts and options -> the backend's generation -> text; streams and conversations.

It is given the prefix_embeds of images, and does not know the images themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import backends
from .backends import Backend, Generation, OnToken, Sequences
from .bundle import Bundle
from .bundle.manifest import Decoding
from .errors import CapabilityError, OptionError
from .native import cached_property, native
from .options import Options, Room, TextOptions, merge, resolve, strings
from .results import Scored, too_late
from .text import Prompt, open_llm_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .backends import Floats
    from .native import TextStream


class Language:
    """A bundle's language model and tokenizer. Raises OptionError for bad texts and options before anything runs."""

    def __init__(self, bundle: Bundle, backend: Backend, special_tokens: bool = True) -> None:
        assert bundle.manifest.llm is not None, "reading the bundle checks that llm comes with its components"
        self._spec = bundle.manifest.llm
        self._manifest = bundle.manifest
        self._backend = backend
        self._tokenizer = open_llm_tokenizer(bundle.file(self._spec.tokenizer), self._spec, special_tokens)

    def caption_prompt(self, prompt: str | None) -> Prompt:
        """The prompt that a caption continues; None is the bundle's own. Raises OptionError."""
        if prompt is not None and not isinstance(prompt, str):
            raise OptionError(f"prompt: a text is {type(prompt).__name__}, not str; None is the bundle's own")
        return Prompt(self._manifest.prompts.get("caption", "")) if prompt is None else Prompt(text=prompt)

    def ask_prompt(self, question: str) -> Prompt:
        """A question -> the bundle's template, filled with it. Raises OptionError."""
        if not isinstance(question, str):
            raise OptionError(f"a question: a text is {type(question).__name__}, not str")
        if not question.strip():
            raise OptionError("a question is empty: ask something, as in 'what colour is the dog?'")
        before, _, after = self._manifest.prompts.get("ask", "{}").partition("{}")
        return Prompt(before, question.strip(), after)

    @cached_property
    def next_question(self) -> tuple[str, ...]:
        """What begins the next question of a conversation, as the template does: an answer ends before it."""
        before = self.ask_prompt("?").before.strip()
        return (before,) if before else ()

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt -> its token ids."""
        return self._tokenizer.encode(prompt)

    def settings(self, task: str, options: Options, prompts: Sequence[Prompt], used: int = 0) -> dict[str, Any]:
        """The backend's options for a task and the prompts that it continues.

        used: positions that a conversation has taken, besides the image's and the prompts'.
        """
        longest = max((len(self.encode(prompt)) for prompt in prompts), default=0)
        forced = self.forced_prefix(options, any(prompt.whole for prompt in prompts))
        read = {"the image": self._spec.prefix_length, "what was said": used, "the prompt": longest}
        if self._spec.encoder_decoder:  # its decoder reads neither image nor prompt
            read = {"the first token": 1}
        read["the forced prefix"] = len(forced)
        behind = ", ".join(f"{what} ({tokens})" for what, tokens in read.items() if tokens)
        room = Room(
            self._spec.max_positions - sum(read.values()),
            f"{behind}, of {self._spec.max_positions} tokens in all",
            "start a new chat" if used else "shorten them",
        )
        settings = resolve(options, self._manifest.decoding.get(task, Decoding()), room)
        settings["eos_token_ids"] = list(self._spec.eos_token_ids)
        if not self._spec.encoder_decoder:  # as transformers' generate, which is given image and prompt as tokens too
            settings["counts_prompt"] = True
            if self._spec.image_token_id is not None:
                settings["image_token_id"] = self._spec.image_token_id
        settings["forced_prefix"] = forced
        words = strings(options.bad_words)
        ids = [self._tokenizer.encode_more(Prompt(text)) for word in words for text in (word, f" {word}")]
        settings["bad_words_ids"] = [word for word in ids if word]
        stops = list(strings(options.stop_strings))
        if settings["min_new_tokens"] > 1:  # without a stop token, a chat model would begin the next turn
            stops += self._tokenizer.turns.values()
        stops += self.next_question if used else ()
        if stops:
            settings["stop_strings"] = [text.encode() for text in stops]
            settings["vocabulary"] = self.vocabulary
        return settings

    def generate(
        self,
        prefix_embeds: Floats,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        first_image: int = 0,
        on_token: OnToken | None = None,
        tidied: bool = False,
    ) -> list[list[Scored]]:
        """prefix_embeds (B, Q, D), B prompts -> the texts of each image, best first.

        first_image: number of the first image in the random streams. tidied: texts on a single line, as captions are.
        """
        prompt_ids = [self.encode(prompt) for prompt in prompts]
        options = {**settings, "first_image": first_image}
        if "max_time" not in settings:
            return self.scored(self._backend.generate(prefix_embeds, prompt_ids, options, on_token), settings, tidied)
        generation = self._backend.begin(prefix_embeds, prompt_ids, options)  # only begin reports what max_time ended
        wanted = True
        while wanted and not generation.done:
            for token in generation.step():
                wanted = wanted and (on_token is None or on_token(*token) is not False)
        return self.scored(generation.results(), settings, tidied, generation.cut if wanted else None)

    def scored(
        self,
        sequences: Sequences,
        settings: Mapping[str, Any],
        tidied: bool = False,
        cut: Callable[[int, int], bool] | None = None,
    ) -> list[list[Scored]]:
        """Token ids of each image's texts -> the texts. tidied: see generate. cut: see backends.Generation."""
        forced = settings["forced_prefix"]
        text = self._tokenizer.decode if tidied else self._tokenizer.text
        shown = self._tokenizer.shown

        def one(image: int, token_ids: list[int], score: float) -> Scored:
            seen = shown(token_ids)
            truncated = self._is_cut(token_ids, settings) or (cut is not None and cut(image, len(token_ids)))
            truncated = truncated and len(seen) == len(token_ids) and not self._is_stopped(token_ids, settings)
            return Scored(text([*forced, *seen]), score, seen, truncated)

        return [[one(image, token_ids, score) for token_ids, score in best] for image, best in enumerate(sequences)]

    def _is_cut(self, token_ids: Sequence[int], settings: Mapping[str, Any]) -> bool:
        return len(token_ids) >= int(settings["max_new_tokens"])

    def _is_stopped(self, token_ids: Sequence[int], settings: Mapping[str, Any]) -> bool:
        """Whether a stop string ended a text."""
        stops = [text.decode() for text in settings.get("stop_strings", ())]
        return bool(stops) and any(stop in self._tokenizer.written(token_ids) for stop in stops)

    def likelihoods(
        self,
        prefix_embeds: Floats,
        images: Sequence[int],
        texts: Sequence[str],
        max_tokens: int | None = None,
        complete: bool = True,
    ) -> NDArray[np.float64]:
        """prefix_embeds (B, Q, D), T texts, the image of each -> log p(text | image) (T), as the bundle's captions.

        max_tokens: of a text with its stop token; the rest is cut off. complete: whether the stop token counts.
        """
        prompt, token_ids = self.caption_tokens(texts, prefix_embeds.shape[1], max_tokens, complete)
        return self._backend.likelihoods(prefix_embeds, [prompt] * len(prefix_embeds), images, token_ids)

    def caption_tokens(
        self, texts: Sequence[str], prefix_length: int, max_tokens: int | None = None, complete: bool = True
    ) -> tuple[list[int], list[list[int]]]:
        """Texts -> the ids of the bundle's caption prompt, and of each text behind it: what `likelihoods` reads."""
        prompt = self.caption_prompt(None)
        prompt_ids = self.encode(prompt)
        before = " " if prompt.whole and not self._spec.encoder_decoder else ""  # as captions are in training
        read = 1 if self._spec.encoder_decoder else prefix_length + len(prompt_ids)
        room = self._spec.max_positions - read
        most = max(min(max_tokens or room, room) - 1, 0)
        end = self._spec.eos_token_ids[:1] if complete else ()
        return prompt_ids, [[*self.encode_more(Prompt(before, text))[:most], *end] for text in texts]

    def answer_likelihoods(
        self, prefix_embeds: Floats, questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """prefix_embeds (B, Q, D), B questions, A answers -> log p(answer | image, question) (B, A)"""
        asked = [self.encode(self.ask_prompt(question)) for question in questions]
        end = self._spec.eos_token_ids[:1]
        texts = [[*self.encode_more(Prompt(" ", answer)), *end] for answer in answers]
        rows = [row for row in range(len(asked)) for _ in texts]
        found = self._backend.likelihoods(prefix_embeds, asked, rows, texts * len(asked))
        return found.reshape(len(asked), len(texts))

    @property
    def reads_prompt_as_text(self) -> bool:
        """Whether the words of a prompt may be the beginning of a text instead: not in an encoder-decoder."""
        return not self._spec.encoder_decoder

    def text_stream(self, settings: Mapping[str, Any], tidied: bool = False) -> TextStream:
        """A stream that turns tokens into pieces of text. tidied: see generate."""
        return native().TextStream(self._tokenizer, settings["forced_prefix"], tidied)

    def stream(
        self, prefix_embeds: Floats, prompt: Prompt, settings: Mapping[str, Any], tidied: bool = False
    ) -> Iterator[str]:
        """prefix_embeds (1, Q, D) -> pieces of the text, as they are generated."""
        return self.pieces(self._backend.begin(prefix_embeds, [self.encode(prompt)], settings), settings, tidied)

    def pieces(self, generation: Generation, settings: Mapping[str, Any], tidied: bool = False) -> Iterator[str]:
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

    def text(self, generation: Generation, settings: Mapping[str, Any]) -> str:
        """A generation of one text -> the whole text. Raises DeadlineError."""
        while not generation.done:
            generation.step()
        token_ids, _score = generation.results()[0][0]
        if len(token_ids) < 2 and "max_time" in settings and generation.cut(0, len(token_ids)):
            raise too_late(settings)
        return self._tokenizer.text([*settings["forced_prefix"], *self._tokenizer.shown(token_ids)])

    @property
    def vocab_size(self) -> int:
        """Of the language model's logits."""
        return self._spec.vocab_size

    @property
    def end_token(self) -> int:
        """The token that ends captions."""
        return self._spec.eos_token_ids[0]

    def encode_more(self, prompt: Prompt) -> list[int]:
        """A text that continues another -> its token ids."""
        return self._tokenizer.encode_more(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text. Raises OptionError for ids outside the vocabulary."""
        wrong = [each for each in token_ids if not 0 <= each < self._spec.vocab_size]
        if wrong:
            raise OptionError(f"{wrong[0]} is no token id: give numbers from 0 to {self._spec.vocab_size - 1}")
        return self._tokenizer.decode(self._tokenizer.shown(token_ids))

    def need_chat(self) -> None:
        """Raise CapabilityError for a model whose earlier steps see each question, so that no cache can keep them."""
        why = "its Q-Former reads the question together with the image" if self._manifest.question is not None else None
        why = "its language model is an encoder-decoder" if self._spec.encoder_decoder else why
        if why is not None:
            raise CapabilityError(
                f"bundle {self._manifest.name!r} cannot chat: {why}; use ask and repeat the conversation"
            )

    def open_chat(self, prefix_embeds: Floats, max_beams: int) -> backends.Chat:
        """prefix_embeds (1, Q, D) -> the backend's conversation, as long as the language model's positions allow."""
        return self._backend.chat(prefix_embeds, max_beams, self._spec.max_positions)

    def forced_prefix(self, options: Options, after_prompt: bool) -> list[int]:
        """Tokens of the option forced_prefix. After a prompt it starts a new word, as answers do in training."""
        after_prompt = after_prompt and not self._spec.encoder_decoder
        text = options.forced_prefix
        if not isinstance(text, str) or not text:  # a wrong type is reported with the other faults
            return []
        return self._tokenizer.encode_more(Prompt(f" {text}" if after_prompt and not text[0].isspace() else text))

    @property
    def vocabulary(self) -> Any:
        """The text of every token."""
        return self._tokenizer.vocabulary()


class Chat:
    """A conversation about one image. It stays in the language model's cache, so a question costs only its own tokens,
    and memory grows with the conversation. One thread uses it at a time.

    Methods raise OptionError for bad questions and options, and when the chat is full: then start a new one.
    """

    def __init__(
        self,
        language: Language,
        prefix_embeds: Floats,
        options: Options,
        begun: Callable[[str, Mapping[str, Any]], Scored | dict[str, Any]] = lambda _, settings: dict(settings),
    ) -> None:
        """prefix_embeds (1, Q, D). `options` are the defaults of every question.

        begun: a question and its settings -> its answer, if that needs no language model, or the settings with guides.
        """
        self._begun = begun
        self._unread: list[int] = []  # token ids of judged questions and their answers, for the next question
        self._language = language
        self._ends: tuple[str, ...] = ()  # strings before which the current answer ends
        self._options = options
        self._used = 0  # positions, besides the image's
        settings = language.settings("ask", options, [])
        self._max_beams = settings["num_beams"]
        self._chat = language.open_chat(prefix_embeds, self._max_beams)
        self._last: tuple[Generation, int] | None = None  # the current answer, and the length of its prompt

    def ask(self, question: str, **options: Unpack[TextOptions]) -> str:
        """Question -> answer. Options are those of Model.ask; they override the chat's."""
        generation, settings = self._begin(question, options)
        if isinstance(generation, str):
            return generation
        return native().StopCut(self._ends).finish(self._language.text(generation, settings))[0]

    def stream(self, question: str, **options: Unpack[TextOptions]) -> Iterator[str]:
        """Question -> pieces of the answer; see Model.stream.

        Of an answer that was not taken to its end, the chat keeps what was decoded; with beams, by the best of them.
        """
        generation, settings = self._begin(question, options)
        return iter([generation]) if isinstance(generation, str) else self._pieces(generation, settings)

    def _pieces(self, generation: Generation, settings: Mapping[str, Any]) -> Iterator[str]:
        cut = native().StopCut(self._ends)
        for piece in self._language.pieces(generation, settings):
            if shown := cut.push(piece):
                yield shown
        if shown := cut.finish()[1]:
            yield shown

    def _begin(self, question: str, given: Mapping[str, Any]) -> tuple[Generation | str, dict[str, Any]]:
        self._remember()
        options = merge(self._options, given)
        first = self._used == len(self._unread) == 0
        self._ends = () if first else self._language.next_question
        prompt = self._language.ask_prompt(question)
        more = prompt._replace(before=f" {prompt.before}")  # it continues the conversation
        prompt_ids = self._language.encode(prompt) if first else self._language.encode_more(more)
        settings = self._language.settings("ask", options, [prompt], self._used + len(self._unread))
        if settings["num_return_sequences"] > 1 or settings["num_beams"] > self._max_beams:
            raise OptionError(
                f"num_captions is {settings['num_return_sequences']} and num_beams {settings['num_beams']}: "
                f"this chat gives 1 answer, of at most {self._max_beams} beams; say more to Model.chat"
            )
        prompt_ids = self._unread + prompt_ids
        begun = self._begun(question, settings)
        if isinstance(begun, Scored):
            self._unread = [*prompt_ids, *begun.tokens]
            return begun.text, settings
        self._unread, settings = [], begun
        generation = self._chat.ask(prompt_ids, settings)
        self._last = (generation, len(prompt_ids) + len(settings["forced_prefix"]))
        return generation, settings

    def _remember(self) -> None:
        """Count the positions that the last answer used."""
        if self._last is not None:
            generation, read = self._last
            if generation.stepped:
                self._used += read + len(generation.results()[0][0][0])
            self._last = None
