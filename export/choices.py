"""Options of an export, checked before any work: checkpoints, precisions, photographs, files.

Knows options and configs, no weights and no graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from blip2rt.errors import Blip2rtError
from blip2rt.modeling import checkpoints
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.lavis import NO_PARTS, Parts
from blip2rt.modeling.llm import text_config
from blip2rt.modeling.vision import resized

from .graphs import compatibility, vision
from .targets import ORT, Target


@dataclass(frozen=True)
class ModelSource:
    """Which checkpoints, and what they leave out or have otherwise."""

    ckpt: str  # a folder, a LAVIS file or a hub id
    retrieval_ckpt: str | None = None
    parts: Parts = NO_PARTS  # what they leave out
    image_size: int | None = None  # pixels; position embeddings are interpolated


@dataclass(frozen=True)
class LlmOptions:
    """What is asked of the language model's graphs."""

    max_positions: int = 1024  # prefix, prompt and new tokens together
    activations: int | None = None  # bits that meet int4 weights, 8 or 16; None: by the model's size


@dataclass(frozen=True)
class About:
    """What the bundle says of itself."""

    name: str | None = None  # default: the bundle folder's
    card: Path | None = None  # copied in as MODEL_CARD.md
    length_penalty: float = 1.0  # of captions, by default


@dataclass(frozen=True)
class ExportOptions:
    """What `blip2rt-export` was asked for."""

    source: ModelSource
    out: Path
    target: Target = ORT
    precision: Mapping[str, str] = field(default_factory=dict)  # group -> precision; the target's defaults for others
    calib: Path | None = None  # a folder of photographs
    llm: LlmOptions = LlmOptions()
    about: About = About()
    overwrite: bool = False
    verify: bool = True


class Loadable(Protocol):
    """Where a model comes from."""

    @property
    def source(self) -> str: ...

    def load(self, *, vision: bool) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk or on the hub."""

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
    """What an export is made from, resolved."""

    stage2: Loadable | None
    stage1: Loadable | None
    precision: dict[str, str]  # group -> fp32, fp16, int8-static, int8-dynamic, int8w or int4
    photographs: list[Path]


def resolve(options: ExportOptions) -> Choices:
    """Read configs and find files. Raises Blip2rtError: everything that is wrong, at once."""
    faults: list[str] = []
    source, other = options.source, None
    main = _try(faults, lambda: _checkpoint(source.ckpt, source))
    if source.retrieval_ckpt is not None:
        retrieval = source.retrieval_ckpt
        other = _try(
            faults, lambda: _checkpoint(retrieval, replace(source, parts=replace(source.parts, tokenizer=None)))
        )
    files = _try(faults, lambda: [] if options.calib is None else vision.photographs(options.calib)) or []
    precision = {group: _precision(group, options) for group in options.target.defaults}
    static = [group for group, chosen in precision.items() if chosen == "int8-static"]
    if static and options.calib is None:
        instead = "fp16" if options.target.name == "trt" else "int8-dynamic"
        wanted = ", ".join(f"{group}=int8-static" for group in static)
        faults.append(f"{wanted} needs photographs to calibrate on: give --calibration FOLDER, or {instead}")
    if options.llm.activations is not None and (precision["llm"] != "int4" or options.target is not ORT):
        faults.append(
            f"--llm-activations {options.llm.activations} is of llm=int4 for the target ort, here it is "
            f"{precision['llm']} for {options.target.name}"
        )
    card = options.about.card
    if card is not None and not card.is_file():
        faults.append(f"--card {card} is no file: name one")
    stage2, stage1 = _stages(source, main, other, faults)
    if stage2 is not None and stage2.config.llm is not None:
        llm = stage2.config.llm
        config = _try(faults, lambda: text_config(llm.source))
        asked = options.target.name, options.verify, options.llm.max_positions
        wrong = None if config is None else compatibility.unsupported_reason(config, *asked)
        faults += [] if wrong is None else [f"{stage2.source}: {wrong}"]
    if faults:
        raise Blip2rtError("; ".join(faults))
    return Choices(stage2, stage1, precision, files)


def _try(faults: list[str], function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Blip2rtError as error:
        faults.append(str(error))
        return None


def _checkpoint(ckpt: str, source: ModelSource) -> Checkpoint:
    config = checkpoints.read_config(ckpt, source.parts)
    if source.image_size is not None:
        config = replace(config, vision=resized(config.vision, source.image_size))
    return Checkpoint(ckpt, config, source.parts)


def _precision(group: str, options: ExportOptions) -> str:
    """The precision of a group. int8 is static where there are photographs to calibrate on, or where the target has
    nothing else, and dynamic elsewhere."""
    target = options.target
    chosen = options.precision.get(group, target.defaults[group])
    if chosen != "int8":
        return chosen
    dynamic = "int8-dynamic" in target.precisions[group]
    fixed = group in target.calibrated and (options.calib is not None or not dynamic)
    return "int8-static" if fixed else "int8-dynamic"


def _stages(
    source: ModelSource, main: Checkpoint | None, other: Checkpoint | None, faults: list[str]
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Tell which checkpoint is stage 2 and which is stage 1."""
    if main is None or (source.retrieval_ckpt is not None and other is None):
        return None, None
    if other is None:
        return (None, main) if main.config.stage == 1 else (main, None)
    if main.config.stage != 2:
        stage = main.config.stage
        faults.append(
            f"--checkpoint {main.source} is of stage {stage}: with --retrieval-checkpoint it has to be of stage 2"
        )
    if other.config.stage != 1:
        faults.append(
            f"--retrieval-checkpoint {other.source} is of stage {other.config.stage}: it has to be of stage 1"
        )
    if not same_encoder(main.config, other.config):
        faults.append("the two checkpoints look through different image encoders, and a bundle has one")
    return main, other


def same_encoder(one: Blip2Config, two: Blip2Config) -> bool:
    """Whether two checkpoints see the same: they have one config, or the same weights from different files."""
    if one.vision == two.vision:
        return True
    if one.vision.vit is None or replace(one.vision, weights=None) != replace(two.vision, weights=None):
        return False
    from blip2rt.modeling.streaming import read
    from blip2rt.modeling.vision import VisionEncoder

    left, right = (VisionEncoder(config.vision, streamed=True) for config in (one, two))
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(read(a).equal(read(b)) for a, b in pairs)
