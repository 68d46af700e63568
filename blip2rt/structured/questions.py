"""The question in a text, and the question that a field of a form asks. Pure functions of texts."""

import re
from collections.abc import Sequence

from ..native import native

MAX_PHRASE_WORDS = 12

_IMAGE_LABELS = re.compile(
    r"^((\[img(-\d+)?\]|((image|picture|photo|frame|figure) ?#?\d+( of \d+)?|[\w .-]+\.(jpe?g|png|webp|gif)) ?(:|$))"
    r" ?)+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]* ")
_IMAGE = (
    r"(this|the|that|my|an?|each)?\s*(attached|following|given|above|provided)?\s*"
    r"(image|picture|photo|photograph|frame|scene|snapshot)s?"
)
_ASKS_WHAT_IS_SHOWN = re.compile(
    rf"^(please\s+)?((can|could|would) you (please )?)?((describe|caption|explain|tell me about)\b.*"
    rf"|(tell me )?(what('s| is| are| do you see| can you see| you (can )?see| can be seen| is shown| does it show"
    rf"| is happening| is going on)"
    rf"\s*(there)?\s*(in|on|here|happening in|going on in|shown in|depicted in)?\s*({_IMAGE})?( is)?"
    rf"|what (does |do )?{_IMAGE} (show|depict|contain|is of|is about)s?"
    rf"|what('s| is) {_IMAGE} (of|about)))\s*\?*$",
    re.IGNORECASE,
)
_ASKS_TO_DESCRIBE = re.compile(
    r"^(please\s+)?(briefly\s+|shortly\s+)?(describe|caption|summari[sz]e|analy[sz]e|explain|generate|create|write"
    r"|provide|give|tell(?! me (what|who|where|when|why|how|which|whether|if)\b)|look|make|return|respond"
    r"|identify and describe|detail|narrate|a (photo|picture|image) of)\b",
    re.IGNORECASE,
)

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\-./ ]+")
_TOLD_BY_CAPTION = frozenset(
    "alt analysis answer caption comment content description describe detail details explanation headline message "
    "narrative note observation observations output overview rationale reason reasoning response result scene sentence "
    "sentences story summary text title".split()
)
LABEL_WORDS = frozenset(
    "categories category class entities entity item items keyword keywords label labels name names object objects tag "
    "tags thing things".split()
)
_COUNTS = frozenset("number num n of count total how many".split())
ANSWER_WORDS = frozenset("answer output reply response result".split())
SURE_WORDS = frozenset("certainty confidence likelihood probability relevance score topicality".split())
_COMMON = {
    "location place setting where": "where is this?",
    "activity action doing happening": "what is happening?",
    "animal pet": "what animal is it?",
    "time": "what time of day is it?",
    "weather": "what is the weather like?",
}
_WHETHER = re.compile(r"^(whether|true (if|when)|set to true (if|when)|if|is true (if|when))\s+", re.IGNORECASE)
_SHOWS = re.compile(
    r"^(there (is|are) |(it|this|((the|this) )?(image|picture|photo|scene)) (is |was )?(taken |shows |contains |has )?"
    r"|(is|are|has|have|contains?|shows?|with|in) )"
    r"|( (is|are|be))? (visible|present|detected|seen|shown|found)( in .*)?$",
    re.IGNORECASE,
)
_ARTICLE = re.compile("(the|an?|any|some|this|that|its?|their|what) ")
UNSAFE = "sexual content"  # what "nsfw" states
_MEANING = re.compile(r"(-?\d+)\s*(?:=|:|is|means|–|—)\s*([a-z][\w' -]{0,60})", re.IGNORECASE)


