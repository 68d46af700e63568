"""libblip2rt through ctypes, as a program without headers would use it."""

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from blip2rt.backends.ort import find_library
from tests.c.build import build

Handle = ctypes.c_void_p
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
STATUSES = "ok argument image model timeout memory failed".split()


class CError(Exception):
    """What a call reported."""

    def __init__(self, status: int, faults: list[str], message: str) -> None:
        super().__init__(message)
        self.kind, self.faults = STATUSES[status], faults


@dataclass(frozen=True)
class CText:
    text: str
    score: float
    truncated: bool
    tokens: tuple[int, ...]


@cache
def library() -> ctypes.CDLL:
    built = os.environ.get("BLIP2RT_C")  # as in `make sanitize`
    loaded = ctypes.CDLL(built or str(build("blip2rt") / "libblip2rt.so"))
    loaded.blip2rt_texts_score.restype = ctypes.c_double
    loaded.blip2rt_texts_tokens.restype = ctypes.POINTER(ctypes.c_int64)
    for name in ("texts_count", "error_count"):
        getattr(loaded, f"blip2rt_{name}").restype = ctypes.c_size_t
    for name in ("texts_get", "error_message", "error_fault", "version"):
        getattr(loaded, f"blip2rt_{name}").restype = ctypes.c_char_p
    return loaded


def call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status. Raises CError."""
    error = Handle()
    status = getattr(library(), f"blip2rt_{name}")(*arguments, ctypes.byref(error))
    if status:
        count = library().blip2rt_error_count(error)
        faults = [library().blip2rt_error_fault(error, i).decode() for i in range(count)]
        message = library().blip2rt_error_message(error).decode()
        assert library().blip2rt_error_status(error) == status and message == "; ".join(faults)
        library().blip2rt_error_free(error)
        raise CError(status, faults, message)
    assert error.value is None


def make(name: str, *arguments: Any) -> Handle:
    """Call a function whose last output is a handle."""
    made = Handle()
    call(name, *arguments, ctypes.byref(made))
    return made


def pairs(options: Mapping[str, Any]) -> Any:
    """Options of Python as the C API takes them."""
    texts: list[str] = []
    for key, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            texts += [key, str(each).lower() if isinstance(each, bool) else str(each)]
    return strings(texts)


def strings(texts: list[str]) -> Any:
    """Strings as the C API takes them."""
    return (ctypes.c_char_p * (len(texts) + 1))(*[text.encode() for text in texts], None)


def texts_of(handle: Handle) -> list[CText]:
    found, count = [], ctypes.c_size_t()
    for i in range(library().blip2rt_texts_count(handle)):
        tokens = library().blip2rt_texts_tokens(handle, i, ctypes.byref(count))
        text = library().blip2rt_texts_get(handle, i).decode()
        score, truncated = library().blip2rt_texts_score(handle, i), library().blip2rt_texts_truncated(handle, i)
        found.append(CText(text, score, bool(truncated), tuple(tokens[: count.value])))
    library().blip2rt_texts_free(handle)
    return found


class CModel:
    """A model, with an image's features at a time. Handles are freed with it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        chosen = pairs({"onnxruntime": find_library(), **options})
        self.handle = make("load", str(folder).encode(), chosen)
        self.features = Handle()

    def use(self, image: Any) -> None:
        """Encode an image: the bytes of a file, a path or an array (H, W, 3)."""
        if isinstance(image, bytes):
            prepared = make("image_bytes", self.handle, image, ctypes.c_size_t(len(image)))
        elif isinstance(image, Path):
            prepared = make("image_file", self.handle, str(image).encode())
        else:
            height, width, _ = image.shape
            sizes = ctypes.c_size_t(width), ctypes.c_size_t(height), ctypes.c_ssize_t(0)
            prepared = make("image_pixels", self.handle, image.tobytes(), *sizes, 0)
        library().blip2rt_features_free(self.features)
        self.features = make("encode", self.handle, prepared)
        library().blip2rt_image_free(prepared)

    def caption(
        self, prompt: str | None = None, on_piece: Callable[[str], int | None] | None = None, **options: Any
    ) -> list[CText]:
        text = None if prompt is None else prompt.encode()
        return self._texts("caption", self.handle, self.features, text, pairs(options), on_piece)

    def ask(self, question: str, on_piece: Callable[[str], int | None] | None = None, **options: Any) -> list[CText]:
        return self._texts("ask", self.handle, self.features, question.encode(), pairs(options), on_piece)

    def chat(self, **options: Any) -> Handle:
        return make("chat_begin", self.handle, self.features, pairs(options))

    def chat_ask(self, chat: Handle, question: str, **options: Any) -> CText:
        return self._texts("chat_ask", chat, question.encode(), pairs(options), None)[0]

    def _texts(self, name: str, *arguments: Any) -> list[CText]:
        *arguments, on_piece = arguments  # type: ignore[assignment]
        called = Callback(0 if on_piece is None else lambda piece, _: on_piece(piece.decode()) or 0)
        return texts_of(make(name, *arguments, called, None))

    def match(self, text: str) -> tuple[float, float, float]:
        """score, probability, cosine"""
        found = [ctypes.c_double() for _ in range(3)]
        call("match", self.handle, self.features, text.encode(), *map(ctypes.byref, found))
        return found[0].value, found[1].value, found[2].value

    def sees(self, statement: str) -> float:
        found = ctypes.c_double()
        call("sees", self.handle, self.features, statement.encode(), ctypes.byref(found))
        return found.value

    def confidences(self, count: int = 1) -> list[float]:
        """Of the bundle's best captions."""
        found = [ctypes.c_double() for _ in range(count)]
        texts = make("caption", self.handle, self.features, None, pairs({"num_captions": count}), Callback(0), None)
        for i, each in enumerate(found):
            call("confidence", self.handle, self.features, texts, ctypes.c_size_t(i), ctypes.byref(each))
        library().blip2rt_texts_free(texts)
        return [each.value for each in found]

    def choose(self, question: str, choices: list[str]) -> int:
        found = ctypes.c_size_t()
        call("choose", self.handle, self.features, question.encode(), strings(choices), ctypes.byref(found))
        return found.value

    def tag(self, labels: list[str] | None = None, top: int = 10, threshold: float = 0.3) -> dict[str, float]:
        given = None if labels is None else strings(labels)
        limits = ctypes.c_size_t(top), ctypes.c_double(threshold)
        return {tag.text: tag.score for tag in texts_of(make("tag", self.handle, self.features, given, *limits))}

    def embed(self, text: str | None = None) -> list[float]:
        """The embeddings of the image, or of a text."""
        rows, width = ctypes.c_size_t(1), ctypes.c_size_t()
        of = (self.features,) if text is None else (text.encode(),)
        sizes = (ctypes.byref(rows), ctypes.byref(width)) if text is None else (ctypes.byref(width),)
        name = "embed_image" if text is None else "embed_text"
        call(name, self.handle, *of, None, ctypes.c_size_t(0), *sizes)
        values = (ctypes.c_float * (rows.value * width.value))()
        call(name, self.handle, *of, values, ctypes.c_size_t(len(values)), *sizes)
        return list(values)

    def close(self) -> None:
        library().blip2rt_features_free(self.features)
        library().blip2rt_model_free(self.handle)
