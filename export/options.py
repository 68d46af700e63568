"""Options of an export, resolved and checked before any work: checkpoints, precisions, photographs, files.

Does not know about graphs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from blip2rt.errors import Blip2rtError, collected
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.sources import NO_PARTS, ExternalParts

from .checks.calibration import list_photographs
from .graphs import compatibility
from .targets import ORT, Target


@dataclass(frozen=True)
class ModelSource:
    """Which checkpoints, the parts that they do not contain, and the size of their images."""

    checkpoint: str  # a folder, a LAVIS file or a hub id
    retrieval_checkpoint: str | None = None
    parts: ExternalParts = NO_PARTS
    image_size: int | None = None  # pixels; position embeddings are interpolated


@dataclass(frozen=True)
class LlmOptions:
    """Options of the language model's graphs."""

    max_positions: int = 1024  # prefix, prompt and new tokens together
    activations: int | None = None  # bits of activations that int4 weights multiply, 8 or 16; None: by the model's size


@dataclass(frozen=True)
class BundleInfo:
    """Metadata and defaults of the bundle."""

    name: str | None = None  # default: the bundle folder's
    card: Path | None = None  # copied in as MODEL_CARD.md
    length_penalty: float = 1.0  # of captions, by default


@dataclass(frozen=True)
class ExportOptions:
    """The options of `blip2rt-export`."""

    source: ModelSource
    out: Path
    target: Target = ORT
    precision: Mapping[str, str] = field(default_factory=dict)  # group -> precision; others have the target's default
    calibration: Path | None = None  # a folder of photographs
    llm: LlmOptions = LlmOptions()
    info: BundleInfo = BundleInfo()
    overwrite: bool = False
    verify: bool = True


@dataclass(frozen=True)
class ExportPlan:
    """Resolved options: what an export is made from."""

    stage2: Checkpoint | None
    stage1: Checkpoint | None
    precision: dict[str, str]  # group -> fp32, fp16, int8-static, int8-dynamic, int8w or int4
    name: str  # of the bundle
    photographs: Sequence[Path] = ()  # to calibrate int8-static on, and three to verify it with
    notes: tuple[str, ...] = ()  # what the bundle will lack, and what was assumed


def resolve(options: ExportOptions) -> ExportPlan:
    """Open the checkpoints and find the files. Raises Blip2rtError, which lists all faults."""
    faults: list[str] = []
    precision = {group: _precision(group, options) for group in options.target.defaults}
    stage2, stage1 = _open(options.source, faults)
    photographs: list[Path] = []
    static = [f"{group}=int8" for group, chosen in precision.items() if chosen == "int8-static"]
    if static and options.calibration is None:
        faults.append(f"{', '.join(static)} needs photographs to calibrate on: give --calibration FOLDER, or fp16")
    elif options.calibration is not None and not static:
        faults.append("--calibration is for --target trt with --precision int8: give both, or leave it out")
    elif options.calibration is not None:
        with collected(faults):
            photographs = list_photographs(options.calibration)
    if options.llm.activations is not None and (precision["llm"] != "int4" or options.target is not ORT):
        faults.append(
            f"--llm-activations {options.llm.activations} applies to llm=int4 for the target ort, but llm is "
            f"{precision['llm']} for {options.target.name}"
        )
    if stage2 is not None and stage2.language_model is not None:
        with collected(faults):
            config = stage2.language_model.text_config
            fault = compatibility.unsupported_reason(config, options.verify, options.llm.max_positions)
            faults += [] if fault is None else [f"{stage2.source}: {fault}"]
    if faults:
        raise Blip2rtError("; ".join(faults))
    name = options.info.name or options.out.resolve().name
    return ExportPlan(stage2, stage1, precision, name, photographs, tuple(_notes(stage2, stage1)))


def _notes(stage2: Checkpoint | None, stage1: Checkpoint | None) -> Iterator[str]:
    """What the bundle will lack, and what is assumed of the checkpoints."""
    if stage1 is None:
        yield "this bundle cannot match or embed: --retrieval-checkpoint adds a checkpoint of stage 1 that can"
    elif stage2 is None:
        yield "this bundle cannot caption or answer: that takes a checkpoint of stage 2"
    for checkpoint in (stage2, stage1):
        if checkpoint is not None and checkpoint.assumption:
            yield checkpoint.assumption


def _precision(group: str, options: ExportOptions) -> str:
    """The precision of a group; int8 is int8-dynamic for the target ort, else int8-static."""
    chosen = options.precision.get(group, options.target.defaults[group])
    return {"int8": "int8-dynamic" if options.target is ORT else "int8-static"}.get(chosen, chosen)


def _open(source: ModelSource, faults: list[str]) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The checkpoints of stage 2 and of stage 1."""
    opened: list[Checkpoint | None] = []
    given = [(source.checkpoint, source.parts)]
    if source.retrieval_checkpoint is not None:  # --tokenizer is the language model's
        given.append((source.retrieval_checkpoint, replace(source.parts, tokenizer=None)))
    for place, parts in given:
        opened.append(None)
        with collected(faults):
            opened[-1] = Checkpoint(place, parts).with_image_size(source.image_size)
    main, other = (*opened, None)[:2]
    if len(given) == 1:
        return (None, main) if main is not None and main.config.stage == 1 else (main, None)
    if main is None or other is None:
        return None, None
    if main.config.stage != 2:
        stage = main.config.stage
        faults.append(f"--checkpoint {main.source} is of stage {stage}: with --retrieval-checkpoint, give stage 2")
    if other.config.stage != 1:
        faults.append(f"--retrieval-checkpoint {other.source} is of stage {other.config.stage}: give stage 1")
    if not same_encoder(main.config, other.config):
        faults.append("the two checkpoints have different image encoders, but a bundle has one")
    return main, other


def same_encoder(one: Blip2Config, two: Blip2Config) -> bool:
    """Whether two checkpoints have the same encoder: one config, or the same weights from different files."""
    if one.vision == two.vision:
        return True
    if one.vision.vit is None or replace(one.vision, weights=None) != replace(two.vision, weights=None):
        return False
    from blip2rt.modeling.streaming import read
    from blip2rt.modeling.vision import VisionEncoder

    left, right = (VisionEncoder(config.vision, streamed=True) for config in (one, two))
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(read(a).equal(read(b)) for a, b in pairs)
