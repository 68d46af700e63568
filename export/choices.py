"""What an export was asked for, checked before any work: checkpoints, precisions, photographs, files.

Knows options and configs, no weights and no graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from blip2rt.errors import Blip2rtError
from blip2rt.modeling import checkpoints
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.lavis import NO_PARTS, Parts
from blip2rt.modeling.vision import resized

from .graphs import vision
from .targets import ORT, Target


@dataclass(frozen=True)
class Options:
    """What `blip2rt-export` was asked for."""

    ckpt: str  # a folder, a LAVIS file or a hub id
    out: Path
    retrieval_ckpt: str | None = None
    parts: Parts = NO_PARTS  # what LAVIS' files leave out
    image_size: int | None = None  # pixels; position embeddings are interpolated
    name: str | None = None  # default: the bundle folder's
    target: Target = ORT
    precision: dict[str, str] = field(default_factory=dict)  # group -> precision; the target's defaults for others
    calib: Path | None = None
    card: Path | None = None
    max_positions: int = 1024
    length_penalty: float = 1.0  # of captions, by default
    llm_activations: int | None = None  # bits that meet the language model's int4 weights, 8 or 16; None: by its size
    overwrite: bool = False
    verify: bool = True


class Loadable(Protocol):
    """Where a model comes from."""

    @property
    def source(self) -> str: ...

    def load(self, *, vision: bool) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    source: str
    config: Blip2Config
    parts: Parts

    def load(self, *, vision: bool) -> Any:
        """The model in eval mode, its large weights still on disk. Raises Blip2rtError."""
        return checkpoints.load_model(
            self.source, vision=vision, streamed=True, config=self.config, parts=self.parts
        )  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The options, resolved."""

    stage2: Loadable | None
    stage1: Loadable | None
    precision: dict[str, str]  # group -> fp32, fp16, int8-static, int8-dynamic, int8w or int4
    photographs: list[Path]


def resolve(options: Options) -> Choices:
    """Raises Blip2rtError: everything that is wrong, at once."""
    faults: list[str] = []
    main = _try(faults, lambda: _checkpoint(options.ckpt, options))
    other = None
    if options.retrieval_ckpt is not None:
        source = options.retrieval_ckpt
        other = _try(faults, lambda: _checkpoint(source, options))
    files = _try(faults, lambda: [] if options.calib is None else vision.photographs(options.calib)) or []
    precision = {group: _precision(group, options) for group in options.target.defaults}
    static = [group for group, chosen in precision.items() if chosen == "int8-static"]
    if static and options.calib is None:
        instead = "fp16" if options.target.name == "trt" else "int8-dynamic"
        wanted = ", ".join(f"{group}=int8-static" for group in static)
        faults.append(f"{wanted} needs photographs to calibrate on: give --calib FOLDER, or {instead}")
    if options.llm_activations is not None and (precision["llm"] != "int4" or options.target is not ORT):
        faults.append(
            f"--llm-activations {options.llm_activations} is of llm=int4 for the target ort, here it is "
            f"{precision['llm']} for {options.target.name}"
        )
    if options.card is not None and not options.card.is_file():
        faults.append(f"--card {options.card} is no file")
    stage2, stage1 = _stages(options, main, other, faults)
    if faults:
        raise Blip2rtError("; ".join(faults))
    return Choices(stage2, stage1, precision, files)


def _try(faults: list[str], function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Blip2rtError as error:
        faults.append(str(error))
        return None


def _checkpoint(source: str, options: Options) -> Checkpoint:
    config = checkpoints.read_config(source, options.parts)
    if options.image_size is not None:
        config = replace(config, vision=resized(config.vision, options.image_size))
    return Checkpoint(source, config, options.parts)


def _precision(group: str, options: Options) -> str:
    """int8 alone: with photographs the ranges of activations are fixed, without they are taken as they come, where the
    target can do that."""
    target = options.target
    chosen = options.precision.get(group, target.defaults[group])
    if chosen != "int8":
        return chosen
    dynamic = "int8-dynamic" in target.precisions[group]
    fixed = group in target.calibrated and (options.calib is not None or not dynamic)
    return "int8-static" if fixed else "int8-dynamic"


def _stages(
    options: Options, main: Checkpoint | None, other: Checkpoint | None, faults: list[str]
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """(stage 2, stage 1)"""
    if main is None or (options.retrieval_ckpt is not None and other is None):
        return None, None
    if other is None:
        return (None, main) if main.config.stage == 1 else (main, None)
    if main.config.stage != 2:
        stage = main.config.stage
        faults.append(f"--ckpt {main.source} is of stage {stage}: with --retrieval-ckpt it has to be of stage 2")
    if other.config.stage != 1:
        faults.append(f"--retrieval-ckpt {other.source} is of stage {other.config.stage}: it has to be of stage 1")
    if not same_encoder(main.config, other.config):
        faults.append("the two checkpoints look through different image encoders, and a bundle has one")
    return main, other


def same_encoder(one: Blip2Config, two: Blip2Config) -> bool:
    """Whether two checkpoints see the same: the same config, or the same weights from different files."""
    if one.vision == two.vision:
        return True
    if one.vision.vit is None or replace(one.vision, weights=None) != replace(two.vision, weights=None):
        return False
    from blip2rt.modeling.streaming import read
    from blip2rt.modeling.vision import VisionEncoder

    left, right = (VisionEncoder(config.vision, streamed=True) for config in (one, two))
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(read(a).equal(read(b)) for a, b in pairs)