def extract_question(texts: Sequence[str]) -> str | None:
    """Return the question in a message's texts, or None if it asks for a caption."""
    lines = [_IMAGE_LABELS.sub("", " ".join(line.split())) for text in texts for line in text.splitlines()]
    text = " ".join(line for line in lines if line)
    sentences = [sentence.strip(" !\"'()[]") for sentence in _SENTENCE_END.split(text)]
    questions = [sentence for sentence in sentences if sentence.endswith("?") and any(map(str.isalnum, sentence))]
    if questions:
        return None if _ASKS_WHAT_IS_SHOWN.match(questions[-1]) else questions[-1]
    if not text or len(text.split()) > MAX_PHRASE_WORDS or not any(map(str.isalnum, text)):
        return None
    return None if _ASKS_TO_DESCRIBE.match(text) or _ASKS_WHAT_IS_SHOWN.match(text.rstrip(" .!:")) else text


def words_of(name: str) -> list[str]:
    """A property's name -> its words, in lower case: potentialThreat_level -> potential, threat, level."""
    return [word.lower() for word in _WORD_START.split(name) if word]


def open_question(name: str, description: str) -> str | None:
    """What a text or number field asks about the picture; None: its caption."""
    words = words_of(name)
    phrase = " ".join(_first_sentence(description).split()).rstrip(".:")
    if "?" in description or not words:
        return extract_question([description])
    if _TOLD_BY_CAPTION.intersection(words) or (phrase and extract_question([phrase]) is None):
        return None
    for common, question in _COMMON.items():
        if words[-1] in common.split():
            return question
    if phrase and phrase[0].isalpha() and len(phrase.split()) <= MAX_PHRASE_WORDS:
        phrase = phrase[0].lower() + phrase[1:]
        return f"what is {phrase}?" if _ARTICLE.match(phrase) else f"what is the {phrase}?"
    return f"what is {'his' if is_personal(name) else 'the'} {' '.join(words)}?"


def list_question(name: str, description: str) -> str | None:
    """What a list of texts asks; None: what the caption tells, and more."""
    if "?" in description:
        return extract_question([description])
    words = words_of(name)
    return None if _TOLD_BY_CAPTION.intersection(words) else f"what {' '.join(words)} are there?"


def count_question(name: str, description: str) -> str:
    """What a whole number asks."""
    words = [word for word in words_of(name) if word not in _COUNTS]
    if "?" in description:
        return extract_question([description]) or description
    if found := re.search(r"\b(number|count|amount) of ([\w ]+)", description, re.IGNORECASE):
        return f"how many {found[2].strip()} are there?"
    if words != words_of(name):
        return f"how many {' '.join(words) or 'things'} are there?"
    return open_question(name, description) or f"how many {' '.join(words) or 'things'} are there?"


def statement(name: str, description: str) -> str:
    """What is true if a boolean field is: a question, or a phrase such as "indoors"."""
    if "?" in description:
        return extract_question([description]) or description
    clause = " ".join(_first_sentence(description).split()).rstrip(".")
    condition = _WHETHER.sub("", clause)
    if condition == clause:  # no condition: the name says more
        condition = " ".join(words_of(name)) or clause or "something"
    condition = _SHOWS.sub("", _SHOWS.sub("", condition)) or condition
    return UNSAFE if condition == "nsfw" else condition


def is_personal(name: str, description: str = "") -> bool:
    """Whether a property, or the statement of a boolean, is about what no picture shows of people, such as religion."""
    asked = f"is it his {' '.join(words_of(name))}?", f"is {statement(name, description)}?"
    found = [native.short_question(question) for question in asked[: 1 + bool(description)]]
    return any(each is not None and each.kind == "fixed" for each in found)


def named_chance(name: str) -> str | None:
    """What a number such as dog_probability is about, as a statement; None if it is the whole answer."""
    words = words_of(name)
    about = " ".join(word for word in words if word not in SURE_WORDS and word not in ("level", "overall"))
    return statement(about, "") if about and not _TOLD_BY_CAPTION.intersection(words) else None


def meanings(description: str) -> dict[int, str]:
    """What numbers mean by a description: "0 = normal, 1 = suspicious" -> {0: "normal", 1: "suspicious"}"""
    return {int(number): meaning.strip() for number, meaning in _MEANING.findall(description)}


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
