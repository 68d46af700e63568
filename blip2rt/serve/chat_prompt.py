"""Reduce a chat to what BLIP-2 reads: an image, with one question or none (a caption), as a text or as JSON.

The rules are in docs/serve.md, "How a chat becomes a prompt", and docs/structured.md. A sentence ends at a full stop,
exclamation mark or question mark before a space or the end. Pure functions: texts in, a job out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..structured import Form, read
from ..structured.questions import extract_question
from ..structured.schema import MAX_DEPTH
from .errors import bad_request
from .inference import TextJob
from .request_body import image_bytes

GREETING = "Hello! Send me a picture, and I will describe it or answer a question about it."
_NO_IMAGE = "there is no picture, and this model only answers about pictures: send one, as a part of type image_url"
_GREETS = re.compile(
    r"^(hi|hello|hey|good (morning|afternoon|evening)|test(ing)?|ping|are you (there|up|online))\b", re.IGNORECASE
)
_MAX_GREETING_WORDS = 6
_MAX_OBJECTS = 20  # JSON objects that are looked for in a request's texts
_TEXT = {"type": "string"}


@dataclass(frozen=True)
class Turn:
    """One message: its role, the texts of its parts, and its images."""

    role: str
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def question(self) -> str | None:
        """What the message asks; None for a caption."""
        return extract_question(self.texts)


@dataclass(frozen=True)
class JsonFormat:
    """JSON instead of a text. name: the field that asks for it. form: None if the chat's texts describe it."""

    name: str
    form: Form | None = None


@dataclass(frozen=True)
class Conversation:
    """A chat, as the requests of all protocols are read. options and stop_strings are those of TextJob."""

    turns: Sequence[Turn]
    options: Mapping[str, Any]
    stop_strings: tuple[str, ...]
    json: JsonFormat | None = None
    images_field: str = "messages"  # of the request, for errors

    @property
    def texts(self) -> list[str]:
        """The texts of all turns."""
        return [text for turn in self.turns for text in turn.texts]


def text_job(chat: Conversation) -> TextJob | None:
    """Reduce a chat to the job that its last image and question make; None for a greeting. Raises ApiError."""
    turns, asked = chat.turns, range(len(chat.turns))[::-1]
    shown = next((i for i in asked if turns[i].images), None)
    if shown is None:
        if chat.json is not None or not _greets(turns):
            raise bad_request(_NO_IMAGE, "messages", "image_missing")
        return None
    last = next((i for i in asked if turns[i].role == "user"), shown)
    question = turns[last].question
    history = () if question is None else tuple(_answered_questions(turns[shown:last]))
    form = None if chat.json is None else chat.json.form or described_form(chat.texts, question, chat.json.name)
    image = image_bytes(turns[shown].images[-1], chat.images_field)
    return TextJob(image, question, None, history, chat.options, chat.stop_strings, form)


def _greets(turns: Sequence[Turn]) -> bool:
    """Whether the last user message has no words, or only checks that somebody answers."""
    texts = next((turn.texts for turn in reversed(turns) if turn.role == "user"), ())
    words = " ".join(texts).split()
    return not words or (len(words) <= _MAX_GREETING_WORDS and _GREETS.match(" ".join(words)) is not None)


def _answered_questions(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """Pair questions with their answers. Requests for captions are left out."""
    question: str | None = None
    for turn in turns:
        if turn.role == "user":
            question = turn.question
        elif turn.role == "assistant" and question is not None:
            if answer := " ".join(" ".join(turn.texts).split()):
                yield question, answer
            question = None


def form_of(schema: Any, param: str) -> Form:
    """Return the form of a JSON Schema. Raises ApiError, which names the field that cannot be filled."""
    try:
        return read(schema)
    except OptionError as error:
        raise bad_request(f"{param}: {error}", param, "unsupported_schema") from None


def described_form(texts: Sequence[str], question: str | None, param: str) -> Form:
    """Return the form of a JSON object without a schema: a schema or an example in the texts, the last text first.

    Otherwise the object holds the answer to a question, or a caption and labels.
    """
    for text in reversed(texts):
        for found in _objects(text):
            is_schema = "properties" in found and isinstance(found["properties"], Mapping)
            return form_of(found if is_schema else schema_like(found), param)
    properties: dict[str, Any] = {"answer": _TEXT}
    if question is None:
        properties = {"caption": _TEXT, "labels": {"type": "array", "items": _TEXT}}
    return form_of({"type": "object", "properties": properties}, param)


def schema_like(example: Any, depth: int = 0) -> dict[str, Any]:
    """Return a JSON Schema of values like an example's. A number from 0 to 1 is one in all of them."""
    if depth > MAX_DEPTH:
        return {}  # of a schema that is rejected
    if isinstance(example, Mapping):
        properties = {name: schema_like(value, depth + 1) for name, value in example.items()}
        return {"type": "object", "properties": properties}
    if isinstance(example, list):
        return {"type": "array", "items": schema_like(example[0] if example else "", depth + 1)}
    if isinstance(example, bool) or example is None:
        return {"type": "null" if example is None else "boolean"}
    if isinstance(example, int):
        return {"type": "integer"}
    if isinstance(example, float):
        return {"type": "number", **({"minimum": 0, "maximum": 1} if 0 <= example <= 1 else {})}
    return _TEXT


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text that are not empty."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_MAX_OBJECTS):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            found, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if found:
            yield found
