"""`blip2rt stdio`: a request on each line of standard input, its results on standard output, the model kept open.

Requests run at the same time, share decoding steps and end in any order; ids tell them apart. docs/json.md describes
the lines.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from ..errors import Blip2rtError, ImageError, OptionError, reason
from ..gallery.outputs import Description, TagDescription
from ..options import Options, merge
from ..requests import Answer, Request
from ..results import Scored, too_late

if TYPE_CHECKING:
    from ..model import Model

Line: TypeAlias = dict[str, Any]
# Each task, except for cancel, with its fields; texts also take options.
FIELDS = {
    "caption": ("image", "prompt", "stream"),
    "ask": ("image", "question", "stream"),
    "match": ("image", "texts"),
    "sees": ("image", "texts", "threshold"),
    "tag": ("image", "labels", "top", "threshold"),
    "fill": ("image", "schema", "question"),
    "embed": ("image", "texts"),
}
TASKS = (*FIELDS, "cancel")
MAX_LINE_BYTES = 20 << 20  # as for the server's requests
_EXAMPLE = '{"id": 1, "task": "caption", "image": "photo.jpg"}'


class Job:
    """A request that waits or runs. Any thread may cancel it."""

    def __init__(self, fields: Line) -> None:
        """fields: of the request. Raises OptionError."""
        self.id, self.task = fields.pop("id", None), fields.pop("task", None)
        self.fields = fields
        self.cancelled = False
        self._answer: Answer | None = None
        if not _is_id(self.id):
            raise OptionError(f"the request has no id: give a number or a text, as in {_EXAMPLE}")
        if self.task not in TASKS:
            raise OptionError(f"task is {self.task!r}: choose from {', '.join(TASKS)}")

    def cancel(self) -> None:
        self.cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    def started(self, answer: Answer) -> Answer:
        """Cancel `answer` with the job."""
        self._answer = answer
        if self.cancelled:
            answer.cancel()
        return answer


class Session:
    """Runs requests in `parallel` threads. write(line) is called from any of them, one at a time."""

    def __init__(self, model: Model, write: Callable[[Line], object], parallel: int) -> None:
        self._model, self._write, self._lock = model, write, threading.Lock()
        self._jobs: dict[str | int, Job] = {}
        self._threads = ThreadPoolExecutor(parallel, "blip2rt-stdio")
        self._failure: OSError | None = None

    def run(self, lines: Iterable[bytes]) -> None:
        """Run every request until the last one has ended. Raises OSError if the reader of the results is gone.

        lines: those of `read_lines`.
        """
        try:
            with self._threads:
                for number, line in enumerate(lines, 1):
                    if self._failure is not None:
                        break
                    if line.strip():
                        self._take(number, line)
        except BaseException:
            for job in [*self._jobs.values()]:
                job.cancel()
            raise
        if self._failure is not None:
            raise self._failure

    def _take(self, number: int, line: bytes) -> None:
        """Begin the request of a line, or cancel another."""
        name: Any = None
        try:
            fields = _parse(number, line)
            name = fields.get("id") if _is_id(fields.get("id")) else None
            job = Job(fields)
            running = self._jobs.get(job.id)
            if job.task == "cancel":
                if running is not None:
                    running.cancel()
                return
            if running is not None:
                raise OptionError(f"id is {job.id!r}, whose request still runs: give another one")
        except OptionError as error:
            self._put({"id": name, "error": str(error)})
            return
        self._jobs[job.id] = job
        self._threads.submit(self._end, job)

    def _end(self, job: Job) -> None:
        """Write the result of a job, or its error."""
        try:
            line = {} if job.cancelled else self.result(job)
        except Blip2rtError as error:
            line = {"error": str(error)}
        except MemoryError:
            line = {"error": "not enough memory: ask for less at once"}
        except Exception as error:  # noqa: BLE001  # a bug ends one request only
            traceback.print_exc()
            line = {"error": f"blip2rt failed: {reason(error)}"}
        del self._jobs[job.id]  # first: the client may use the id again once it reads the line
        self._put({"id": job.id, **({"error": "cancelled"} if job.cancelled else line)})

    def _put(self, line: Line) -> None:
        try:
            with self._lock:
                self._write(line)
        except OSError as error:
            self._failure = error

    def result(self, job: Job) -> Line:
        """Return the last line of a job, without its id; write the pieces before it. Raises Blip2rtError."""
        fields = job.fields
        if job.task in ("caption", "ask"):
            return self._text(job, fields.pop("image", None), fields)
        unknown = ", ".join(name for name in fields if name not in FIELDS[job.task])
        if unknown:
            raise OptionError(f"unknown field {unknown}: choose from id, task, {', '.join(FIELDS[job.task])}")
        if job.task == "embed":
            return self._embed(**fields)
        image = fields.pop("image", None)
        tasks: dict[str, Callable[..., Line]] = {"sees": self._sees, "tag": self._tag, "fill": self._fill}
        tasks["match"] = lambda image, texts=None: {"matches": match_rows(self._model, image, _texts(texts))}
        return tasks[job.task](_image(image), **fields) | {"image": _name(image)}

    def _embed(self, image: Any = None, texts: Any = None) -> Line:
        if (image is None) == (texts is None):
            raise OptionError("embed takes an image or texts: give one of them")
        embeds = self._model.embed_text(texts) if image is None else self._model.embed_image(_image(image))
        return {"embeddings": np.round(np.atleast_2d(embeds).astype(float), 6).tolist()}

    def _sees(self, image: str | bytes, texts: Any = None, threshold: Any = 0.5) -> Line:
        return {"sees": self._model.sees(image, _texts(texts), threshold=threshold)}

    def _tag(self, image: str | bytes, **options: Any) -> Line:
        tags = self._model.tag(image, **options)
        return TagDescription("", [", ".join(tags)], 0.0, self._model.bundle.manifest.name, tags=tags).row(timed=True)

    def _fill(self, image: str | bytes, schema: Any = None, question: Any = None) -> Line:
        from ..structured import fill

        if not isinstance(question, str | None):
            raise OptionError(f"question is {question!r}: give a text")
        return {"value": fill(self._model, image, schema, question)}

    def _text(self, job: Job, image: Any, options: Line) -> Line:
        prompt, question = options.pop("prompt", None), options.pop("question", None)
        if (job.task == "ask") != (question is not None):
            raise OptionError("question: give one to ask, and none to caption")

        def tell(piece: str) -> None:
            if not job.cancelled:
                self._put({"id": job.id, "piece": piece})

        given = (self._model, _image(image), _name(image), prompt, question)
        stream = options.pop("stream", False)
        return text_result(*given, options, tell if stream else None, job.started)


def text_result(
    model: Model,
    image: str | bytes,
    name: str | None,
    prompt: str | None,
    question: str | None,
    options: Line,
    tell: Callable[[str], object] | None,
    started: Callable[[Answer], Answer] = lambda answer: answer,
) -> Line:
    """Generate a caption or an answer. tell: called with its pieces; started: with the Answer before them."""
    start = time.perf_counter()
    prepared = model.prepare(image)
    merge(Options(), options)  # raises for unknown names
    given = Options(**{name: value for name, value in options.items() if value is not None})
    answer = started(model.submit(Request(prepared, prompt, question, given)))
    if options.get("max_time") is not None and time.perf_counter() - start > options["max_time"]:
        answer.cancel()
        raise too_late(options["max_time"])
    for piece in answer:
        if tell is not None:
            tell(piece)
    texts = answer.result()
    if question is None and texts:  # a cancelled request has none
        model.pipeline.add_confidence(model.pipeline.vision_features([prepared]), [texts[:1]])
    return text_row(model, name, texts, 1000 * (time.perf_counter() - start), question)


def text_row(model: Model, name: str | None, texts: Sequence[Scored], ms: float, question: str | None) -> Line:
    """Captions or answers as docs/json.md describes them. name: None for an image that was sent."""
    first = texts[0]
    details = (round(first.score, 4), model.bundle.manifest.name, ms, first.truncated, first.confidence)
    row = Description(name or "", [text.text for text in texts], *details).row(timed=True) | {"image": name}
    return row if question is None else row | {"question": question, "answer": texts[0].text}


def match_rows(model: Model, image: str | bytes, texts: Sequence[str]) -> list[Line]:
    """Matches of an image and texts, best first."""
    texts = [texts] if isinstance(texts, str) else texts
    matches = model.match(image, texts)
    rows = [{"text": text, **asdict(match)} for text, match in zip(texts, matches, strict=True)]
    return sorted(rows, key=lambda row: -row["score"])


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, each of at most MAX_LINE_BYTES and one more."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        rest = line if len(line) > MAX_LINE_BYTES else b"\n"
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 20)


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _parse(number: int, line: bytes) -> Line:
    """The fields of a request. Raises OptionError."""
    if len(line) > MAX_LINE_BYTES:
        raise OptionError(f"line {number} has more than {MAX_LINE_BYTES >> 20} MiB: give the path of the image")
    try:
        fields = json.loads(line, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"line {number} is not JSON ({reason(error)}): give one like {_EXAMPLE}") from None
    if not isinstance(fields, dict):
        raise OptionError(f"line {number} is not an object: give one like {_EXAMPLE}")
    return fields


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _texts(texts: Any) -> Any:
    if not texts:
        raise OptionError("texts is missing: give a text or a list of them")
    return texts


def _image(image: Any) -> str | bytes:
    """A path, or the bytes of a data URI."""
    if not isinstance(image, str) or not image:
        raise ImageError(f"image is {image!r}: give a path, or data:;base64,... with the bytes of a file")
    if not image.startswith("data:"):
        return image
    try:
        return base64.b64decode(image.partition(";base64,")[2], validate=True)
    except ValueError:
        raise ImageError("image is a data URI, but not valid base64: give data:;base64,... on one line") from None


def _name(image: str) -> str | None:
    """The path of an image; None for one that was sent."""
    return None if image.startswith("data:") else image
