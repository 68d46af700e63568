"""What is generated: a caption's prompt, or questions, and options -> tasks for the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .backends import Floats
    from .language import Language, Prompt
    from .native import CallerOptions, GenerationOptions, Guide, Judge, ShortQuestion

    # vision_features (B, N, C), the question about each image or "" -> what guides each text
    Guides: TypeAlias = Callable[[Floats, Sequence[str]], list[Guide]]


@dataclass(frozen=True)
class GenerationTask:
    """Checked prompt and options of a generation."""

    prompt: Prompt  # for the language model
    question: str  # for the Q-Former; empty if it reads no text
    settings: GenerationOptions
    single_line: bool = True  # tidy the text to one line, as captions are
    confidence: bool = False  # also tell how likely each caption is right
    short_question: ShortQuestion | None = None  # a question that is answered without generating
    guides: Guides | None = None

    def guided(
        self, settings: GenerationOptions, features: Sequence[Floats], questions: Sequence[str] = ()
    ) -> GenerationOptions:
        """The settings with the guides of images, whose vision_features come in parts (B, N, C).

        questions: of each image, if they are not this task's.
        """
        if self.guides is None:
            return settings
        asked = iter(questions or repeat(self.prompt.text))
        guides = [guide for part in features for guide in self.guides(part, [*islice(asked, len(part))])]
        return settings.changed(guides=guides)


class Tasks:
    """Makes the tasks of a bundle."""

    def __init__(self, language: Language, judge: Judge, judges: bool, has_pool: bool) -> None:
        """judges: short questions are answered without generating. has_pool: the bundle has a pool of captions."""
        self._language, self._judge, self.rewords = language, judge, judges
        self._caption_guides: Guides | None = None
        self._answer_guides: Guides | None = None
        if has_pool:
            self._caption_guides = lambda vision_features, _: judge.caption_guides(vision_features)
            self._answer_guides = judge.answer_guides

    def of_caption(self, prompt: str | None, options: CallerOptions) -> GenerationTask:
        """A caption's prompt, or None for the bundle's own, and options -> its task. Raises OptionError."""
        text = self._language.caption_prompt(prompt)
        return self.checked(text, None, self._language.settings("caption", options, [text]))

    def of_questions(self, questions: Sequence[str], options: CallerOptions) -> list[GenerationTask]:
        """Questions -> their tasks, with settings that fit the longest. Raises OptionError."""
        questions = list(map(self.plain, questions))
        prompts = [self._language.ask_prompt(question) for question in questions]
        settings = self._language.settings("ask", options, prompts)
        return [self.checked(prompt, question, settings) for prompt, question in zip(prompts, questions, strict=True)]

    def plain(self, question: str) -> str:
        """A question as it is put to the model: without typos and role labels, if the bundle judges answers."""
        return self._language.core.plain_question(question) if self.rewords else question

    def checked(self, prompt: Prompt, question: str | None, settings: GenerationOptions) -> GenerationTask:
        """A prompt, the question that it asks, or None if it begins a caption, and checked options -> a task.

        By default the bundle's pool guides, unless words are drawn, or a prompt or a forced prefix begins the text.
        """
        if question is None:
            guides = None if prompt.text or settings.do_sample else self._caption_guides
            return GenerationTask(prompt, prompt.whole, settings, guides=guides)
        return GenerationTask(
            prompt,
            self._language.core.qformer_question(question),
            settings,
            single_line=False,
            short_question=self._judge.short_question(question, settings) if self.rewords else None,
            guides=None if settings.do_sample or settings.forced_prefix else self._answer_guides,
        )
