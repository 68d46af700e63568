"""Hugging Face transformers at the same work, eager in float32 or bfloat16, in a process of its own.

    python -m blip2rt.bench.torch_peer JSON

JSON: name, config (a folder with config and processor; weights are random), and the fields of stages.Workload. Measures
the stages of stages.py.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from .machine import peak_rss
from .stages import repeat, summary
from .worker import print_result

DTYPES = {"hf-fp32": torch.float32, "hf-bf16": torch.bfloat16}
MAX_RUNS = 5  # a run can take a minute
STD = 0.02  # of random weights
_NOISE = 1 << 22


def build(folder: str, dtype: torch.dtype) -> Any:
    """Build the whole model with random weights."""
    config = transformers.Blip2Config.from_pretrained(folder, trust_remote_code=False)
    return random_weights(lambda: transformers.Blip2ForConditionalGeneration(config), dtype)


def random_weights(build: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Any:
    """Build a module of random weights in eval mode: first without values, then filled tensor by tensor in `dtype`."""
    original = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        original(module, name, parameter)

    torch.nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        module: Any = build()
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]
    module.tie_weights()
    noise = (torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * STD).to(dtype)
    made: dict[int, torch.nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            made[id(parameter)] = _filled(name, parameter, noise, dtype)
        path, _, own = name.rpartition(".")
        module.get_submodule(path)._parameters[own] = made[id(parameter)]
    return module.eval()


def _filled(name: str, parameter: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype) -> torch.nn.Parameter:
    """Fill the weights of norms with 1, everything else with noise."""
    values = torch.ones(parameter.shape, dtype=dtype)
    if not ("norm" in name.lower() and name.endswith("weight")):
        flat = values.view(-1)
        for start in range(0, flat.numel(), _NOISE):
            piece = flat[start : start + _NOISE]
            piece.copy_(noise[: piece.numel()])
    return torch.nn.Parameter(values, requires_grad=False)


@torch.no_grad()
def measure(given: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(given["threads"])
    dtype, batch, new_tokens = DTYPES[given["name"]], given["batch"], given["new_tokens"]
    begin = time.perf_counter()
    model = build(given["config"], dtype)
    loaded = time.perf_counter() - begin
    processor = transformers.AutoProcessor.from_pretrained(given["config"], trust_remote_code=False)
    data = Path(given["image"]).read_bytes()

    def inputs() -> Any:
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for _ in range(batch)]
        return processor(images=pictures, text=[""] * batch, return_tensors="pt").to(dtype)

    def generate(prepared: Any, tokens: int) -> Any:
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return model.generate(**prepared, num_beams=given["beams"], do_sample=False, **length)

    def caption() -> None:
        processor.batch_decode(generate(inputs(), new_tokens), skip_special_tokens=True)

    prepared = inputs()
    features = model.vision_model(pixel_values=prepared["pixel_values"]).last_hidden_state
    runs = min(given["repeat"], MAX_RUNS)
    times = {
        "image": repeat(inputs, runs),
        "vision": repeat(lambda: model.vision_model(pixel_values=prepared["pixel_values"]), runs),
        "qformer": repeat(lambda: queries(model, features), runs),
        "first token": repeat(lambda: generate(inputs(), 1), runs),
        "caption": repeat(caption, runs),
    }
    found = {name: summary(seconds) for name, seconds in times.items()}
    if new_tokens > 1:  # a step: what a whole text takes more than its first token
        step = (found["caption"]["median"] - found["first token"]["median"]) / (new_tokens - 1)
        found["decode step"] = {"median": step, "p10": step, "p90": step, "runs": runs}
    version = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"stages": found, "load": loaded, "peak_rss": peak_rss(), "version": version}


def queries(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Map vision_features (B, N, C) to prefix_embeds (B, Q, D)."""
    tokens = model.query_tokens.expand(features.shape[0], -1, -1).to(features.dtype)
    out = model.qformer(query_embeds=tokens, encoder_hidden_states=features)
    return model.language_projection(out[0].to(model.language_projection.weight.dtype))


if __name__ == "__main__":
    # other engines raise anything; the run continues
    sys.exit(print_result(lambda: measure(json.loads(sys.argv[1])), Exception))
