"""A model of NVIDIA Triton's Python backend: captions and answers, whole or as a stream.

`blip2rt-export --triton DIR` writes the repository: config.pbtxt, and model.py, which imports this module. Triton's
image needs blip2rt installed. Inputs: IMAGE (the bytes of a file, TYPE_STRING [1]), QUESTION (optional), STREAM
(optional, TYPE_BOOL). Outputs: TEXT, and SCORE of a whole text. A streamed request gets one response per piece.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Blip2rtError
from ..loading import load

_DEFAULT_THREADS = 4
_PARALLEL = 16  # requests that share decoding steps


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """args: of Triton; the bundle is in the folder `bundle` of the model's version."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        threads = int(parameters.get("threads", {}).get("string_value", _DEFAULT_THREADS))
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self._model = load(str(bundle), threads=threads, batching=True, special_tokens=False)
        self._pool = ThreadPoolExecutor(_PARALLEL, "blip2rt-triton")

    def execute(self, requests: list[Any]) -> None:
        """Start to answer requests; each has a response sender, as a decoupled model does."""
        for request in requests:
            self._pool.submit(self._answer, request)

    def _answer(self, request: Any) -> None:
        import triton_python_backend_utils as pb_utils

        sender = request.get_response_sender()
        try:
            for tensors in self._responses(request):
                outputs = [pb_utils.Tensor(name, value) for name, value in tensors.items()]
                sender.send(pb_utils.InferenceResponse(output_tensors=outputs))
        except (Blip2rtError, UnicodeDecodeError) as error:
            failure = pb_utils.TritonError(str(error))
            sender.send(pb_utils.InferenceResponse(output_tensors=[], error=failure))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _responses(self, request: Any) -> Any:
        """Yield the tensors of each response."""
        image, question = _bytes(request, "IMAGE"), _bytes(request, "QUESTION")
        asked = question.decode() if question else None
        if _value(request, "STREAM"):
            stream = self._model.stream(image or b"", question=asked) if asked else self._model.stream(image or b"")
            for piece in stream:
                yield {"TEXT": np.array([piece.encode()], np.object_)}
            return
        text = self._model.ask(image or b"", asked) if asked else self._model.caption(image or b"")
        yield {"TEXT": np.array([str(text).encode()], np.object_), "SCORE": np.array([text.score], np.float32)}

    def finalize(self) -> None:
        """Finish the running requests and free the model's memory."""
        self._pool.shutdown()
        self._model.close()


def _value(request: Any, name: str) -> Any:
    """The first element of an input, or None if it was not sent."""
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]


def _bytes(request: Any, name: str) -> bytes:
    value = _value(request, name)
    return b"" if value is None else bytes(value)
