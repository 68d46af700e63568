"""A training in numbers, without running it: parameters of each part, learning rates, memory.

Parameters are counted on tensors without storage.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from blip2rt.modeling.adapters import adapted_layers
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.vision import VisionEncoder, encoder_shape, layer_numbers

from .data.samples import Sample
from .loop.trainer import PRECISIONS, autocast_dtype, parameter_groups
from .model import StartingPoint
from .settings import DataSettings, LoopSettings

ACTIVATION_BYTES = 34  # kept for the backward pass per token, layer and unit of width (Korthikanti et al. 2022, eq. 2)
EFFICIENCY = 0.4  # share of a matrix product's speed that a training reaches
FROZEN = ("vision", "llm", "unused")


@dataclass(frozen=True)
class Plan:
    """A training to describe."""

    point: StartingPoint
    loop: LoopSettings
    data: DataSettings
    train_vision: bool
    peaks: Callable[[Blip2], dict[str, float]]  # peak learning rates, by prefixes of parameter names
    texts: int  # per image
    tokens: int  # per text, at most
    truncation: Callable[[list[Sample]], str] | None = None  # a line about texts that are cut

    @property
    def config(self) -> Blip2Config:
        """The model's config."""
        return self.point.config


def empty_model(point: StartingPoint, train_vision: bool = False) -> Blip2:
    """A model of the trained parts, except the LLM's adapters, on tensors without storage."""
    width = None if point.language_model is None else point.language_model.hidden_size
    with torch.device("meta"):
        model = Blip2(point.config, llm_width=width)
        if train_vision:
            model.vision = VisionEncoder(point.config.vision, empty=True)
            model.vision.unfreeze()
    return model


def parts_of(model: nn.Module) -> dict[str, int]:
    """Parameters of each part of a model.

    Trained ones are named after their module, `encoder` or `adapters` (of the LLM); frozen are `vision`, `llm` and
    `unused`.
    """
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        if parameter.requires_grad:
            part = {"vision": "encoder", "llm": "adapters"}.get(part, part)
        elif part not in FROZEN:
            part = "unused"
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def count_parameters(point: StartingPoint, train_vision: bool = False) -> dict[str, int]:
    """Parameters of each part, as `parts_of` names them, of a model that is not loaded."""
    counts = parts_of(empty_model(point, train_vision))
    if not train_vision:
        counts["vision"] = encoder_shape(point.config.vision)[2]
    if point.language_model is not None:
        llm, config = point.language_model.empty(), point.language_model.config
        counts["llm"] = sum(parameter.numel() for parameter in llm.parameters())
        if config.lora_rank:
            layers = adapted_layers(llm, config.lora_layers).values()
            counts["adapters"] = config.lora_rank * sum(m.in_features + m.out_features for m in layers)
    return counts


def _part(name: str) -> str:
    part = name.partition(".")[0]
    return "encoder" if part == "vision" else part


def trained(counts: dict[str, int]) -> int:
    """Number of trained parameters."""
    return sum(count for part, count in counts.items() if part not in FROZEN)


