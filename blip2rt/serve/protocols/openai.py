"""OpenAI's API: chat completions and models. Fields without a meaning for BLIP-2 are ignored."""

import time
import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ..chat_prompt import Conversation, JsonFormat, Turn, form_of
from ..endpoints import Endpoint
from ..errors import ApiError, bad_request
from ..inference import Answer, Piece
from ..service import AnswerWriter, Call, Service, given_options, sampling_options, string_list

_OPTIONS = (
    "num_beams repetition_penalty length_penalty min_new_tokens no_repeat_ngram_size max_time".split()
)  # named as in blip2rt.Options


class ImageUrl(BaseModel):
    """A data URI."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """Whether a stream ends with its usage."""

    include_usage: bool | None = None


class JsonSchema(BaseModel):
    """A schema with its name."""

    name: str | None = None
    schema_: Any = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """Text, a JSON object, or JSON under a schema: in json_schema, or as llama.cpp and Hugging Face have it."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema_: Any = Field(default=None, alias="schema")
    value: Any = None


class Function(BaseModel):
    """A function that a tool calls. parameters: a JSON Schema."""

    name: str
    parameters: Any = None


class Tool(BaseModel):
    """A tool, or the choice of one. Only functions can be called."""

    type: str = "function"
    function: Function | None = None


TokenLimit = Annotated[int | None, Field(ge=1), BeforeValidator(lambda value: None if value == -1 else value)]


