"""OpenAI's API "responses": one text about the last picture. Nothing is stored, so a request holds its whole chat."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..endpoints import Endpoint
from ..errors import ApiError, bad_request
from ..inference import Answer, Piece, TextJob
from ..service import AnswerWriter, Call, sampling_options
from .openai import ChatMessage, Part, ResponseFormat, TokenLimit, format_form, turns_of


class Message(BaseModel):
    """A message, or an item of another type, which is ignored."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: str | list[Part] | None = None


class TextSettings(BaseModel):
    """How the text is written."""

    format: ResponseFormat = Field(default_factory=ResponseFormat)


class ResponsesRequest(BaseModel):
    """POST /v1/responses. Fields without a meaning for BLIP-2, such as instructions, are ignored."""

    model: str | None = None
    input: str | list[Message]
    stream: bool | None = None
    max_output_tokens: TokenLimit = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    text: TextSettings | None = None
    previous_response_id: str | None = None
    tool_choice: Any = None


async def _respond(call: Call, body: ResponsesRequest) -> Any:
    if body.tool_choice not in (None, "none", "auto"):
        wrong = "tool_choice: this route calls no tools: use text.format, or /v1/chat/completions"
        raise bad_request(wrong, "tool_choice", "unsupported_value")
    if body.previous_response_id is not None:
        wrong = "previous_response_id: this server stores no responses: send the whole conversation"
        raise bad_request(wrong, "previous_response_id", "unsupported_value")
    items = [Message(content=body.input)] if isinstance(body.input, str) else body.input
    messages = [ChatMessage(role=each.role, content=each.content) for each in items if each.type == "message"]
    options = sampling_options(body.temperature, body.top_p)
    if body.max_output_tokens is not None:
        options["max_new_tokens"] = body.max_output_tokens
    turns, wanted = turns_of(call, messages), None if body.text is None else body.text.format
    form = format_form(wanted, turns, "text.format")
    job = TextJob(options=options, form=form)
    return await call.chat(turns, job, _Writer(call.service.name, body), bool(body.stream))


ENDPOINTS = [
    Endpoint("/v1/responses", _respond, ResponsesRequest, "Caption the last picture, or answer the last question"),
]


class _Writer(AnswerWriter):
    """Writes a response, and the events of a streamed one."""

    def __init__(self, name: str, body: ResponsesRequest) -> None:
        self._head = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time())}
        self._settings: dict[str, Any] = {
            "model": name,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tools": [],
        }
        self._settings |= {"tool_choice": "none", "parallel_tool_calls": False, "error": None, "metadata": {}}
        self._settings |= {"instructions": None, "incomplete_details": None}
        self._item = f"msg_{uuid.uuid4().hex}"
        self._events = 0

    def whole(self, answer: Answer) -> dict[str, Any]:
        cut = answer.finish_reasons != ["stop"]
        read, written = answer.prompt_tokens, answer.completion_tokens
        usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        response = self._response("incomplete" if cut else "completed", [self._message(self._text(answer))])
        response["usage"] = usage | details
        if cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response

    def begin(self) -> list[str]:
        message = {"id": self._item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        return [
            self._event("created", response=self._response("in_progress", [])),
            self._event("output_item.added", output_index=0, item=message),
            self._part_event("content_part.added", part=part),
        ]

    def piece(self, piece: Piece) -> list[str]:
        return [self._part_event("output_text.delta", delta=piece.text, logprobs=[])]

    def end(self, answer: Answer) -> list[str]:
        text, response = self._text(answer), self.whole(answer)
        message = self._message(text)
        return [
            self._part_event("output_text.done", text=text, logprobs=[]),
            self._part_event("content_part.done", part=message["content"][0]),
            self._event("output_item.done", output_index=0, item=message),
            self._event(response["status"], response=response),
        ]

    def error(self, error: ApiError) -> str:
        return self._event("error", prefix="", code=error.code, message=error.message, param=error.param)

    def _text(self, answer: Answer) -> str:
        return answer.texts[0] if answer.texts else ""

    def _message(self, text: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        return {"id": self._item, "type": "message", "status": "completed", "role": "assistant", "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "status": status, **self._settings, "output": output}

    def _part_event(self, name: str, **fields: Any) -> str:
        return self._event(name, item_id=self._item, output_index=0, content_index=0, **fields)

    def _event(self, name: str, prefix: str = "response.", **fields: Any) -> str:
        self._events += 1
        kind = f"{prefix}{name}"
        line = self.line({"type": kind, "sequence_number": self._events - 1, **fields})
        return f"event: {kind}\n{line}"
