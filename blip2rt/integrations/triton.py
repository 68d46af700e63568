"""Models of NVIDIA Triton's Python backend: captions and answers, whole or as a stream.

`blip2rt-export --triton DIR` writes a repository of both: config.pbtxt, and model.py, which imports this module.
Triton's image needs blip2rt installed. Inputs (B, 1): IMAGE (the bytes of a file, TYPE_STRING) and QUESTION (optional).
Outputs (B, 1): TEXT and SCORE. A streamed request has one image, and gets one TEXT per piece.
"""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Blip2rtError, OptionError
from ..loading import load

_PARALLEL = 16  # requests that share decoding steps


class TritonPythonModel:
    """Answers requests with whole texts, several at once. Triton looks for a class of this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """args: of Triton. The parameters are `threads`, and `bundle`, its path from the folder of this version."""
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = Path(args["model_repository"]) / args["model_version"] / parameters["bundle"]["string_value"]
        settings: dict[str, Any] = {"threads": int(parameters["threads"]["string_value"]), "batching": True}
        if args["model_instance_kind"] == "GPU":  # Triton runs each instance in a process of its own
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
            settings = {"backend": "trt"}
        self._model = load(str(bundle), special_tokens=False, **settings)
        self._pool = ThreadPoolExecutor(_PARALLEL, "blip2rt-triton")

    def execute(self, requests: list[Any]) -> Any:
        """Return a response to each request."""
        return list(self._pool.map(self._respond, requests))

    def _respond(self, request: Any) -> Any:
        try:
            images, questions = _inputs(request)
            texts = self._model.caption(images) if questions is None else self._model.ask(images, questions)
            return _response(TEXT=[str(text).encode() for text in texts], SCORE=[text.score for text in texts])
        except Exception as error:  # Triton would wait for this request for ever
            return _failure(error)

    def finalize(self) -> None:
        """Finish the running requests and free the model's memory."""
        self._pool.shutdown()
        self._model.close()


class StreamingModel(TritonPythonModel):
    """Answers each request with the pieces of its text, through a response sender, as a decoupled model does."""

    def execute(self, requests: list[Any]) -> None:
        """Start to answer the requests."""
        for request in requests:
            self._pool.submit(self._send, request)

    def _send(self, request: Any) -> None:
        import triton_python_backend_utils as pb_utils

        sender = request.get_response_sender()
        try:
            for piece in self._pieces(request):
                sender.send(_response(TEXT=[piece.encode()]))
        except Exception as error:
            sender.send(_failure(error))
        finally:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _pieces(self, request: Any) -> Iterator[str]:
        images, questions = _inputs(request)
        if len(images) != 1:
            raise OptionError(f"a streamed request has {len(images)} images: give one")
        return (
            self._model.stream(images[0]) if questions is None else self._model.stream(images[0], question=questions[0])
        )


def _inputs(request: Any) -> tuple[list[bytes], list[str] | None]:
    """The images and questions of a request; None without questions."""
    images, questions = _values(request, "IMAGE"), _values(request, "QUESTION")
    return images, [question.decode() for question in questions] if any(questions) else None


def _values(request: Any, name: str) -> list[bytes]:
    """The elements of an input; none if it was not sent."""
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else [bytes(value) for value in tensor.as_numpy().reshape(-1)]


def _response(**columns: list[Any]) -> Any:
    """A response with tensors (B, 1)."""
    import triton_python_backend_utils as pb_utils

    types = {"TEXT": np.object_, "SCORE": np.float32}
    tensors = [pb_utils.Tensor(name, np.array(values, types[name])[:, None]) for name, values in columns.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _failure(error: Exception) -> Any:
    import triton_python_backend_utils as pb_utils

    if not isinstance(error, (Blip2rtError, UnicodeDecodeError)):
        logging.getLogger("blip2rt").error("a request failed", exc_info=error)
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
