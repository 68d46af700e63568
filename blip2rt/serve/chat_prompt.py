"""Reduce a chat to what BLIP-2 reads: an image and no words (a caption), or an image and one question.

The rules are in docs/serve.md, "How a chat becomes a prompt". A sentence ends at a full stop, exclamation mark or
question mark before a space or the end. Pure functions: texts in, texts out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741  # a reference to an image

GREETING = "Hello! Send me a picture, and I will describe it or answer a question about it."
NO_IMAGE = "there is no picture, and this model only answers about pictures: send one, as a part of type image_url"
MAX_PHRASE_WORDS = 12

_IMAGE_LABELS = re.compile(
    r"^((\[img(-\d+)?\]|((image|picture|photo|frame|figure) ?#?\d+( of \d+)?|[\w .-]+\.(jpe?g|png|webp|gif)) ?(:|$))"
    r" ?)+",
    re.IGNORECASE,
)
_GREETS = re.compile(
    r"^(hi|hello|hey|good (morning|afternoon|evening)|test(ing)?|ping|are you (there|up|online))\b", re.IGNORECASE
)
_MAX_GREETING_WORDS = 6
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


@dataclass(frozen=True)
class Turn(Generic[I]):
    """One message: its role, the texts of its parts, and its images."""

    role: str
    texts: tuple[str, ...] = ()
    images: tuple[I, ...] = ()


@dataclass(frozen=True)
class ChatPrompt(Generic[I]):
    """What the model is asked. Without a question the reply is a caption, without an image it is GREETING."""

    image: I | None
    question: str | None = None
    history: tuple[tuple[str, str], ...] = ()  # earlier questions about the same image, with their answers


def chat_prompt(turns: Sequence[Turn[I]], with_history: bool) -> ChatPrompt[I]:
    """Reduce a conversation to a prompt. with_history: whether the model can continue a conversation.

    Raises ValueError if it asks for something without a picture.
    """
    shown = next((i for i in reversed(range(len(turns))) if turns[i].images), None)
    if shown is None:
        if not greets(turns):
            raise ValueError(NO_IMAGE)
        return ChatPrompt(None)
    image = turns[shown].images[-1]
    last = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), shown)
    question = extract_question(turns[last].texts)
    if not with_history or question is None:
        return ChatPrompt(image, question)
    return ChatPrompt(image, question, tuple(_answered_questions(turns[shown:last])))


def greets(turns: Sequence[Turn[I]]) -> bool:
    """Whether the last user message has no words, or only checks that somebody answers."""
    texts = next((turn.texts for turn in reversed(turns) if turn.role == "user"), ())
    words = " ".join(texts).split()
    return not words or (len(words) <= _MAX_GREETING_WORDS and _GREETS.match(" ".join(words)) is not None)


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


def _answered_questions(turns: Sequence[Turn[I]]) -> list[tuple[str, str]]:
    """Pair questions with their answers. Requests for captions are left out."""
    pairs: list[tuple[str, str]] = []
    question: str | None = None
    for turn in turns:
        if turn.role == "user":
            question = extract_question(turn.texts)
        elif turn.role == "assistant" and question is not None:
            if answer := " ".join(" ".join(turn.texts).split()):
                pairs.append((question, answer))
            question = None
    return pairs
