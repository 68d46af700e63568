"""Describe a training without running it: all faults at once, parameters, memory, learning rates, samples.

Parameters are counted on tensors without storage; weights are neither read nor drawn.
"""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError, OptionError, collected, reason
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.vision import VisionEncoder
from blip2rt.modeling.weights import has_weights
from blip2rt.system import total_memory

from .data.loaders import small_data_note, split_micro_batches
from .data.samples import BadSamples, Sample
from .data.sampling import Mixture, sample_images
from .data.streaming import SampleReader, Source, load_batches, open_sources
from .data.transforms import eval_transform, read_image
from .loop.rounding import check_rounding
from .loop.trainer import autocast_dtype, check_batch
from .model import open_checkpoint, vision_config
from .plan import FROZEN, Plan, count_parameters, memory, rates, step_flops, step_seconds, trained
from .progress import announce
from .settings import RunSettings, TrainSettings

GB = 1e9
PROGRAM_BYTES = 0.9e9  # Python, PyTorch and buffers in main memory: 0.82 GB with tiny models, 0.95 with small ones
SAMPLED_IMAGES = 64  # decoded, to see whether they can be
_UNLIMITED = 1 << 60


def dry_run(settings: TrainSettings, make: Callable[[Any], Plan]) -> str:
    """The description of a training that `make` plans. Raises Blip2rtError, which lists all faults."""
    announce("checking the data and the parts of the model")
    plan = planned(settings, make)
    batch, run, steps = plan.loop.batch, plan.loop.run, plan.loop.optimizer.steps
    gpus = run.gpus
    found, data = faults(plan, gpus)
    if found:
        raise Blip2rtError("; ".join(dict.fromkeys(found)))
    counts = count_parameters(plan.point, plan.train_vision)
    need = memory(plan, counts, gpus)
    if _is_local(run) and not torch.cuda.is_available():
        need["program"] = PROGRAM_BYTES
    lines = [
        f"{part:<20}{count / 1e6:>10.1f} M  {'frozen' if part in FROZEN else 'trained'}"
        for part, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    frozen = sum(counts.values()) - trained(counts)
    parts = ", ".join(f"{name} {value / GB:.1f}" for name, value in need.items())
    return "\n".join(
        [
            *lines,
            f"trained: {trained(counts) / 1e6:.1f} M, frozen: {frozen / 1e6:.1f} M",
            "peak learning rates:",
            *rates(plan, counts),
            f"memory{_of_each(run)}, estimated: {sum(need.values()) / GB:.1f} GB ({parts}){_available(run)}",
            f"a step: {batch.batch_size} images ({batch.batch_size // gpus} a GPU in {batch.accumulate} "
            f"micro-batches), at most {batch.batch_size * plan.texts * plan.tokens} tokens of text",
            f"{steps:,} steps: {steps * batch.batch_size:,} images of "
            f"{step_flops(plan, counts) / batch.batch_size / 1e9:,.1f} GFLOPs{_duration(plan, counts)}",
            f"checkpoints: {_checkpoint_bytes(plan) / GB:.1f} GB each, at most {plan.loop.log.keep + 1} at a time",
            f"data: {data}",
        ]
    )


def _is_local(run: RunSettings) -> bool:
    """Whether the training is planned for this machine, rather than for GPUs elsewhere."""
    return run.gpus <= max(1, torch.cuda.device_count())


def _of_each(run: RunSettings) -> str:
    alone = run.gpus == 1 and not torch.cuda.is_available()
    return "" if alone else f" of one of {run.gpus} GPUs"


def _available(run: RunSettings) -> str:
    if not _is_local(run):
        return ""
    if torch.cuda.is_available():
        return f"; a GPU here has {torch.cuda.mem_get_info()[1] / GB:.1f} GB"
    return f"; this machine has {total_memory() / GB:.1f} GB"


def _duration(plan: Plan, counts: dict[str, int]) -> str:
    """How long the steps take, if the training is planned for this machine."""
    if not _is_local(plan.loop.run):
        return ""
    seconds = step_seconds(plan, counts) / plan.loop.run.gpus
    each = f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
    total = seconds * plan.loop.optimizer.steps
    shown = f"{total / 60:.0f} minutes" if total < 5400 else f"{total / 3600:.1f} hours"
    return f", about {each} s each on this machine: {shown}"


def planned(settings: TrainSettings, make: Callable[[Any], Plan]) -> Plan:
    """Make the plan of settings. Raises OptionError, which lists the faults of all parts, if that fails."""
    try:
        return make(settings)
    except Blip2rtError as error:
        raise OptionError("; ".join(dict.fromkeys([str(error), *_part_faults(settings)]))) from error


def _part_faults(settings: TrainSettings) -> list[str]:
    """Faults of encoder, BERT, language model, checkpoints and data, each by itself."""
    found: list[str] = []
    llm, checks = getattr(settings, "llm", None), list[Callable[[], object]]()
    start = open_checkpoint(settings.origin.start, settings.given)
    stage1 = open_checkpoint(getattr(getattr(settings, "prefix", None), "stage1", ""), settings.given)
    if not start and not stage1:
        bert = BertSource(settings.qformer.qformer_init)
        checks += [lambda: vision_config(settings.vision), lambda: bert.geometry]
    if llm is not None and not start:
        language = LanguageModelSource(LlmConfig(source=llm.llm_source))
        checks += [lambda: language.tokenizer, lambda: language.text_config]
    checks += [lambda each=each: each.config for each in (start, stage1) if each]  # type: ignore[misc]
    if settings.data.train_data or settings.data.train_tables or settings.data.train_table:
        checks.append(lambda: open_sources(settings.data.entries, Path(settings.data.features), BadSamples(_UNLIMITED)))
    for check in checks:
        try:
            check()
        except Exception as error:  # noqa: BLE001  # an untrusted file
            found.append(str(error) if isinstance(error, Blip2rtError) else reason(error))
    return found


def faults(plan: Plan, gpus: int) -> tuple[list[str], str]:
    """Everything that would stop the training later, and a line about the data."""
    point, machine = plan.point, plan.loop.machine
    found, data = list[str](), ""
    checks: list[Callable[[], object]] = [
        lambda: check_batch(plan.loop.batch, gpus),
        lambda: check_rounding(point.config, machine.shard),
        lambda: autocast_dtype(machine.precision),
        lambda: VisionEncoder(point.config.vision, streamed=True),
    ]
    if not point.stage1 and (not point.start or point.lacks_text_branch):
        checks.append(point.bert.require_weights)
    opened = filter(None, (point.stage1, point.start))
    checks += [functools.partial(checkpoint.load, vision=False, llm=False, streamed=True) for checkpoint in opened]
    if (language := point.language_model) is not None:
        checks.append(lambda: _check_llm(language))
    for check in checks:
        with collected(found):
            check()
    with collected(found):
        data = _data(plan)
    with collected(found):
        _check_disk(plan)
    return found, data


def _check_llm(language: LanguageModelSource) -> None:
    assert language.end_token_ids
    language.require_bos()
    folder = Path(language.path)
    if folder.is_dir() and not has_weights(folder):
        raise Blip2rtError(f"llm_source {language.config.source!r} has no weights: give a folder with some")


def _data(plan: Plan) -> str:
    """A line about the data; opens all of it and decodes a sample of the images."""
    data, batch, config = plan.data, plan.loop.batch, plan.config
    bad = BadSamples(data.max_bad)
    sources, weights = open_sources(data.entries, Path(data.features), bad)
    opened = _sampled(sources, plan.truncation)
    reader = SampleReader(sources, batch.seed, eval_transform(config.vision))
    mixture = Mixture(weights, batch.batch_size, batch.seed)
    split = functools.partial(split_micro_batches, batch.accumulate)
    next(load_batches(reader, mixture, 0, lambda rows: split(rows)[:1], 0, bad))
    images = sum(sum(source.counts) for source in sources)
    if config.stage == 1 and images < 2:
        raise Blip2rtError("stage 1 contrasts images, but there is only one: give more")
    shares = [f"{100 * weight / sum(weights):.0f} %" for weight in weights]
    counted = f"{images} images in {len(sources)} sources, drawn {', '.join(shares)}, {len(bad.found)} unusable so far"
    few = small_data_note(sources, batch.batch_size) if config.stage == 1 else ""
    return "; ".join(filter(None, (counted, *opened, few)))


def _sampled(sources: list[Source], truncation: Callable[[list[Sample]], str] | None) -> list[str]:
    """Lines about a sample of images and their texts. Raises Blip2rtError if none can be read."""
    tried, bad, texts = 0, list[str](), list[Sample]()
    for source in sources:
        for number in sample_images(sum(source.counts), max(1, SAMPLED_IMAGES // len(sources))):
            tried += 1
            try:
                content, samples = source.read(number)
                read_image(content)
                texts += samples
            except (OSError, ValueError, Blip2rtError) as error:
                bad.append(f"{source.name(number)} ({reason(error)})")
    listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    if bad and len(bad) == tried:
        raise Blip2rtError(f"none of {tried} sampled images can be read: {listed}")
    opened = f"{tried} images opened, {len(bad)} cannot be read" + (f": {listed}" if bad else "")
    return [opened] if truncation is None else [opened, truncation(texts)]


def _checkpoint_bytes(plan: Plan) -> float:
    """Bytes of the trained weights and their two moments."""
    return 12.0 * trained(count_parameters(plan.point, plan.train_vision))


def _check_disk(plan: Plan) -> None:
    out, keep = Path(plan.loop.run.out), plan.loop.log.keep
    out.mkdir(parents=True, exist_ok=True)
    need = _checkpoint_bytes(plan) * (keep + 1)
    free = shutil.disk_usage(out).free
    if need > free:
        raise Blip2rtError(
            f"{keep} checkpoints need {need / GB:.1f} GB in {out}, {free / GB:.1f} GB are free: free some or keep less"
        )
