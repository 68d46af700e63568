"""Describe an export without doing it: every part with its precision and size, read from configs only."""

import shutil

import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.vision import encoder_shape

from .options import ExportOptions, ExportPlan

_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8w": 1.0, "int8-dynamic": 1.0, "int8-static": 1.0, "int4": 0.54}


def describe(options: ExportOptions, plan: ExportPlan) -> list[str]:
    """Lines about each part, and about the disk. Raises Blip2rtError if the disk is too small."""
    counts = _counts(plan)
    sizes = {part: count * _BYTES[plan.precision[part]] for part, count in counts.items()}
    lines = [
        f"{part:<10}  {plan.precision[part]:<12}  {counts[part] / 1e6:>9.1f} M parameters  about {size / 1e6:,.0f} MB"
        for part, size in sizes.items()
    ]
    total, out = sum(sizes.values()), options.out.absolute()
    free = shutil.disk_usage(next(each for each in (out, *out.parents) if each.exists())).free
    if total > free:
        raise Blip2rtError(
            f"{options.out} needs about {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: free some, or give another "
            "place"
        )
    lines += [f"note: {note}" for note in plan.notes]
    return [*lines, f"{options.out}: about {total / 1e6:,.0f} MB for {options.target.name}; nothing was written"]


def _counts(plan: ExportPlan) -> dict[str, int]:
    """Parameters of each group of graphs."""
    first = plan.stage2 or plan.stage1
    assert first is not None
    counts = {"vision": encoder_shape(first.config.vision)[2]}
    if plan.stage2 is not None and plan.stage2.language_model is not None:
        counts["qformer"] = _trained(plan.stage2)
        counts["llm"] = sum(parameter.numel() for parameter in plan.stage2.language_model.empty().parameters())
    if plan.stage1 is not None:
        counts["retrieval"] = _trained(plan.stage1)
    return counts


def _trained(checkpoint: Checkpoint) -> int:
    width = None if checkpoint.language_model is None else checkpoint.language_model.hidden_size
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Blip2(checkpoint.config, llm_width=width).parameters())
