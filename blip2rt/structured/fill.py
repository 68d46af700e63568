"""A picture and a form -> JSON that is valid under the form's schema, field by field.

Texts are captions or answers, choices are what the language model finds likeliest, lists hold what is seen. A first
pass over the form collects the questions, so that they are asked in batches.
"""

import json
import math
import re
from collections.abc import Sequence

from .form import JSON, MAX_COUNTED, Array, Choice, Flag, Form, Number, Object, Text, items_of
from .picture import Picture, split
from .questions import (
    ANSWER_WORDS,
    LABEL_WORDS,
    SURE_WORDS,
    UNSAFE,
    count_question,
    list_question,
    meanings,
    named_chance,
    open_question,
    statement,
    words_of,
)
from .schema import MAX_FIELDS

_VARIANTS = 3  # captions that a long text may use
_LEAST_UNSAFE = 0.85  # probability: of 593 ordinary photographs, none is so likely; most unsafe ones are not, either
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_DIGITS = re.compile(r"-?\d+(\.\d+)?")


class _Filling:
    """One pass over a form. While it collects questions, answers are empty and nothing runs but what lists need."""

    def __init__(self, picture: Picture, instruction: str | None, collecting: bool) -> None:
        self._picture, self._instruction, self._collecting = picture, instruction, collecting
        self.questions: list[str] = []
        self.statements: list[str] = []

    def value(self, form: Form, label: tuple[str, float] | None = None) -> JSON:
        """label: what the object in a list is about, and how sure that is."""
        if isinstance(form, Object):
            return {name: self.value(each, label) for name, each in form.properties}
        if isinstance(form, Array):
            return self._array(form, label)
        if isinstance(form, Choice):
            return self._choice(form, label)
        if isinstance(form, Flag):
            question = statement(form.name, form.description)
            question = self._instruction or question if form.path == "$" else question
            if question == UNSAFE:
                return self._probabilities([UNSAFE])[0] > _LEAST_UNSAFE
            if (asked := self._picture.yes_question(question)) is not None:
                return self._ask(asked) == "yes"
            if (stated := self._picture.stated(question)) is not None:
                return self._probabilities([stated])[0] > 0.5
            return self._likeliest(question, ["no", "yes"]) == 1
        return self._text(form, label) if isinstance(form, Text) else self._number(form, label)

    def _ask(self, question: str) -> str:
        if self._collecting:
            self.questions.append(question)
            return ""
        return self._picture.answers([question])[0]

    def _probabilities(self, texts: Sequence[str]) -> list[float]:
        if self._collecting:
            self.statements += texts
            return [0.0] * len(texts)
        return self._picture.probabilities(texts)

    def _likeliest(self, question: str, choices: Sequence[str]) -> int:
        return 0 if self._collecting else self._picture.likeliest(question, choices)

    def _about(self, question: str, label: tuple[str, float] | None) -> str:
        if label is None:
            return question
        return f"{question.rstrip('?')} of the {label[0]}?" if question.startswith("what") else question

    def _text(self, form: Text, label: tuple[str, float] | None) -> str:
        if label is not None and LABEL_WORDS.intersection(words_of(form.name)):
            return self._fit(form, label[0])
        question = open_question(form.name, form.description)
        if self._instruction and (
            not form.name or (question is None and ANSWER_WORDS.intersection(words_of(form.name)))
        ):
            question = self._instruction
        return self._fit(form, "" if question is None else self._ask(self._about(question, label)))

    def _fit(self, form: Text, text: str) -> str:
        """A text, or the caption, within the limits of a field: longer ones end at a word, shorter ones say more."""
        if self._collecting:
            return text
        text = text or self._picture.caption or "nothing"
        if len(text) < form.min_length:
            texts = [*self._picture.details(), *self._picture.captions(_VARIANTS)]
            more = [each for each in dict.fromkeys(map(str, texts)) if each and each != text]
            text = ". ".join([text, *more])
            while len(text) < form.min_length:
                text = f"{text}. {text}"
        if form.max_length is None or len(text) <= form.max_length:
            return text
        cut = text[: form.max_length]
        shorter = cut.rsplit(None, 1)[0].rstrip(" ,.;:") if " " in cut.strip() else cut
        return shorter if len(shorter) >= form.min_length else cut

    def _choice(self, form: Choice, label: tuple[str, float] | None) -> JSON:
        if len(form.values) == 1:
            return form.values[0]
        known = meanings(form.description)
        texts = [known.get(value, str(value)) if type(value) is int else _words(value) for value in form.values]
        question = open_question(form.name, form.description) or f"what is the {' '.join(words_of(form.name))}?"
        if not form.name and self._instruction:
            question = self._instruction
        return form.values[self._likeliest(self._about(question, label), texts)]

    def _number(self, form: Number, label: tuple[str, float] | None) -> int | float:
        if not form.whole and form.low <= 1 and form.high >= 0 and SURE_WORDS.intersection(words_of(form.name)):
            return _clamped(form, round(self._sure(form, label), 3))
        wording = count_question if form.whole else open_question
        question = self._about(wording(form.name, form.description) or "how many are there?", label)
        if not form.name and self._instruction:
            question = self._instruction
        low = form.low if math.isfinite(form.low) else _clamped(form, 0)
        counts = question.startswith("how many ")  # as any other count: none of what is absent
        if form.whole and math.isfinite(form.high) and form.high - low <= MAX_COUNTED and not counts:
            values = range(int(low), int(form.high) + 1)
            known = meanings(form.description)
            return values[self._likeliest(question, [known.get(value, str(value)) for value in values])]
        return _clamped(form, number_in(self._ask(question)))

    def _sure(self, form: Number, label: tuple[str, float] | None) -> float:
        about = named_chance(form.name)
        if about is not None:
            return self._probabilities([about])[0]
        if label is not None:
            return label[1]
        return 0.0 if self._collecting else self._picture.confidence

    def _array(self, form: Array, label: tuple[str, float] | None) -> list[JSON]:
        item, most = form.item, math.inf if form.max_items is None else form.max_items
        if item is None or not most:
            return []
        values = self._items(form, item, label)
        unique = list({json.dumps(value, sort_keys=True): value for value in values}.values())
        least = form.min_items
        while len(unique) < least:  # only where items may repeat
            unique.append(values[len(unique) % len(values)] if values else self.value(item, label))
        return unique[: int(min(most, max(least, len(unique))))]

    def _items(self, form: Array, item: Form, label: tuple[str, float] | None) -> list[JSON]:
        """What a list is filled with, best first, perhaps too much of it."""
        most = items_of(form)
        if isinstance(item, Choice):
            return self._present(form, item)
        if isinstance(item, Text):
            return [self._fit(item, text) for text in self._texts(form, item, most)]
        names = [] if label is not None or not isinstance(item, Object) else [name for name, _ in item.properties]
        if not any(LABEL_WORDS.intersection(words_of(name)) for name in names):
            return [self.value(item, label)]
        most = max(form.min_items, min(most, MAX_FIELDS // len(names)))
        seen = self._picture.labels()[:most] or [("thing", 0.0)]
        return [self.value(item, each) for each in seen]

    def _texts(self, form: Array, item: Text, most: int) -> list[str]:
        words = words_of(form.name)
        if LABEL_WORDS.intersection(words) or not words:
            return [name for name, _ in self._picture.labels()[:most]]
        question = list_question(form.name, form.description)
        if question is not None:
            return split(self._ask(question))[:most] or [""]
        return [""] if self._collecting else self._picture.details()[: max(most, form.min_items)]

    def _present(self, form: Array, item: Choice) -> list[JSON]:
        chances = self._probabilities([_words(value) for value in item.values])
        ranked = sorted(zip(chances, item.values, strict=True), key=lambda pair: -pair[0])
        return [value for chance, value in ranked if chance > 0.5] + [
            value for chance, value in ranked if chance <= 0.5
        ][: max(0, form.min_items - sum(chance > 0.5 for chance in chances))]


def fill_form(picture: Picture, form: Form, instruction: str | None = None) -> JSON:
    """Picture and form -> the value. instruction: what an unnamed field, or an only "answer", asks."""
    first = _Filling(picture, instruction, collecting=True)
    first.value(form)
    picture.prepare(first.questions, first.statements)
    return _Filling(picture, instruction, collecting=False).value(form)


def number_in(text: str) -> float:
    """The first number in an answer, in digits or words; 0 if there is none."""
    if found := _DIGITS.search(text):
        return float(found[0])
    words = text.lower().split()
    return float(next((_NUMBER_WORDS.index(word) for word in words if word in _NUMBER_WORDS), 0))


def _clamped(form: Number, value: float) -> int | float:
    """The number of a field that is nearest to a value; one of hundreds of digits counts as 1e15."""
    value = min(max(value, -1e15), 1e15)
    value = min(max(round(value) if form.whole else value, form.low), form.high)
    return int(value) if form.whole else value + 0.0  # not -0.0, which equals 0.0 and differs as a text


def _words(value: JSON) -> str:
    """An enum's value as words."""
    return " ".join(value.replace("_", " ").split()) if isinstance(value, str) else json.dumps(value)
