"""A model of NVIDIA Triton's Python backend: IMAGE, the bytes of a file, and perhaps QUESTION -> TEXT, all (B, 1)."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import blip2rt


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        bundle, threads = (parameters[name].get("string_value") for name in ("bundle", "threads"))
        self.model = blip2rt.load(bundle or None, threads=int(threads), batching=True, special_tokens=False)
        self.pool = ThreadPoolExecutor(16)  # requests that share decoding steps

    def execute(self, requests: list[Any]) -> list[Any]:
        return list(self.pool.map(self.respond, requests))

    def respond(self, request: Any) -> Any:
        try:
            images, questions = values(request, "IMAGE"), [text.decode() for text in values(request, "QUESTION")]
            texts = self.model.ask(images, questions) if questions else self.model.caption(images)
        except Exception as error:  # Triton would wait for the response for ever
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
        column = np.array([[str(text).encode()] for text in texts], np.object_)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("TEXT", column)])


def values(request: Any, name: str) -> list[bytes]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else list(tensor.as_numpy().reshape(-1))
