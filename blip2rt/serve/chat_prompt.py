"""Reduce a chat to what BLIP-2 reads: an image and no words (a caption), or an image and one question.

The rules are in docs/serve.md, "How a chat becomes a prompt". A sentence ends at a full stop, exclamation mark or
question mark before a space or the end. Pure functions: texts in, texts out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..structured.questions import extract_question

GREETING = "Hello! Send me a picture, and I will describe it or answer a question about it."
NO_IMAGE = "there is no picture, and this model only answers about pictures: send one, as a part of type image_url"
_GREETS = re.compile(
    r"^(hi|hello|hey|good (morning|afternoon|evening)|test(ing)?|ping|are you (there|up|online))\b", re.IGNORECASE
)
_MAX_GREETING_WORDS = 6


@dataclass(frozen=True)
class Turn:
    """One message: its role, the texts of its parts, and its images."""

    role: str
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatPrompt:
    """What the model is asked. Without a question the reply is a caption, without an image it is GREETING."""

    image: str | None
    question: str | None = None
    history: tuple[tuple[str, str], ...] = ()  # earlier questions about the same image, with their answers


def chat_prompt(turns: Sequence[Turn], with_history: bool, may_greet: bool = True) -> ChatPrompt:
    """Reduce a conversation to a prompt. with_history: whether the model can continue a conversation.

    may_greet: whether a greeting needs no picture. Raises ValueError if a picture is missing.
    """
    shown = next((i for i in reversed(range(len(turns))) if turns[i].images), None)
    if shown is None:
        if not (may_greet and greets(turns)):
            raise ValueError(NO_IMAGE)
        return ChatPrompt(None)
    image = turns[shown].images[-1]
    last = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), shown)
    question = extract_question(turns[last].texts)
    if not with_history or question is None:
        return ChatPrompt(image, question)
    return ChatPrompt(image, question, tuple(_answered_questions(turns[shown:last])))


def greets(turns: Sequence[Turn]) -> bool:
    """Whether the last user message has no words, or only checks that somebody answers."""
    texts = next((turn.texts for turn in reversed(turns) if turn.role == "user"), ())
    words = " ".join(texts).split()
    return not words or (len(words) <= _MAX_GREETING_WORDS and _GREETS.match(" ".join(words)) is not None)


def _answered_questions(turns: Sequence[Turn]) -> list[tuple[str, str]]:
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
