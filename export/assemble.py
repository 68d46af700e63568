"""Checkpoints -> a bundle: which graphs, in which precision, verified, with tokenizers and manifest.

Knows the order of things: vision, then what reads its features, then the language model. A graph is made in
graph_exporter.py, the language model's in language.py. Models are taken apart on the way: after its graphs are written,
a model's weights are rounded in place to verify the graphs against them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt.bundle import Bundle, ImageSpec, LlmSpec, Manifest, RetrievalSpec, Verification
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.quantize import round_weights
from blip2rt.modeling.vision import VisionConfig

from . import describe, language, targets, unpack
from .checks import verify
from .checks.generation_config import generation_notes
from .choices import Choices, ExportOptions, LlmOptions, resolve
from .graph_exporter import BLOCK, GraphExporter
from .graphs import qformer, trace, vision
from .precision.activations import NO_RANGES
from .precision.quantizer import BITS, EncodeMatrix, round_to_nearest
from .progress import Progress

CALIBRATED = 24  # photographs that ranges behind the image encoder are taken from

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """A bundle that is written, and what the comparisons with PyTorch said."""

    bundle: Bundle
    rows: list[verify.Comparison]
    sizes: dict[str, int]  # component -> bytes of its graph and weights; shared weights count for each
    notes: tuple[str, ...] = ()  # what is not as the checkpoint has it


@dataclass(frozen=True)
class Features:
    """What the image encoder makes of images: vision_features (3,N,C)."""

    want: Arrays  # of the images to verify with, by PyTorch; nothing where graphs are not verified
    got: Arrays  # the same, by the graph
    calibration: list[np.ndarray]  # of other photographs, where a graph that reads features is int8-static

    @property
    def inputs(self) -> Arrays:
        """What graphs that read features are verified with."""
        return self.want or {"vision_features": np.zeros(0, np.float32)}

    @property
    def batches(self) -> Iterator[np.ndarray]:
        """The batches of the calibration that are whole."""
        return (each for each in self.calibration if len(each) == 3)


def export(
    options: ExportOptions, progress: Progress, choices: Choices | None = None, encode: EncodeMatrix = round_to_nearest
) -> Result:
    """Write the bundle, or nothing and raise Blip2rtError.

    choices: what the options say, where that is known already; encode: how a matrix becomes blocks of integers.
    """
    choices = resolve(options) if choices is None else choices
    with BundleWriter(options.out, overwrite=options.overwrite) as writer:
        exporter = GraphExporter(writer.folder, options.target, progress, verified=options.verify, encode=encode)
        models = _load(choices, progress)
        image = describe.image_spec(models[0].config.vision)
        features = _vision(exporter, models[0], image, choices)
        retrieval = _retrieval(exporter, models[-1], features, choices) if choices.stage1 else None
        llm = _generative(exporter, models[0], features, choices, options.llm) if choices.stage2 else None
        for model in models:
            unpack.save_config(model.config, writer.folder)
        if options.about.card is not None:
            shutil.copyfile(options.about.card, writer.folder / "MODEL_CARD.md")
        faults = [row.fault for row in exporter.comparisons if row.fault]
        if faults:
            raise Blip2rtError(f"the graphs deviate from PyTorch too far, no bundle was written: {'; '.join(faults)}")
        exporter.notes += _sizes_told(options, image, llm, models[0].config.vision)
        generative = models[0] if choices.stage2 else None
        manifest = Manifest(
            name=options.about.name or options.out.resolve().name,
            created_by=describe.created_by(),
            components=exporter.components,
            image=image,
            llm=llm,
            retrieval=retrieval,
            question=describe.question_spec(generative, writer.folder) if generative is not None else None,
            prompts=describe.prompts(generative),
            decoding=describe.decoding(options.about.length_penalty) if generative is not None else {},
            target=options.target.name,
            sources=describe.sources(models),
            verification=_verification(exporter.comparisons),
        )
        progress.line("hashing")
        return Result(writer.finish(manifest), exporter.comparisons, exporter.sizes, tuple(exporter.notes))


def _load(choices: Choices, progress: Progress) -> list[Any]:
    """Load the models of stage 2 and stage 1, those that were asked for. The first has the image encoder."""
    models: list[Any] = []
    for checkpoint in (choices.stage2, choices.stage1):
        if checkpoint is not None:
            progress.line(f"loading {checkpoint.source}")
            models.append(checkpoint.load(vision=not models))
            describe.require_tokenizers(models[-1].config)  # before hours of work
    return models


def _vision(exporter: GraphExporter, model: Any, image: ImageSpec, choices: Choices) -> Features:
    """Write `vision`: pixels (B,3,h,w) -> vision_features (B,N,C). The model loses its encoder."""
    encoder, model.vision = model.vision, None
    part, precision = vision.vision_graph(encoder, image), choices.precision["vision"]
    files, shown = held_out(choices.photographs)
    noise = np.random.default_rng().uniform(-1, 1, (3, 3, image.height, image.width)).astype(np.float32)
    inputs = {"pixels": vision.pixels(shown, image) if shown else noise}
    want = exporter.reference(part, inputs)
    graph, seen = exporter.trace(part), NO_RANGES
    signature = trace.signature(graph)
    if precision == "int8-static":
        exporter.progress.line(f"vision: calibrating int8 on {len(files)} images")
        if exporter.target is targets.ORT and vision.is_convolutional(graph):
            graph = vision.quantize_int8(graph, exporter.folder, files, image)
        else:
            seen = exporter.calibrate("vision", graph, _photographs(files, image))
    with exporter.group("vision", precision) as group:
        exporter.write("vision", graph, group, seen, signature)
    calibration: list[np.ndarray] = []
    if "int8-static" in (choices.precision["qformer"], choices.precision["llm"]):
        exporter.progress.line("vision: features of photographs to calibrate on")
        batches = _photographs(files[:CALIBRATED], image)
        calibration = [exporter.run("vision", each)["vision_features"] for each in batches]
    return Features(want, exporter.compare("vision", inputs, want), calibration)


def held_out(photographs: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """The photographs that ranges are taken from, and three others that graphs are verified with; none of either where
    there are none. There are enough, as their folder has been checked."""
    return photographs[:-3], photographs[-3:]


def _photographs(files: Sequence[Path], image: ImageSpec) -> Iterator[Arrays]:
    """Read photographs as batches of pixels (3,3,h,w); the last batch may be smaller."""
    for start in range(0, len(files), 3):
        yield {"pixels": vision.pixels(files[start : start + 3], image)}


def _retrieval(exporter: GraphExporter, model: Any, features: Features, choices: Choices) -> RetrievalSpec:
    """Write three graphs.

    image_embed: vision_features (B,N,C) -> image_embeds (B,Q,E)
    text_embed:  token_ids (B,L), text_mask (B,L) -> text_embeds (B,E)
    itm:         vision_features (B,N,C), token_ids (B,L), text_mask (B,L) -> itm_logits (B,2)
    """
    _group(exporter, "retrieval", choices.precision["retrieval"], model, features, describe.example_texts(model))
    return describe.retrieval_spec(model, exporter.folder)


def _generative(
    exporter: GraphExporter, model: Any, features: Features, choices: Choices, options: LlmOptions
) -> LlmSpec:
    """Write `qformer`: vision_features (B,N,C) -> query_output (B,Q,H), prefix_embeds (B,Q,D); and what language.py
    makes. The model loses its language model."""
    llm, model.llm = model.llm, None
    precision = choices.precision
    question: Arrays = {}
    others: list[Arrays] = [{}]
    if model.config.question_input:
        question = describe.example_texts(model)
        if "int8-static" in (precision["qformer"], precision["llm"]):
            [question], others = (describe.example_questions(model, calibrating) for calibrating in (False, True))
    wants = _group(exporter, "qformer", precision["qformer"], model, features, question, others)

    def prefixes(seen: np.ndarray, read: Arrays) -> np.ndarray:
        """vision_features (3,N,C), the question -> prefix_embeds (3,Q,D), by the graph."""
        return exporter.run("qformer", {"vision_features": seen, **read})["prefix_embeds"]

    known = language.read(model, llm, exporter.folder, options.max_positions)
    exporter.notes += generation_notes(llm, model.config.llm.source)
    static = precision["llm"] == "int8-static"
    batches = zip(features.batches, cycle(others), strict=False) if static else ()
    photographs = [prefixes(*each) for each in batches]
    language.write(exporter, known, precision["llm"], options, np.concatenate(photographs) if static else None)
    if exporter.verified:
        both = wants["qformer"]["prefix_embeds"], prefixes(features.got["vision_features"], question)
        language.verify_graphs(exporter, known, precision, both)
    return known.spec


_PARTS = {"qformer": qformer.generative_graphs, "retrieval": qformer.retrieval_graphs}


def _group(
    exporter: GraphExporter, name: str, precision: str, model: Any, features: Features, text: Arrays,
    others: Sequence[Arrays] = (),
) -> dict[str, Arrays]:  # fmt: skip
    """Write the graphs of a Q-Former, and judge them with `text`. Return PyTorch's outputs of each.

    others: texts that ranges are taken with.
    """
    parts, inputs = _PARTS[name](model), {**features.inputs, **text}
    wants = {part.name: exporter.reference(part, inputs) for part in parts}
    with exporter.group(name, precision) as group:
        for part in parts:
            graph, seen = exporter.trace(part), NO_RANGES
            if precision == "int8-static":
                exporter.progress.line(f"{part.name}: calibrating int8")
                pairs = zip(features.batches, cycle(others), strict=False)
                batches = ({**each, "vision_features": seen_features} for seen_features, each in pairs)
                seen = exporter.calibrate(part.name, graph, batches)
            exporter.write(part.name, graph, group, seen)
    for part in parts:
        exporter.compare(part.name, inputs, wants[part.name])
    if precision in BITS and exporter.verified:
        round_weights(model, BITS[precision], BLOCK)
        for part in parts:
            exporter.compare_exact(part.name, inputs, part.run(inputs))
    return wants


def _sizes_told(options: ExportOptions, image: ImageSpec, llm: LlmSpec | None, config: VisionConfig) -> list[str]:
    """What became of sizes that were asked for and that the model has not."""
    notes, asked = [], options.llm.max_positions
    if llm is not None and llm.max_positions < asked and asked != LlmOptions().max_positions:
        notes.append(f"--max-positions is {asked:,}, and the language model and the bundle have {llm.max_positions:,}")
    patch = 0 if config.vit is None else config.vit.patch
    if options.source.image_size is not None and patch and image.height % patch:
        least = image.height - image.height % patch
        notes.append(
            f"--image-size {image.height} is no multiple of the patch of {patch}: the last {image.height - least} rows "
            f"and columns are not seen; give {least} or {least + patch}"
        )
    return notes


def _verification(rows: Sequence[verify.Comparison]) -> tuple[Verification, ...]:
    """What the manifest keeps of the comparisons."""
    return tuple(
        Verification(row.component, row.precision, row.max_abs_error, row.cosine, row.agreement)
        for row in rows
        if row.against == verify.PYTORCH
    )
