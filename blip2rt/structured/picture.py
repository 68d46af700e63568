"""What a model says about one picture: captions, answers, choices, labels. The picture is encoded once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import RETRIEVAL
from ..language import Prompt
from ..native import native
from ..options import Options, merge
from ..pipeline import BATCH
from .questions import MAX_PHRASE_WORDS

if TYPE_CHECKING:
    from ..backends import Floats
    from ..image import ImageLike
    from ..model import Model
    from ..results import Scored
    from ..tasks import GenerationTask

_MOST_LABELS, _LEAST_PROBABILITY = 16, 0.3
_FACTS = {  # what a long text says after the caption
    "the place": "where is this?",
    "in the background": "what is in the background?",
    "the main colours": "what colours are there?",
    "in the foreground": "what is in the foreground?",
    "the light": "is it day or night?",
}
_SEPARATOR = re.compile(r"\s*(?:,|;|\band\b)\s*")


class Picture:
    """What the model says about a picture, computed when it is asked for and kept."""

    def __init__(self, model: Model, image: ImageLike, cancelled: Callable[[], bool]) -> None:
        self._model, self._pipeline, self._cancelled = model, model.pipeline, cancelled
        self._tasks = self._pipeline.tasks("fill a form")
        self._features = self._pipeline.vision_features([self._pipeline.prepare(image)])  # (1, N, C)
        self._answers: dict[str, str] = {}
        self._probabilities: dict[str, float] = {}
        self._captions: list[Any] = []
        self._labels: list[tuple[str, float]] | None = None
        self.prompt_tokens = self.completion_tokens = 0

    @property
    def caption(self) -> str:
        """The caption."""
        return str(self.captions()[0])

    @property
    def confidence(self) -> float:
        """How likely the caption is right, 0 to 1; the mean probability of its tokens if the bundle cannot tell."""
        caption, found = self.captions()[0], None
        if self._model.matcher.rates_captions:
            [found] = self._model.matcher.confidence(self._features, [caption])
        return min(1.0, math.exp(float(caption.score))) if found is None else found

    def captions(self, count: int = 1) -> list[Any]:
        """Captions, the best first."""
        if len(self._captions) < count:
            task = self._tasks.of_caption(None, merge(Options(count, max(count, 3)) if count > 1 else Options(), {}))
            prefix = self._prefix([task.question])
            settings = task.guided(task.settings, [self._features])
            [self._captions] = self._pipeline.language.generate(prefix, [task.prompt], settings, tidied=True)
            self._count([task.prompt], self._captions)
        return self._captions

    def prepare(self, questions: Sequence[str], statements: Sequence[str]) -> None:
        """Compute answers and probabilities in batches; asked for one by one later, they cost nothing."""
        self.answers(questions)
        if self._model.bundle.has(*RETRIEVAL):
            self.probabilities(statements)

    def answers(self, questions: Sequence[str]) -> list[str]:
        """Questions -> answers, one line each."""
        new = [question for question in dict.fromkeys(questions) if question not in self._answers]
        tasks = dict(zip(new, self._tasks.of_questions(new, merge(Options(), {})) if new else (), strict=True))
        for answers_of, group in (
            (self._short, [question for question in new if tasks[question].short_question]),
            (self._generated, [question for question in new if not tasks[question].short_question]),
        ):
            for start in range(0, len(group), BATCH):
                if self._cancelled():
                    break
                chunk = group[start : start + BATCH]
                found = answers_of([tasks[question] for question in chunk])
                self._count([tasks[question].prompt for question in chunk], found)
                self._answers |= {question: str(text) for question, text in zip(chunk, found, strict=True)}
        return [self._answers.get(question, "") for question in questions]

    def _short(self, tasks: Sequence[GenerationTask]) -> list[Scored]:
        return self._pipeline.short_answers(np.repeat(self._features, len(tasks), axis=0), tasks)

    def _generated(self, tasks: Sequence[GenerationTask]) -> list[Scored]:
        prompts, features = [task.prompt for task in tasks], np.repeat(self._features, len(tasks), axis=0)
        settings = tasks[0].guided(tasks[0].settings, [features], [prompt.text for prompt in prompts])
        prefix = self._prefix([task.question for task in tasks])
        return [texts[0] for texts in self._pipeline.language.generate(prefix, prompts, settings, tidied=True)]

    def likeliest(self, question: str, choices: Sequence[str]) -> int:
        """The number of the choice that the language model finds likeliest as an answer."""
        if len(choices) < 2 or self._cancelled():
            return 0
        self._count([self._pipeline.language.ask_prompt(question)], [])
        return self._pipeline.judge.choose(self._features, question, choices)

    def yes_question(self, statement: str) -> str | None:
        """The question that a short statement answers, "is there no dog?" for "no dog"; None if it needs generating."""
        if len(statement.split()) > MAX_PHRASE_WORDS:
            return None
        question = statement if statement.endswith("?") else f"is there {statement}?"
        [task] = self._tasks.of_questions([question], merge(Options(), {}))
        short = task.short_question
        return question if short is not None and short.kind in ("presence", "statement", "colour") else None

    def stated(self, statement: str) -> str | None:
        """The text whose probability tells whether a statement is true; None if answers must be compared."""
        phrase = native.phrase_of(statement) or statement
        return None if not self._pipeline.judges or phrase.endswith("?") else phrase

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """Texts -> how probably the picture shows each, 0 to 1; 0 for a text without words."""
        if not self._model.bundle.has(*RETRIEVAL):
            best = self.likeliest("what is in the picture?", texts)
            return [float(i == best) for i in range(len(texts))]
        new = [text for text in dict.fromkeys(texts) if text not in self._probabilities and native.has_words(text)]
        for start in range(0, len(new), BATCH):
            if self._cancelled():
                break
            chunk = new[start : start + BATCH]
            found = self._model.match_features(np.repeat(self._features, len(chunk), axis=0), chunk)
            self._probabilities |= {text: match.probability for text, match in zip(chunk, found, strict=True)}
        return [self._probabilities.get(text, 0.0) for text in texts]

    def labels(self) -> list[tuple[str, float]]:
        """What is seen, with probabilities, the most probable first."""
        if self._labels is None and self._model.matcher.is_calibrated:
            [tags] = self._model.matcher.tagger(None, _MOST_LABELS, _LEAST_PROBABILITY).tags(self._features)
            self._labels = [(str(tag), tag.probability) for tag in tags] or None
        if self._labels is None:
            answers = self.answers(["what is in the picture?", "what is the main object?", *_FACTS.values()])[:3]
            names = list(dict.fromkeys(name for answer in answers for name in split(answer)))
            self._labels = sorted(zip(names, self.probabilities(names), strict=True), key=lambda label: -label[1])
        return self._labels

    def details(self) -> list[str]:
        """The caption, and short statements about place, background and colours."""
        details, facts = [self.caption], zip(_FACTS, self.answers(list(_FACTS.values())), strict=True)
        details += [
            f"{about}: {answer}" for about, answer in facts if not set(answer.split()) <= set(self.caption.split())
        ]
        return details

    def _prefix(self, questions: Sequence[str]) -> Floats:
        if self._model.bundle.manifest.question is None:
            return np.repeat(self._pipeline.judge.prefix_embeds(self._features, [""]), len(questions), axis=0)
        return self._pipeline.judge.prefix_embeds(np.repeat(self._features, len(questions), axis=0), questions)

    def _count(self, prompts: Sequence[Prompt], texts: Sequence[Any]) -> None:
        spec = self._model.bundle.manifest.llm
        assert spec is not None
        self.prompt_tokens += sum(spec.prefix_length + len(self._pipeline.language.encode(each)) for each in prompts)
        self.completion_tokens += sum(len(text.tokens) for text in texts)


def split(answer: str) -> list[str]:
    """An answer that lists things -> the things, without articles."""
    parts = [re.sub(r"^(an?|the|some) ", "", part.strip(" .")) for part in _SEPARATOR.split(answer)]
    return list(dict.fromkeys(part for part in parts if part))
