"""How a chat becomes what BLIP-2 reads: a picture and no words, or a picture and one question.

BLIP-2 writes captions and short answers, and follows no instructions. So instructions are read for what they are after:

1. The picture is the last one of the conversation. Without any, a fixed sentence answers.
2. System prompts, and what tools say, are left out.
3. The words are the last user message's, without labels of pictures at the start of a line ("Image 1:", "[img]",
   "front_door.jpg:").
4. Words that hold a question are a question: the last sentence that ends with a question mark. A sentence ends at a
   full stop, an exclamation mark or a question mark before a space or the end. "What is in this picture?" and its
   like, and no words at all, ask for a caption.
5. A few words without a question mark are asked as they are, unless they begin with a verb like "describe". "Tell me
   what" and its like begin a question. Everything longer is an instruction, and gets a caption.
6. Earlier questions and answers about the same picture go before the question, where the model can chat.

docs/serve.md tells it to users. Pure: texts in, texts out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741  # an image, however it is held

HELLO = "Hello! Send me a picture, and I will describe it or answer a question about it."
FEW_WORDS = 12

_LABELS = re.compile(
    r"^((\[img(-\d+)?\]|((image|picture|photo|frame|figure) ?#?\d+( of \d+)?|[\w .-]+\.(jpe?g|png|webp|gif)) ?(:|$))"
    r" ?)+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]* ")
_PICTURE = (
    r"(this|the|that|my|an?|each)?\s*(attached|following|given|above|provided)?\s*"
    r"(image|picture|photo|photograph|frame|scene|snapshot)s?"
)
_WHATS_THERE = re.compile(
    rf"^(please\s+)?((can|could|would) you (please )?)?((describe|caption|explain|tell me about)\b.*"
    rf"|(tell me )?(what('s| is| are| do you see| can you see| you (can )?see| can be seen| is shown| does it show"
    rf"| is happening| is going on)"
    rf"\s*(there)?\s*(in|on|here|happening in|going on in|shown in|depicted in)?\s*({_PICTURE})?( is)?"
    rf"|what (does |do )?{_PICTURE} (show|depict|contain|is of|is about)s?"
    rf"|what('s| is) {_PICTURE} (of|about)))\s*\?*$",
    re.IGNORECASE,
)  # fmt: skip
_ASKS_TO_DESCRIBE = re.compile(
    r"^(please\s+)?(briefly\s+|shortly\s+)?(describe|caption|summari[sz]e|analy[sz]e|explain|generate|create|write"
    r"|provide|give|tell(?! me (what|who|where|when|why|how|which|whether|if)\b)|look|make|return|respond"
    r"|identify and describe|detail|narrate|a (photo|picture|image) of)\b",
    re.IGNORECASE,
)  # fmt: skip


@dataclass(frozen=True)
class Turn(Generic[I]):
    """One message of a conversation: who says it, the texts of its parts, and its pictures."""

    role: str
    texts: tuple[str, ...] = ()
    images: tuple[I, ...] = ()


@dataclass(frozen=True)
class Reading(Generic[I]):
    """What is asked of the model. No image: HELLO answers. No question: the caption is wanted."""

    image: I | None
    question: str | None = None
    history: tuple[tuple[str, str], ...] = ()  # earlier questions about the same picture, and what was answered


def read(turns: Sequence[Turn[I]], chats: bool) -> Reading[I]:
    """A conversation -> what is asked. chats: whether the model goes on from what was said."""
    shown = next((i for i in reversed(range(len(turns))) if turns[i].images), None)
    if shown is None:
        return Reading(None)
    image = turns[shown].images[-1]
    asked = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), shown)
    question = question_of(turns[asked].texts)
    if not chats or question is None:
        return Reading(image, question)
    return Reading(image, question, tuple(_history(turns[shown:asked])))


def question_of(texts: Sequence[str]) -> str | None:
    """The texts of a message -> the question that is in them; None where a caption is wanted."""
    lines = [_LABELS.sub("", " ".join(line.split())) for text in texts for line in text.splitlines()]
    text = " ".join(line for line in lines if line)
    sentences = [sentence.strip(" !\"'()[]") for sentence in _SENTENCE_END.split(text)]
    questions = [sentence for sentence in sentences if sentence.endswith("?") and any(map(str.isalnum, sentence))]
    if questions:
        return None if _WHATS_THERE.match(questions[-1]) else questions[-1]
    if not text or len(text.split()) > FEW_WORDS or not any(map(str.isalnum, text)):
        return None
    return None if _ASKS_TO_DESCRIBE.match(text) or _WHATS_THERE.match(text.rstrip(" .!:")) else text


def _history(turns: Sequence[Turn[I]]) -> list[tuple[str, str]]:
    """Questions that were answered. A caption was no question, and stays out."""
    pairs: list[tuple[str, str]] = []
    question: str | None = None
    for turn in turns:
        if turn.role == "user":
            question = question_of(turn.texts)
        elif turn.role == "assistant" and question is not None:
            answer = " ".join(" ".join(turn.texts).split())
            if answer:
                pairs.append((question, answer))
            question = None
    return pairs


class StopAt:
    """Cuts a text that comes in pieces before the first of `stops`. A piece that may begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Take a piece. Return what certainly stands before every stop."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((length for stop in self._stops for length in range(1, len(stop)) if text.endswith(stop[:length])),
                   default=0)  # fmt: skip
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return what was held back and stands before no stop."""
        held, self._held = self._held, ""
        return held
