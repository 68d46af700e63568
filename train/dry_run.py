"""What a training would be, before the first second of a GPU: every mistake at once, parameters, memory, samples.

Weights are neither read nor made: parameters are counted on tensors without storage. Knows the geometry, runs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.adapters import adapted_layers
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import WEIGHTS, load_model, qformer_tokenizer
from blip2rt.modeling.llm import empty_llm, end_token_ids, load_tokenizer, text_config
from blip2rt.modeling.sources import fetch
from blip2rt.modeling.vision import VisionEncoder, encoder_shape, layer_numbers
from blip2rt.modeling.weights import has_weights

from .data.feed import data_entries, divide, encodes
from .data.loader import Reader, image_batches, open_sources
from .data.order import Mixture
from .data.readers import read_data
from .data.samples import Bad
from .data.transforms import eval_transform
from .loop.parallel import here
from .loop.rounding import check_rounding
from .loop.trainer import PRECISIONS, autocast_dtype, check_batch, parameter_groups
from .model import lacks_text_branch

GB = 1e9
BERT_BYTES = (
    34  # a token, layer and unit of width keeps for the backward pass in 16 bits (Korthikanti et al. 2022, eq. 2)
)
FROZEN = ("vision", "llm", "unread")


def empty_model(config: Blip2Config, train_vision: bool = False) -> Blip2:
    """What learns, but the LLM's adapters, on tensors without storage."""
    with torch.device("meta"):
        model = Blip2(config, vision=False, llm=False)
        if train_vision:
            model.vision = VisionEncoder(config.vision, empty=True)
            model.vision.unfreeze()
    return model


def count_parameters(config: Blip2Config, train_vision: bool = False) -> dict[str, int]:
    """Parameters of each part: what learns under its module's name, `encoder` if that does and `adapters` of the LLM;
    the frozen ones as `vision`, `llm` and `unread`."""
    counts: dict[str, int] = {}
    for name, parameter in empty_model(config, train_vision).named_parameters():
        part = _part(name) if parameter.requires_grad else "unread"
        counts[part] = counts.get(part, 0) + parameter.numel()
    if not train_vision:
        counts["vision"] = encoder_shape(config.vision)[2]
    if config.llm is not None:
        llm = empty_llm(text_config(config.llm.source, config.llm.overrides))
        counts["llm"] = sum(parameter.numel() for parameter in llm.parameters())
        if config.llm.lora_rank:
            layers = adapted_layers(llm, config.llm.lora_layers).values()
            counts["adapters"] = config.llm.lora_rank * sum(m.in_features + m.out_features for m in layers)
    return counts


def _part(name: str) -> str:
    part = name.partition(".")[0]
    return "encoder" if part == "vision" else part


def trained(counts: dict[str, int]) -> int:
    return sum(count for part, count in counts.items() if part not in FROZEN)