class ChatRequest(BaseModel):
    """POST /v1/chat/completions. Asks about the last picture; docs/serve.md says how a chat is reduced to a prompt."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    stop: str | list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    n: int | None = Field(default=None, ge=1)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: str | Tool | None = None
    # Not in OpenAI's API: fields of blip2rt.Options.
    num_beams: int | None = Field(default=None, ge=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    length_penalty: float | None = None
    min_new_tokens: int | None = Field(default=None, ge=0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    max_time: float | None = Field(default=None, gt=0)


async def _chat(call: Call, body: ChatRequest) -> Any:
    call.limit_sequences(body, "n", "num_beams")
    tool, json = _required_tool(body) or (None, _json_format(body.response_format))
    chat = Conversation(_turns(body.messages), _options(body), string_list(body.stop), json)
    if json is not None and (body.n or 1) > 1:
        raise bad_request("n: a picture has one JSON object: leave n out", "n")
    return await call.chat(chat, _ChatWriter(call.service.name, body, tool), bool(body.stream))


async def _models(call: Call) -> Any:
    return {"object": "list", "data": [_model_info(call.service)]}


async def _model(call: Call) -> Any:
    name, served = call.request.path_params["name"], call.service.name
    if name != served:
        raise ApiError(404, f"no model {name[:100]!r}: this server has {served!r}", "model_not_found", "model")
    return _model_info(call.service)


ENDPOINTS = [
    Endpoint("/v1/chat/completions", _chat, ChatRequest, "Caption the last picture, or answer the last question"),
    Endpoint("/v1/models", _models, summary="List the model"),
    Endpoint("/v1/models/{name:path}", _model, summary="Describe the model"),
]


def _model_info(service: Service) -> dict[str, Any]:
    spec = service.model.bundle.manifest.llm
    length = {} if spec is None else {"max_model_len": spec.max_positions}
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "blip2rt", **length}


def _json_format(wanted: ResponseFormat | None) -> JsonFormat | None:
    """Return the JSON that a response format asks for, or None for text. Raises ApiError."""
    if wanted is None or wanted.type == "text":
        return None
    nested = None if wanted.json_schema is None else wanted.json_schema.schema_
    schemas = (schema for schema in (nested, wanted.schema_, wanted.value) if schema is not None)
    forms = (form_of(schema, "response_format") for schema in schemas)
    return JsonFormat("response_format", next(forms, None))


def _required_tool(body: ChatRequest) -> tuple[str, JsonFormat] | None:
    """Return the name of the tool that has to be called, with the form of its parameters. Raises ApiError."""
    choice, functions = body.tool_choice, [tool.function for tool in body.tools or [] if tool.function is not None]
    if choice in (None, "none", "auto"):
        return None  # a text is an answer, too
    if isinstance(choice, Tool) and choice.function is not None:
        functions = [each for each in functions if each.name == choice.function.name]
    elif choice != "required":
        raise bad_request("tool_choice: give none, auto, required or a function", "tool_choice")
    wrong = bad_request("tool_choice: tools has no such function: add it", "tool_choice")
    for function in functions:  # the first that a picture can fill
        field = f"tools: {function.name[:64]}"
        try:
            return function.name, JsonFormat(field, form_of(function.parameters or {"type": "object"}, field))
        except ApiError as error:
            wrong = error
    raise wrong


def _turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """Convert messages to turns. Raises ApiError for parts that are neither texts nor images."""
    turns = []
    for number, message in enumerate(messages):
        content = message.content or []
        parts = [Part(type="text", text=content)] if isinstance(content, str) else content
        for part in parts:
            if part.type not in ("text", "refusal") and (part.type != "image_url" or part.image_url is None):
                wrong = f"messages.{number}: a part of type {part.type[:50]!r} cannot be read: send text and image_url"
                raise bad_request(wrong, "messages", "unsupported_value")
        texts = tuple(part.text or "" for part in parts if part.type != "image_url")
        urls = [part.image_url for part in parts if part.image_url is not None]
        turns.append(Turn(message.role, texts, tuple(url.url if isinstance(url, ImageUrl) else url for url in urls)))
    return turns


def _options(body: ChatRequest) -> dict[str, Any]:
    seed = None if body.seed is None else body.seed % 2**63
    options = sampling_options(body.temperature, body.top_p, top_k=body.top_k, min_p=body.min_p, seed=seed)
    options |= given_options(body, _OPTIONS)
    if body.n is not None and body.n > 1:
        options["num_captions"] = body.n
        if not options.get("do_sample"):
            options.setdefault("num_beams", max(body.n, 3))
    if max_tokens := body.max_completion_tokens or body.max_tokens:
        options["max_new_tokens"] = max_tokens
    return options


class _ChatWriter(AnswerWriter):
    """Writes chat.completion objects and chunks. tool: the function whose arguments the text is."""

    def __init__(self, name: str, body: ChatRequest, tool: str | None = None) -> None:
        self._tool, self._call_id = tool, f"call_{uuid.uuid4().hex[:24]}"
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        self._texts = body.n or 1
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices = []
        for i, (text, reason) in enumerate(zip(answer.texts, self._reasons(answer), strict=True)):
            message = {"role": "assistant", "content": None, "refusal": None, **self._content(text)}
            choices.append({"index": i, "message": message, "logprobs": None, "finish_reason": reason})
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(answer)}

    def begin(self) -> list[str]:
        content = "" if self._tool is None else None
        return [self._choice(i, {"role": "assistant", "content": content}) for i in range(self._texts)]

    def piece(self, piece: Piece) -> list[str]:
        return [self._choice(piece.index, self._content(piece.text, {"index": 0}))]

    def end(self, answer: Answer) -> list[str]:
        lines = [self._choice(i, {}, reason) for i, reason in enumerate(self._reasons(answer))]
        return [*lines, *[self._chunk([], usage(answer))] * self._with_usage, "data: [DONE]\n\n"]

    def _content(self, text: str, place: Mapping[str, int] = MappingProxyType({})) -> dict[str, Any]:
        """Return the part of a message that holds a text."""
        if self._tool is None:
            return {"content": text}
        function = {"name": self._tool, "arguments": text}
        return {"tool_calls": [{**place, "id": self._call_id, "type": "function", "function": function}]}

    def _reasons(self, answer: Answer) -> list[str]:
        return answer.finish_reasons if self._tool is None else ["tool_calls"] * len(answer.texts)

    def _choice(self, index: int, delta: dict[str, Any], reason: str | None = None) -> str:
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}], None)

    def _chunk(self, choices: list[dict[str, Any]], counts: dict[str, int] | None) -> str:
        more = {"usage": counts} if self._with_usage else {}
        return self.line({**self._head, "object": "chat.completion.chunk", "choices": choices, **more})


def usage(answer: Answer) -> dict[str, int]:
    """Return OpenAI's token counts."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
