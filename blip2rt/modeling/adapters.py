"""LoRA (Hu et al. 2021): a trained product of two thin matrices beside each linear layer of a frozen LLM.

Training adds them through peft. Loading a checkpoint merges them into the LLM's weights without peft, so that graphs
and exporter need no support for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.install_hints import pip_install

from . import streaming
from .weights import Weights

_DOWN, _UP = ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names
_LLM = "llm."


def is_adapter(name: str) -> bool:
    """Whether a parameter of a model belongs to its LLM's adapters."""
    return name.startswith(_LLM) and name.endswith((_DOWN, _UP))


def adapted_layers(llm: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers of an LLM, except its output layer, whose last name is one of `names`; () means all.

    Raises OptionError for an unknown name.
    """
    head: Any = llm.get_output_embeddings()  # type: ignore[operator]
    linear = {n: m for n, m in llm.named_modules() if isinstance(m, nn.Linear) and m is not head}
    last = {name: name.rpartition(".")[2] for name in linear}
    unknown = [name for name in names if name not in last.values()]
    if unknown or not linear:
        have = ", ".join(sorted(set(last.values())))
        raise OptionError(f"lora_layers: the LLM has no {', '.join(unknown)}: choose of {have or 'another LLM'}")
    return {name: module for name, module in linear.items() if not names or last[name] in names}


def add_adapters(llm: nn.Module, rank: int, alpha: float, names: Sequence[str]) -> None:
    """Add trainable adapters to the layers, initially without effect. Raises Blip2rtError."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise Blip2rtError(f"peft is not installed: {pip_install('lora')}") from error
    layers = list(adapted_layers(llm, names))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers), llm)  # type: ignore[arg-type]


def merge_adapters(llm: nn.Module, weights: Weights, scale: float) -> None:
    """Add `scale` times the product of each pair of adapters in a checkpoint to its layer."""
    for name in weights.shapes:
        if name.startswith(_LLM) and name.endswith(_DOWN):
            stem = name[: -len(_DOWN)]
            layer = llm.get_submodule(stem.removeprefix(_LLM))
            down, up = weights.read(name).float(), weights.read(stem + _UP).float()
            streaming.change(layer, _adding(scale, up, down))


def _adding(scale: float, up: torch.Tensor, down: torch.Tensor) -> Any:
    return lambda weight: weight + scale * (up @ down)
