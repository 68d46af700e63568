"""Questions that need no generated answer: whether a picture shows something, and how many. Knows English, no model."""

from __future__ import annotations

import re

_PICTURE = r"(?:the|this|that) (?:picture|image|photo|photograph|scene|shot|frame|view|snapshot)"
_SHOWN = r"(?:visible |present |shown )?"
_PLACE = rf"(?: (?:at all|anywhere|somewhere|here|visible|present|shown|in it|{_SHOWN}(?:in|on) {_PICTURE}))"
_DEFINITE = r"(?!(?:the|this|that|these|those|it|he|she|they|we|you|i) )"
# `re` compiles these patterns when a question is first read, and keeps them.
_QUESTIONS = (
    rf"(?:is|are) there (?P<what>.+?){_PLACE}*",
    rf"(?:do|can) (?:you|we|i) (?:see|spot|find|detect|notice) (?P<what>.+?){_PLACE}*",
    rf"do(?:es)? {_PICTURE} (?:show|contain|have|include|depict) (?P<what>.+?){_PLACE}*",
    rf"(?:is|are) (?P<what>(?:a|an|any|some) .+?){_PLACE}+",
    rf"(?:is|are) (?P<what>{_DEFINITE}.+?) (?:visible|in {_PICTURE}){_PLACE}*",
)
# What these words ask is not whether something is there.
_OTHER = (
    r"\b(?:no|not|none|nothing|or|else|same|more|less|fewer|many|much|several|both|another|other|only|one|two|three|four"
    r"|five|six|seven|eight|nine|ten|\d+|anything|something|everything|what|which|who|why|how|where|when|difference)\b"
)
_NUMBER = r"how many [^?]+"
_ANYONE = {"anyone", "anybody", "someone", "somebody", "any people", "any person", "people", "any persons", "a human"}
_PHRASE_WORDS = 4
_MAX_CHARACTERS = 300  # of a question that is read at all
_ARTICLES = ("a", "an", "the")
_IRREGULAR = {"people", "men", "women", "children", "sheep", "cattle", "fish", "geese", "mice", "teeth", "feet"}
_MASS = set(  # nouns that take no article
    """alcohol baseball basketball beer bread broccoli butter cake cheese chocolate clothing coffee corn dirt fire fog
    food football fruit furniture golf graffiti grass hair hay ice jewelry juice lettuce luggage makeup meat milk
    mud paper pasta pizza popcorn rain rice salad sand seafood silverware skiing smoke snow snowboarding soccer soup
    steam string sunlight surfing sushi swimming tea tennis text toast traffic trash water wheat wine wood
    yogurt""".split()
)
_SENTENCE_END = r"(?<=[?!.]) "
_INSTRUCTION = r"(?:please )?(?:just |only )?(?:answer|reply|respond|say)\b"


def phrase_of(question: str) -> str | None:
    """Return "a cat" for "Is there a cat in the picture?"; None if a text does not ask whether something is there."""
    text = _sentence_of(question)
    for pattern in _QUESTIONS:
        found = re.fullmatch(pattern, text)
        if found is not None and not re.search(_OTHER, found["what"]):
            what = found["what"]
            return "a person" if what in _ANYONE else re.sub(r"^(?:any|some|the) ", "", what)
    return None


def number_question(question: str) -> str | None:
    """Return "how many cats are there?" for "How many cats are there? Answer briefly."; None for other questions."""
    text = _sentence_of(question)
    return f"{text}?" if re.fullmatch(_NUMBER, text) else None


def _sentence_of(question: str) -> str:
    """The only sentence of a question but for requests to be brief, in lower case; empty if there are more."""
    if len(question) > _MAX_CHARACTERS:
        return ""
    parts = (part.strip("?!. ") for part in re.split(_SENTENCE_END, " ".join(question.lower().split())))
    asked = [part for part in parts if part and not re.match(_INSTRUCTION, part)]
    return asked[0].removeprefix("please ").removesuffix(" please").rstrip(", ") if len(asked) == 1 else ""


def is_phrase(text: str) -> bool:
    """Whether a text is so short that it names a thing, as "a black cat" does. Longer ones are sentences."""
    return len(text.split()) <= _PHRASE_WORDS


def question_of(phrase: str) -> str:
    """Return "is there a cat?" for "a cat"."""
    words = phrase.rstrip(" .").split()
    many = bool(words) and words[0] not in _ARTICLES and _is_plural(words[-1]) and "of" not in words
    return f"{'are' if many else 'is'} there {' '.join(words)}?"


def with_article(phrase: str) -> str:
    """Return "a cat" for "cat". Plurals, mass nouns, sentences and phrases with an article stay."""
    words = phrase.split()
    head = re.split(" (?:of|in|on|at|with) ", phrase)[0].rpartition(" ")[2]
    if not words or len(words) > 3 or words[0] in _ARTICLES or head in _MASS or _is_plural(head):
        return phrase
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {phrase}"


def without_article(phrase: str) -> str:
    """Return "cat" for "a cat"."""
    article, _, rest = phrase.partition(" ")
    return rest if article.lower() in _ARTICLES and rest else phrase


def plural_of(noun: str) -> str:
    """Return "cats" for "cat", by the last word's ending."""
    if noun.endswith("man") and not noun.endswith("human"):
        return f"{noun[:-2]}en"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"


def _is_plural(word: str) -> bool:
    return (word.endswith("s") and not word.endswith(("ss", "us", "is"))) or word in _IRREGULAR
