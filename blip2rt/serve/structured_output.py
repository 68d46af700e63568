"""What a request wants filled: a JSON Schema, a tool's parameters, or the JSON that its texts describe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import OptionError
from ..structured import Form, read
from ..structured.questions import extract_question
from ..structured.schema import MAX_DEPTH
from .errors import bad_request

_MAX_OBJECTS = 20  # JSON objects that are looked for in a request's texts
_TEXT = {"type": "string"}


def form_of(schema: Any, param: str) -> Form:
    """Return the form of a JSON Schema. Raises ApiError, which names the field that cannot be filled."""
    try:
        return read(schema)
    except OptionError as error:
        raise bad_request(f"{param}: {error}", param, "unsupported_schema") from None


def form_in(texts: Sequence[str], param: str) -> Form:
    """Return the form of a JSON object without a schema: a schema or an example in the texts, the last text first.

    Otherwise the object holds the answer to a question, or a caption and labels.
    """
    for text in reversed(texts):
        for found in _objects(text):
            is_schema = "properties" in found and isinstance(found["properties"], Mapping)
            return form_of(found if is_schema else schema_like(found), param)
    if texts and extract_question(texts[-1:]) is not None:
        return form_of({"type": "object", "properties": {"answer": _TEXT}}, param)
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