def rates(config: Blip2Config, settings: Any, peak_rates: Callable[[Any, Any], dict[str, float]]) -> list[str]:
    """A line for each peak of the learning rate: how much learns at it, and what."""
    model = empty_model(config, settings.train_vision)
    numbers = layer_numbers(model.vision) if model.vision is not None and settings.layer_decay != 1 else {}
    layers = {f"vision.{name}": number for name, number in numbers.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[float, dict[str, int]] = {}
    for group in parameter_groups(model, settings, peak_rates(model, settings)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            what = f"encoder, layer {layers[name]}" if name in layers else _part(name)
            parts = found.setdefault(group["peak"], {})
            parts[what] = parts.get(what, 0) + parameter.numel()
    if config.llm is not None and config.llm.lora_rank:
        found.setdefault(settings.lora_lr, {})["adapters"] = count_parameters(config)["adapters"]
    return [
        f"{rate:>12.2e}{sum(parts.values()) / 1e6:>10.1f} M  {', '.join(parts)}"
        for rate, parts in sorted(found.items())
    ]


def memory(config: Blip2Config, settings: Any, counts: dict[str, int], gpus: int) -> dict[str, float]:
    """Estimated bytes of one GPU: weights, gradients and moments, frozen parts, activations of a micro-batch."""
    size = PRECISIONS.get(settings.precision, torch.bfloat16).itemsize
    rows = settings.batch_size // gpus // settings.accumulate
    kept = 16.0 if settings.shard == "none" else 16.0 / gpus + 8  # of a shard weights and gradients are whole in a step
    parts = {"trained weights, gradients, moments": kept * trained(counts)}
    frozen = counts.get("llm", 0) + (counts.get("vision", 0) if encodes(settings) else 0)
    if settings.shard == "all":
        llm = None if config.llm is None else text_config(config.llm.source)
        whole = 0 if llm is None else 2 * llm.vocab_size * llm.hidden_size  # embeddings and head
        frozen = whole + (frozen - whole) // gpus
    parts["frozen parts"] = float(size * frozen)
    q, text = config.qformer, config.max_text_length if config.stage == 1 else 0
    scale = size / 2

    def layers(count: int, sequences: int, tokens: int, width: int, heads: int) -> float:
        if settings.recompute:
            return scale * sequences * tokens * width * (2 * count + BERT_BYTES)
        return scale * sequences * tokens * count * (BERT_BYTES * width + 5 * heads * tokens)

    crossing = -(-q.layers // q.cross_attention_frequency)
    seen = rows * config.vision.positions * (config.vision.features + 2 * crossing * q.hidden_size) * size
    activations = seen + layers(q.layers, rows, q.queries, q.hidden_size, q.heads)
    if "encoder" in counts and (vit := config.vision.vit) is not None:
        activations += layers(vit.layers, rows, config.vision.positions, vit.width, vit.heads)
    if config.stage == 1:
        activations += layers(q.layers, 2 * rows, text, q.hidden_size, q.heads)
        activations += layers(q.layers, 3 * rows, q.queries + text, q.hidden_size, q.heads) + 2 * seen
        activations += rows * text * q.vocab_size * (size + 8)
        everyone = settings.batch_size // settings.accumulate
        activations += 8.0 * everyone**2 * q.queries + everyone * config.vision.positions * config.vision.features * 4
    else:
        assert config.llm is not None
        llm = text_config(config.llm.source)
        stacks = 2 if llm.is_encoder_decoder else 1
        tokens = q.queries + settings.max_text_tokens * settings.texts_per_image
        activations += layers(stacks * llm.num_hidden_layers, rows, tokens, llm.hidden_size, llm.num_attention_heads)
    return parts | {"activations": activations}


def faults(settings: Any, config: Blip2Config, gpus: int) -> tuple[list[str], str]:
    """Everything that would stop the training later, and a line about the data."""
    found: list[str] = []

    def check(work: Callable[[], object]) -> Any:
        try:
            return work()
        except Blip2rtError as error:
            found.append(str(error))
        return None

    check(lambda: check_batch(settings, gpus))
    check(lambda: check_rounding(config, settings))
    check(lambda: autocast_dtype(settings.precision))
    check(lambda: _vision(config))
    if not settings.start or lacks_text_branch(settings, config):
        check(lambda: _bert(config))
    if settings.start and not Path(settings.start).is_file():
        check(lambda: load_model(settings.start, vision=False, llm=False, streamed=True))
    if config.llm is not None:
        check(lambda: _llm(config))
    data = check(lambda: _data(settings, config))
    check(lambda: _disk(settings, config))
    return found, str(data)


def _vision(config: Blip2Config) -> None:
    source = config.vision.source
    if config.vision.weights is None and not source.startswith("hf:"):
        what = "vision_weights: pretrained" if source.startswith("timm:") else "its file as vision_weights"
        raise Blip2rtError(f"the frozen encoder {source} would have random weights; give {what}")
    VisionEncoder(config.vision, streamed=True)
    positions, features, _ = encoder_shape(config.vision)
    if (positions, features) != (config.vision.positions, config.vision.features):
        raise Blip2rtError(
            f"vision_positions x vision_features is {config.vision.positions} x {config.vision.features}; {source} "
            f"gives {positions} x {features}; leave them out"
        )


def _bert(config: Blip2Config) -> None:
    qformer_tokenizer(config)
    folder = Path(fetch(config.qformer_init))
    if not (folder / WEIGHTS).is_file():
        raise Blip2rtError(f"qformer_init {config.qformer_init!r}: there is no {WEIGHTS} in {folder}")


def _llm(config: Blip2Config) -> None:
    assert config.llm is not None
    tokenizer = load_tokenizer(config.llm.source)
    end_token_ids(tokenizer, config.llm)
    if config.llm.prepend_bos and tokenizer.bos_token_id is None:
        raise Blip2rtError(f"prepend_bos: the tokenizer of {config.llm.source!r} has no bos token; leave it out")
    folder = Path(fetch(config.llm.source))
    if folder.is_dir() and not has_weights(folder):
        raise Blip2rtError(f"llm_source {config.llm.source!r} holds no weights")


def _data(settings: Any, config: Blip2Config) -> str:
    """Opens everything, decodes the first row."""
    bad = Bad(settings.max_bad)
    if not encodes(settings):
        data = read_data(settings.train_table, settings.images, bad)
        rows = len(data.samples if config.stage == 1 else data.paths)
        if rows < settings.batch_size:
            raise Blip2rtError(f"batch_size {settings.batch_size} is more than the {rows} samples there are; lower it")
        if config.stage == 1 and len(data.paths) < 2:
            raise Blip2rtError("stage 1 tells images apart, and there is one only")
        return f"{len(data.paths)} images, {len(data.samples)} texts, {len(bad.found)} unusable"
    sources, weights = open_sources(data_entries(settings), Path(settings.features), bad)
    reader = Reader(sources, settings.seed, eval_transform(config.vision))
    mixture = Mixture(weights, settings.batch_size, settings.seed)
    next(image_batches(reader, mixture, 0, lambda rows: divide(here(), settings, rows)[:1], 0, bad))
    images = sum(sum(source.counts) for source in sources)
    shares = [f"{100 * weight / sum(weights):.0f} %" for weight in weights]
    return f"{images} images in {len(sources)} sources, drawn {', '.join(shares)}, {len(bad.found)} unusable so far"


def _disk(settings: Any, config: Blip2Config) -> None:
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    need = 12.0 * trained(count_parameters(config, settings.train_vision)) * (settings.keep + 1)
    free = shutil.disk_usage(out).free
    if need > free:
        raise Blip2rtError(f"{settings.keep} checkpoints need {need / GB:.1f} GB in {out}, {free / GB:.1f} GB are free")


def dry_run(
    settings: Any,
    model_config: Callable[[Any], Blip2Config],
    peak_rates: Callable[[Any, Any], dict[str, float]],
) -> str:
    """The description. Raises Blip2rtError: all faults."""
    gpus = settings.dry_run
    config = model_config(settings)
    found, data = faults(settings, config, gpus)
    if found:
        raise Blip2rtError("; ".join(dict.fromkeys(found)))
    counts = count_parameters(config, settings.train_vision)
    need = memory(config, settings, counts, gpus)
    texts = 1 if config.stage == 1 else settings.texts_per_image
    tokens = config.max_text_length if config.stage == 1 else settings.max_text_tokens
    lines = [
        f"{part:<20}{count / 1e6:>10.1f} M  {'frozen' if part in FROZEN else 'trained'}"
        for part, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    frozen = sum(counts.values()) - trained(counts)
    return "\n".join(
        [
            *lines,
            f"trained: {trained(counts) / 1e6:.1f} M, frozen: {frozen / 1e6:.1f} M",
            "peak learning rates:",
            *rates(config, settings, peak_rates),
            f"memory of one of {gpus} GPUs, estimated: {sum(need.values()) / GB:.1f} GB ("
            + ", ".join(f"{name} {value / GB:.1f}" for name, value in need.items())
            + ")",
            f"a step: {settings.batch_size} images ({settings.batch_size // gpus} a GPU in {settings.accumulate} "
            f"micro-batches), at most {settings.batch_size * texts * tokens} tokens of text",
            f"{settings.steps} steps: {settings.steps * settings.batch_size / 1e6:.1f} M images",
            f"data: {data}",
        ]
    )
