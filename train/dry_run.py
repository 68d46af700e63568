"""What a training would be, before the first second of a GPU: every mistake at once, parameters, memory, samples.

Parameters are counted on tensors without storage; weights are neither read nor made. Knows the geometry, runs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError, OptionError, reason
from blip2rt.modeling.adapters import adapted_layers
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import WEIGHTS, load_model, qformer_tokenizer, read_bert_geometry, read_config
from blip2rt.modeling.llm import empty_llm, end_token_ids, llm_tokenizer, load_tokenizer, text_config
from blip2rt.modeling.sources import fetch
from blip2rt.modeling.vision import VisionEncoder, encoder_shape, layer_numbers
from blip2rt.modeling.weights import has_weights

from .data.loaders import small_data_note, split_micro_batches
from .data.readers import read_data
from .data.samples import BadSamples, Sample
from .data.sampling import Mixture, sample_images
from .data.streaming import ListSource, SampleReader, Source, load_batches, open_sources
from .data.transforms import eval_transform, read_image
from .loop.parallel import this_process
from .loop.rounding import check_rounding
from .loop.trainer import PRECISIONS, autocast_dtype, check_batch, parameter_groups
from .model import Start, check_bos, lacks_text_branch, vision_config
from .settings import DataSettings, LoopSettings, TrainSettings

GB = 1e9
# A token, layer and unit of width keeps so many for the backward pass in 16 bits (Korthikanti et al. 2022, eq. 2).
BERT_BYTES = 34
FROZEN = ("vision", "llm", "unread")
OPENED = 64  # pictures that are opened to see whether they can be
MANY = 1 << 60


@dataclass(frozen=True)
class Plan:
    """A training that is described and not run."""

    config: Blip2Config
    start: Start
    loop: LoopSettings
    data: DataSettings
    train_vision: bool
    peaks: Callable[[Blip2], dict[str, float]]  # peak rates, by the beginnings of parameters' names
    texts: int  # of an image
    tokens: int  # of a text, at most
    room: Callable[[list[Sample]], str] | None = None  # what is said of a few texts' lengths


def dry_run(plan: Plan) -> str:
    """The description. Raise Blip2rtError, which names all faults."""
    gpus, batch, steps = plan.loop.run.dry_run, plan.loop.batch, plan.loop.optimizer.steps
    found, data = faults(plan, gpus)
    if found:
        raise Blip2rtError("; ".join(dict.fromkeys(found)))
    counts = count_parameters(plan.config, plan.train_vision)
    need = memory(plan, counts, gpus)
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
            *rates(plan),
            f"memory of one of {gpus} GPUs, estimated: {sum(need.values()) / GB:.1f} GB ("
            + ", ".join(f"{name} {value / GB:.1f}" for name, value in need.items())
            + ")",
            f"a step: {batch.batch_size} images ({batch.batch_size // gpus} a GPU in {batch.accumulate} "
            f"micro-batches), at most {batch.batch_size * plan.texts * plan.tokens} tokens of text",
            f"{steps} steps: {steps * batch.batch_size / 1e6:.1f} M images",
            f"data: {data}",
        ]
    )


def empty_model(config: Blip2Config, train_vision: bool = False) -> Blip2:
    """A model of what learns, but the LLM's adapters, on tensors without storage."""
    with torch.device("meta"):
        model = Blip2(config, vision=False, llm=False)
        if train_vision:
            model.vision = VisionEncoder(config.vision, empty=True)
            model.vision.unfreeze()
    return model


def count_parameters(config: Blip2Config, train_vision: bool = False) -> dict[str, int]:
    """Parameters of each part.

    What learns has its module's name, `encoder` or `adapters` (of the LLM); frozen are `vision`, `llm` and `unread`.
    """
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
    """Parameters that learn."""
    return sum(count for part, count in counts.items() if part not in FROZEN)


def rates(plan: Plan) -> list[str]:
    """A line for each peak of the learning rate: how much learns at it, and what."""
    model, optimizer, llm = empty_model(plan.config, plan.train_vision), plan.loop.optimizer, plan.config.llm
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
    if llm is not None and llm.lora_rank:
        found.setdefault(peaks["llm."], {})["adapters"] = count_parameters(plan.config)["adapters"]
    return [
        f"{rate:>12.2e}{sum(parts.values()) / 1e6:>10.1f} M  {', '.join(parts)}"
        for rate, parts in sorted(found.items())
    ]


def memory(plan: Plan, counts: dict[str, int], gpus: int) -> dict[str, float]:
    """Estimated bytes of one GPU: weights, gradients and moments, frozen parts, activations of a micro-batch."""
    machine, source = plan.loop.machine, None if plan.config.llm is None else plan.config.llm.source
    size = PRECISIONS.get(machine.precision, torch.bfloat16).itemsize
    kept = 16.0 if machine.shard == "none" else 16.0 / gpus + 8  # of a shard weights and gradients are whole in a step
    frozen = counts.get("llm", 0) + (counts.get("vision", 0) if plan.data.encodes else 0)
    if machine.shard == "all":
        llm = None if source is None else text_config(source)
        whole = 0 if llm is None else 2 * llm.vocab_size * llm.hidden_size  # embeddings and head
        frozen = whole + (frozen - whole) // gpus
    return {
        "trained weights, gradients, moments": kept * trained(counts),
        "frozen parts": float(size * frozen),
        "activations": _activations(plan, "encoder" in counts, size, gpus),
    }


