"""Quantization-aware training: a step computes with rounded weights and updates the exact ones.

Training compensates for the rounding (straight-through estimator, Bengio et al. 2013).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2Config, TrainableModel
from blip2rt.modeling.quantize import dequantize_blockwise, quantize_blockwise

_NOT_ROUNDED = ("vision.", "llm.")  # frozen, or exported at a precision of their own


def check_rounding(config: Blip2Config, shard: str) -> None:
    """Raise OptionError for unsupported bits, or if weights are sharded."""
    if config.qformer_bits not in (0, 4, 8):
        raise OptionError(f"qformer_bits is {config.qformer_bits}: choose 4, 8, or 0 for exact weights")
    if config.qformer_bits and shard != "none":
        raise OptionError(f"qformer_bits needs whole weights, and shard is {shard}: give --shard none")


class Rounding:
    """Rounds a model's trained matrices, except the encoder's and the LLM's, while `active`, as its config says.

    Checkpoints keep the exact values, which drift away from the rounded ones where updates do not reach the next code:
    Checkpoint.load rounds them, and a resumed training does not.
    """

    def __init__(self, model: TrainableModel) -> None:
        bits = self.bits = model.config.qformer_bits
        self.block = model.config.qformer_block
        found = (
            module.weight
            for name, module in model.named_modules()
            if bits and isinstance(module, nn.Linear | nn.Embedding) and not name.startswith(_NOT_ROUNDED)
        )
        self.weights = list({id(weight): weight for weight in found if weight.requires_grad}.values())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        exact = [weight.data for weight in self.weights]
        with torch.no_grad():
            for weight in self.weights:
                weight.data = dequantize_blockwise(quantize_blockwise(weight, self.bits, self.block))
        try:
            yield
        finally:
            for weight, values in zip(self.weights, exact, strict=True):
                weight.data = values
