"""Language models of random weights for the peers, built in the memory of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

STD = 0.02  # of random weights
_NOISE = 1 << 22


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


def language_model(folder: str, dtype: torch.dtype) -> Any:
    """Build the decoder-only language model with random weights. Raises ValueError for an encoder-decoder."""
    import transformers

    text: Any = transformers.Blip2Config.from_pretrained(folder, trust_remote_code=False).text_config
    if text.is_encoder_decoder:
        raise ValueError("only decoder-only language models are compared")
    kind = transformers.AutoModelForCausalLM
    return random_weights(lambda: kind.from_config(text, trust_remote_code=False), dtype)


def positions(folder: str) -> int:
    """The positions before the first new token: the queries and </s>."""
    import transformers

    return int(transformers.Blip2Config.from_pretrained(folder, trust_remote_code=False).num_query_tokens) + 1