def _activations(plan: Plan, encoder_learns: bool, size: int, gpus: int) -> float:
    """Bytes that a micro-batch keeps for the backward pass, numbers being `size` bytes large."""
    config, batch = plan.config, plan.loop.batch
    rows, scale, recompute = batch.batch_size // gpus // batch.accumulate, size / 2, plan.loop.machine.recompute
    vision, q, text = config.vision, config.qformer, config.max_text_length if config.stage == 1 else 0

    def layers(count: int, sequences: int, tokens: int, width: int, heads: int) -> float:
        if recompute:
            return scale * sequences * tokens * width * (2 * count + BERT_BYTES)
        return scale * sequences * tokens * count * (BERT_BYTES * width + 5 * heads * tokens)

    crossing = -(-q.layers // q.cross_attention_frequency)
    seen = rows * vision.positions * (vision.features + 2 * crossing * q.hidden_size) * size
    total = seen + layers(q.layers, rows, q.queries, q.hidden_size, q.heads)
    if encoder_learns and (vit := vision.vit) is not None:
        total += layers(vit.layers, rows, vision.positions, vit.width, vit.heads)
    if config.stage == 1:
        total += layers(q.layers, 2 * rows, text, q.hidden_size, q.heads)
        total += layers(q.layers, 3 * rows, q.queries + text, q.hidden_size, q.heads) + 2 * seen
        total += rows * text * q.vocab_size * (size + 8)
        everyone = batch.batch_size // batch.accumulate
        return total + 8.0 * everyone**2 * q.queries + everyone * vision.positions * vision.features * 4
    assert config.llm is not None
    llm = text_config(config.llm.source)
    stacks = 2 if llm.is_encoder_decoder else 1
    tokens = q.queries + plan.tokens * plan.texts
    return total + layers(stacks * llm.num_hidden_layers, rows, tokens, llm.hidden_size, llm.num_attention_heads)


def planned(settings: TrainSettings, make: Callable[[Any], Plan]) -> Plan:
    """The plan that `make` makes of settings. Raise OptionError: all that is wrong with parts, where it cannot."""
    try:
        return make(settings)
    except Blip2rtError as error:
        raise OptionError("; ".join(dict.fromkeys([str(error), *_part_faults(settings)]))) from error


def further_faults(settings: TrainSettings, make: Callable[[Any], Plan]) -> list[str]:
    """What is wrong besides with settings for a dry run that make no sense in themselves, as far as it can be told."""
    if not settings.loop.run.dry_run:
        return []
    try:
        return faults(planned(settings, make), settings.loop.run.dry_run)[0]
    except Blip2rtError as error:
        return [str(error)]
    except Exception:  # noqa: BLE001  # it follows from what is named already
        return _part_faults(settings)


def _part_faults(settings: TrainSettings) -> list[str]:
    """What is wrong with encoder, BERT, language model, checkpoints and data, each by itself."""
    found: list[str] = []
    start, stage1 = settings.origin.start, getattr(getattr(settings, "prefix", None), "stage1", "")
    llm, checks = getattr(settings, "llm", None), list[Callable[[], object]]()
    if not start and not stage1:
        checks += [lambda: vision_config(settings.vision), lambda: read_bert_geometry(settings.qformer.qformer_init)]
    if llm is not None and not start:
        checks += [lambda: load_tokenizer(llm.llm_source), lambda: text_config(llm.llm_source)]
    given = [Start(source, settings.given) for source in (start, stage1) if source]
    checks += [lambda each=each: read_config(each.checkpoint, each.parts) for each in given]  # type: ignore[misc]
    if settings.data.train_data or settings.data.train_tables or settings.data.train_table:
        checks.append(lambda: open_sources(settings.data.entries, Path(settings.data.features), BadSamples(MANY)))
    for check in checks:
        try:
            check()
        except Blip2rtError as error:
            found.append(str(error))
        except Exception as error:  # noqa: BLE001  # a stranger's file
            found.append(reason(error))
    return found


def faults(plan: Plan, gpus: int) -> tuple[list[str], str]:
    """Everything that would stop the training later, and a line about the data."""
    config, machine, checkpoint = plan.config, plan.loop.machine, plan.start.checkpoint
    found: list[str] = []

    def check(work: Callable[[], object]) -> Any:
        try:
            return work()
        except Blip2rtError as error:
            found.append(str(error))
        return None

    check(lambda: check_batch(plan.loop.batch, gpus))
    check(lambda: check_rounding(config, machine.shard))
    check(lambda: autocast_dtype(machine.precision))
    check(lambda: _vision(config))
    stage1 = plan.start.stage1
    if not (checkpoint or stage1) or (not stage1 and lacks_text_branch(config, plan.start)):
        check(lambda: _bert(config))
    if stage1:
        check(lambda: load_model(stage1, vision=False, llm=False, streamed=True, parts=plan.start.parts))
    if checkpoint and not Path(checkpoint).is_file():
        check(lambda: load_model(checkpoint, vision=False, llm=False, streamed=True))
    if config.llm is not None:
        check(lambda: _llm(config))
    data = check(lambda: _data(plan))
    check(lambda: _disk(plan))
    return found, str(data)


def _vision(config: Blip2Config) -> None:
    source = config.vision.source
    if config.vision.weights is None and not source.startswith("hf:"):
        what = "vision_weights pretrained" if source.startswith("timm:") else "its file as vision_weights"
        raise Blip2rtError(f"the frozen encoder {source} would have random weights: give {what}")
    VisionEncoder(config.vision, streamed=True)
    positions, features, _ = encoder_shape(config.vision)
    if (positions, features) != (config.vision.positions, config.vision.features):
        raise Blip2rtError(
            f"vision_positions x vision_features is {config.vision.positions} x {config.vision.features}; {source} "
            f"gives {positions} x {features}: leave them out"
        )


def _bert(config: Blip2Config) -> None:
    qformer_tokenizer(config)
    folder = Path(fetch(config.qformer_init))
    if not (folder / WEIGHTS).is_file():
        raise Blip2rtError(f"qformer_init {config.qformer_init!r} has no {WEIGHTS} in {folder}: give a BERT's folder")


def _llm(config: Blip2Config) -> None:
    assert config.llm is not None
    tokenizer = llm_tokenizer(config.llm)
    end_token_ids(tokenizer, config.llm)
    check_bos(tokenizer, config.llm)
    folder = Path(fetch(config.llm.source))
    if folder.is_dir() and not has_weights(folder):
        raise Blip2rtError(f"llm_source {config.llm.source!r} holds no weights: give a folder with some")


def _data(plan: Plan) -> str:
    """A line about the data; opens everything and decodes pictures that are spread over all of it."""
    data, batch, config = plan.data, plan.loop.batch, plan.config
    bad = BadSamples(data.max_bad)
    if not data.encodes and not data.train_tables:
        read = read_data(data.train_table, data.images, bad)
        rows = len(read.samples if config.stage == 1 else read.paths)
        if rows < batch.batch_size:
            raise Blip2rtError(f"batch_size {batch.batch_size} is more than the {rows} samples there are: lower it")
        if config.stage == 1 and len(read.paths) < 2:
            raise Blip2rtError("stage 1 tells images apart, and there is one only: give more")
        counted = f"{len(read.paths)} images, {len(read.samples)} texts, {len(bad.found)} unusable"
        return "; ".join((counted, *_opened([ListSource(read)], plan.room)))
    sources, weights = open_sources(data.entries, Path(data.features), bad)
    opened = _opened(sources, plan.room)
    reader = SampleReader(sources, batch.seed, eval_transform(config.vision))
    mixture = Mixture(weights, batch.batch_size, batch.seed)
    next(
        load_batches(
            reader, mixture, 0, lambda rows: split_micro_batches(this_process(), batch.accumulate, rows)[:1], 0, bad
        )
    )
    images = sum(sum(source.counts) for source in sources)
    shares = [f"{100 * weight / sum(weights):.0f} %" for weight in weights]
    counted = f"{images} images in {len(sources)} sources, drawn {', '.join(shares)}, {len(bad.found)} unusable so far"
    few = small_data_note(sources, batch.batch_size) if config.stage == 1 else ""
    return "; ".join(filter(None, (counted, *opened, few)))


def _opened(sources: list[Source], room: Callable[[list[Sample]], str] | None) -> list[str]:
    """What became of OPENED pictures and their texts, spread over the sources. Raise Blip2rtError where none can be
    read."""
    tried, bad, texts = 0, list[str](), list[Sample]()
    for source in sources:
        for number in sample_images(sum(source.counts), max(1, OPENED // len(sources))):
            tried += 1
            try:
                content, samples = source.read(number)
                read_image(content)
                texts += samples
            except (OSError, ValueError, Blip2rtError) as error:
                bad.append(f"{source.name(number)} ({reason(error)})")
    listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    if bad and len(bad) == tried:
        raise Blip2rtError(f"none of {tried} pictures that were opened can be read: {listed}")
    opened = f"{tried} pictures opened, {len(bad)} cannot be read" + (f": {listed}" if bad else "")
    return [opened] if room is None else [opened, room(texts)]


def _disk(plan: Plan) -> None:
    out, keep = Path(plan.loop.run.out), plan.loop.log.keep
    out.mkdir(parents=True, exist_ok=True)
    need = 12.0 * trained(count_parameters(plan.config, plan.train_vision)) * (keep + 1)
    free = shutil.disk_usage(out).free
    if need > free:
        raise Blip2rtError(
            f"{keep} checkpoints need {need / GB:.1f} GB in {out}, {free / GB:.1f} GB are free: free some or keep less"
        )
