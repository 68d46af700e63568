"""Captions -> balanced questions whether something is true: "is the dog swimming?", in a dress, on the street, red.

What is true of an image is what a caption says of a subject. What is false is what captions of another image say: none
of its words, nor a word that suggests one, may be in the image's own captions.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from blip2rt_train.evaluation.truth import NOUNS

_COLOURS = "red|orange|yellow|green|blue|purple|pink|brown|black|white|gray"
_SUBJECTS = "|".join([*(word for noun in NOUNS[:20] for word in noun.words), "player", "skier", "surfer", "rider"])
_THINGS = "|".join(
    ["shirt", "jacket", "coat", "dress", "wall", "house", *(w for noun in NOUNS[4:] for w in noun.words)]
)
_VAGUE = "during|standing|looking|being|having|posing|using|evening|morning|building|getting|going|doing|making|holding"
_LINKS = "in|on|at|with|while|and|near|by|as|to|from|of|for|behind|next|into|through|over|along|between|some|is|are"
_NOUN = rf"(?!(?:{_LINKS}|{_COLOURS})\b)[a-z]+(?= (?:{_LINKS})\b|$)"  # ends a phrase
_PATTERNS = {
    "clothes": rf"\b({_SUBJECTS})(?: is| are)? (wearing (?:a|an) (?:(?:{_COLOURS}) )?{_NOUN})",
    "verb": rf"\b({_SUBJECTS})(?: is| are)? ((?!(?:wearing|{_VAGUE})\b)[a-z]+ing(?: (?:a|an|the|on|in|through|into|with"
    rf"|down|up|over))*(?: (?:his|her|their))? {_NOUN})",
    "place": rf"\b({_SUBJECTS}) (?:[a-z]+ing )?((?:on|in|at|near) (?:a|an|the) {_NOUN})",
    "colour": rf"\b(?P<said>{_COLOURS}) (?P<of>{_THINGS})\b",
}
_NAMES = {word: noun.name for noun in NOUNS for word in noun.words}
_HINTS = {word: {*noun.words, *noun.hints} for noun in NOUNS for word in noun.words}
_LITTLE = set("a an the on in at near through into with down up over his her their wearing".split())
_PLURAL = re.compile(r"(?:[^su]s|people|men|women|children)$")
_TRIES = 60  # of other predicates


@dataclass(frozen=True)
class Fact:
    """What a caption says: "dog", "swimming in a pool"."""

    subject: str
    predicate: str

    def question(self) -> str:
        verb = "are" if _PLURAL.search(self.subject) else "is"
        return f"{verb} the {self.subject} {self.predicate}?"


def facts(captions: Sequence[str]) -> dict[str, list[Fact]]:
    """Cleaned captions of an image -> what they say, by kind."""
    found: dict[str, set[Fact]] = {kind: set() for kind in _PATTERNS}
    for caption in captions:
        for kind, pattern in _PATTERNS.items():
            for match in re.finditer(pattern, caption):
                subject, predicate = match.groups() if kind != "colour" else (match["of"], match["said"])
                found[kind].add(Fact(subject, predicate))
    return {kind: sorted(each, key=Fact.question) for kind, each in found.items()}


def _stems(text: str) -> set[str]:
    return {re.sub(r"(?:ing|s|ed)$", "", word)[:5] for word in text.split() if word not in _LITTLE}


def statements(groups: Mapping[str, Sequence[str]], seed: int, per_kind: int = 1) -> Iterator[tuple[str, ...]]:
    """Images and their cleaned captions -> rows (image, answer, question, kind), a yes and a no of each kind."""
    said = {image: facts(captions) for image, captions in groups.items()}
    pool = {kind: [fact for each in said.values() for fact in each[kind]] for kind in _PATTERNS}
    for image, captions in groups.items():
        rng, own = random.Random(f"{seed}-{image}-facts"), _stems(" ".join(captions))
        for kind, known in said[image].items():
            for fact in rng.sample(known, min(per_kind, len(known))):
                alike = [each for each in pool[kind] if _NAMES.get(each.subject) == _NAMES.get(fact.subject)]
                for other in rng.choices(alike if kind == "verb" else pool[kind], k=_TRIES):
                    words = other.predicate.split()
                    hints = set().union(*(_HINTS.get(word, {word}) for word in words if word not in _LITTLE))
                    if own.isdisjoint(_stems(" ".join(hints))):
                        yield image, "yes", fact.question(), kind
                        yield image, "no", Fact(fact.subject, other.predicate).question(), kind
                        break