def rates(plan: Plan, counts: dict[str, int]) -> list[str]:
    """A line for each peak learning rate: how many parameters have it, and in which parts."""
    model, optimizer = empty_model(plan.point, plan.train_vision), plan.loop.optimizer
    peaks = plan.peaks(model)
    numbers = layer_numbers(model.vision) if model.vision is not None and optimizer.layer_decay != 1 else {}
    layers = {f"vision.{name}": number for name, number in numbers.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[float, dict[str, int]] = {}
    for group in parameter_groups(model, optimizer, peaks):
        for parameter in group["params"]:
            name = names[id(parameter)]
            what = f"encoder, layer {layers[name]}" if name in layers else _part(name)
            parts = found.setdefault(group["peak"], {})
            parts[what] = parts.get(what, 0) + parameter.numel()
    if "adapters" in counts:
        found.setdefault(peaks["llm."], {})["adapters"] = counts["adapters"]
    return [
        f"{rate:>12.2e}{sum(parts.values()) / 1e6:>10.1f} M  {', '.join(parts)}"
        for rate, parts in sorted(found.items())
    ]


def memory(plan: Plan, counts: dict[str, int], gpus: int) -> dict[str, float]:
    """Estimated bytes of one GPU: weights, gradients and moments, frozen parts, activations of a micro-batch."""
    machine, language = plan.loop.machine, plan.point.language_model
    size = PRECISIONS.get(machine.precision, torch.bfloat16).itemsize
    per_weight = 16.0 if machine.shard == "none" else 16.0 / gpus + 8  # a step gathers weights and gradients
    frozen = counts.get("llm", 0) + (counts.get("vision", 0) if plan.data.encodes else 0)
    if machine.shard == "all":
        whole = 0  # embeddings and head
        if language is not None:
            whole = 2 * language.text_config.vocab_size * language.text_config.hidden_size
        frozen = whole + (frozen - whole) // gpus
    return {
        "trained weights, gradients, moments": per_weight * trained(counts),
        "frozen parts": float(size * frozen),
        "activations": _activations(plan, "encoder" in counts, size, gpus),
    }


def step_flops(plan: Plan, counts: dict[str, int]) -> float:
    """Multiplications and additions of a step, forward and backward, once each. Texts fill half of their limit."""
    config, q, batch = plan.config, plan.config.qformer, plan.loop.batch.batch_size
    text, vision = plan.texts * plan.tokens / 2, config.vision
    encoder = 6 * counts["encoder"] if "encoder" in counts else 2 * counts.get("vision", 0) * plan.data.encodes
    each = float(encoder) * vision.positions
    crossing = -(-q.layers // q.cross_attention_frequency)
    layer = 4 * q.hidden_size**2 + 2 * q.hidden_size * q.intermediate_size
    key_value = 2 * vision.positions * vision.features * q.hidden_size * crossing  # of one image
    if config.stage == 1:  # queries, text and ITG by themselves; three pairs for ITM, two of them with the own image
        tokens, images = q.queries + 2 * text + 3 * (q.queries + text), 2
        each += 6.0 * text * q.hidden_size * q.vocab_size
    else:
        tokens, images = q.queries + text * config.question_input, 1
    each += 6.0 * (tokens * (q.layers * layer + 2 * crossing * q.hidden_size**2) + images * key_value)
    passes = 3 if "adapters" in counts else 2  # forwards, backwards to activations and to weights
    if (language := plan.point.language_model) is not None:
        seen = q.queries + text
        if language.encoder_decoder:  # each half of the weights sees half of the text
            seen = (q.queries + text) / 2
        each += 2.0 * passes * counts.get("llm", 0) * seen
    return batch * each


def step_seconds(plan: Plan, counts: dict[str, int]) -> float:
    """Estimated seconds of a step on this machine, from the speed of a matrix product of its precision here."""
    return step_flops(plan, counts) / (EFFICIENCY * _matmul_speed(autocast_dtype(plan.loop.machine.precision)))


def _matmul_speed(dtype: torch.dtype, side: int = 1024) -> float:
    """Multiplications and additions per second of a square matrix product: the best of a few."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix, best = torch.ones(side, side, dtype=dtype, device=device), float("inf")
    for _ in range(5):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


def _activations(plan: Plan, encoder_learns: bool, size: int, gpus: int) -> float:
    """Bytes of a micro-batch's activations, with numbers of `size` bytes."""
    config, batch = plan.config, plan.loop.batch
    rows, scale, recompute = batch.batch_size // gpus // batch.accumulate, size / 2, plan.loop.machine.recompute
    vision, q, text = config.vision, config.qformer, config.max_text_length if config.stage == 1 else 0

    def layers(count: int, sequences: int, tokens: int, width: int, heads: int = 0) -> float:
        """heads: of attention that stores its scores, as T5's does; the fused one of the others does not."""
        if recompute:
            return scale * sequences * tokens * width * (2 * count + ACTIVATION_BYTES)
        return scale * sequences * tokens * count * (ACTIVATION_BYTES * width + 5 * heads * tokens)

    crossing = -(-q.layers // q.cross_attention_frequency)
    seen = rows * vision.positions * (vision.features + 2 * crossing * q.hidden_size) * size
    total = seen + layers(q.layers, rows, q.queries, q.hidden_size)
    if encoder_learns and (vit := vision.vit) is not None:
        total += layers(vit.layers, rows, vision.positions, vit.width)
    if config.stage == 1:
        total += layers(q.layers, 2 * rows, text, q.hidden_size)
        total += layers(q.layers, 3 * rows, q.queries + text, q.hidden_size) + 2 * seen
        total += rows * text * q.vocab_size * (size + 12)  # logits; in fp32 also, as are their shares and gradient
        if batch.accumulate > 1:  # features of all micro-batches, for the negatives
            total += batch.batch_size // gpus * vision.positions * vision.features * size
        return total + 8.0 * batch.batch_size**2 * q.queries
    assert plan.point.language_model is not None
    llm = plan.point.language_model.text_config
    stacks, heads = (2, llm.num_attention_heads) if llm.is_encoder_decoder else (1, 0)
    tokens = q.queries + plan.tokens * plan.texts
    return total + layers(stacks * llm.num_hidden_layers, rows, tokens, llm.hidden_size, heads)
