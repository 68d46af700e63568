"""Checkpoints -> a bundle: which graphs, in which precision, verified, with tokenizers and manifest.

The order: vision, the graphs that read its features, the language model. A single graph is made in graph_exporter.py,
the language model's in language.py. Models are taken apart on the way: after its graphs are written, a model's weights
are rounded in place to verify the graphs against them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from blip2rt.bundle import Bundle, ImageSpec, LlmSpec, Manifest, Verification
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.quantize import round_weights
from blip2rt.version import __version__

from . import bundle_extras, describe, language, unpack
from .checks import calibration, verify
from .checks.verdict import verdict
from .graph_exporter import BLOCK, GraphExporter
from .graphs import qformer, vision
from .options import ExportOptions, ExportPlan, LlmOptions, resolve
from .precision.activations import NO_RANGES
from .precision.quantizer import BITS, EncodeMatrix, round_to_nearest
from .progress import Progress

CALIBRATION_IMAGES = 24  # for the ranges of graphs after the image encoder

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """A finished bundle, and its comparison with PyTorch."""

    bundle: Bundle
    rows: list[verify.Comparison]
    sizes: dict[str, int]  # component -> bytes of its graph and weights; shared weights count for each
    notes: tuple[str, ...] = ()  # differences from the checkpoint
    verdict: str = ""  # what the comparison means


@dataclass(frozen=True)
class Features:
    """Outputs of the image encoder: vision_features (3,N,C)."""

    want: Arrays  # of the test images, by PyTorch; empty without verification
    got: Arrays  # the same, by the graph
    calibration: list[np.ndarray]  # of photographs, by the graph, if a graph that reads features is int8-static

    @property
    def inputs(self) -> Arrays:
        """Inputs to verify graphs with."""
        return self.want or {"vision_features": np.zeros(0, np.float32)}


def export(
    options: ExportOptions, progress: Progress, plan: ExportPlan | None = None, encode: EncodeMatrix = round_to_nearest
) -> Result:
    """Write the bundle, or nothing and raise Blip2rtError.

    plan: the resolved options, if they are known already; encode: how a matrix becomes blocks of integers.
    """
    plan = resolve(options) if plan is None else plan
    with BundleWriter(options.out, overwrite=options.overwrite) as writer:
        exporter = GraphExporter(writer.folder, options.target, progress, verified=options.verify, encode=encode)
        models, texts = _load(plan, progress)
        config = models[0].config
        image = describe.image_spec(config.vision)
        features = _vision(exporter, models[0], image, plan)
        llm = question = retrieval = None
        if plan.stage1 is not None:
            _group(exporter, "retrieval", plan.precision["retrieval"], models[-1], features, texts[-1])
        if plan.stage2 is not None:
            llm = _generative(exporter, models[0], plan.stage2, features, texts[0], plan.precision, options.llm)
        for model in models:
            unpack.save_config(model.config, writer.folder)
        if options.info.card is not None:
            shutil.copyfile(options.info.card, writer.folder / "MODEL_CARD.md")
        faults = [row.fault for row in exporter.comparisons if row.fault]
        if faults:
            raise Blip2rtError(f"the graphs deviate from PyTorch too far, no bundle was written: {'; '.join(faults)}")
        patch = 0 if config.vision.vit is None else config.vision.vit.patch
        positions: int | None = options.llm.max_positions
        if positions == LlmOptions().max_positions:
            positions = None  # the default is not a request
        exporter.notes += describe.size_notes(image, llm, patch, options.source.image_size, positions)
        if plan.stage1 is not None:
            retrieval = describe.retrieval_spec(plan.stage1, models[-1].temperature.item(), writer.folder)
        if plan.stage2 is not None:
            question = describe.question_spec(plan.stage2, writer.folder)
        manifest = Manifest(
            name=plan.name,
            created_by=f"blip2rt {__version__}",
            components=exporter.components,
            image=image,
            llm=llm,
            retrieval=retrieval,
            question=question,
            prompts=describe.prompts(config),
            decoding=describe.decoding(config, options.info.length_penalty),
            target=options.target.name,
            sources=describe.sources(model.config for model in models),
            verification=_verification(exporter.comparisons),
        )
        progress.line("hashing")
        manifest, left_out = bundle_extras.restore(plan, manifest, writer.folder)
        exporter.notes += left_out
        summary, notes = verdict(exporter.comparisons, options.target.precisions), (*plan.notes, *exporter.notes)
        return Result(writer.finish(manifest), exporter.comparisons, exporter.sizes, notes, summary)


def _load(plan: ExportPlan, progress: Progress) -> tuple[list[Any], list[Arrays]]:
    """Load the models of stage 2 and stage 1, if they are given, and texts for their Q-Formers. The first model has the
    image encoder."""
    models: list[Any] = []
    texts = []
    for checkpoint in (plan.stage2, plan.stage1):
        if checkpoint is not None:
            progress.line(f"loading {checkpoint.source}")
            models.append(checkpoint.load(vision=not models, streamed=True))
            describe.require_tokenizers(checkpoint)  # before hours of work
            texts.append(describe.qformer_texts(checkpoint))
    return models, texts


def _vision(exporter: GraphExporter, model: Any, image: ImageSpec, plan: ExportPlan) -> Features:
    """Write `vision`: pixels (B,3,h,w) -> vision_features (B,N,C). The model loses its encoder."""
    encoder, model.vision = model.vision, None
    part, precision = vision.vision_graph(encoder, image), plan.precision["vision"]
    files, shown = plan.photographs[:-3], plan.photographs[-3:]
    noise = np.random.default_rng().uniform(-1, 1, (3, 3, image.height, image.width)).astype(np.float32)
    inputs = {"pixels": to_pixels(list(shown), image) if shown else noise}
    want, graph, seen = exporter.reference(part, inputs), exporter.trace(part), NO_RANGES
    if precision == "int8-static":
        exporter.progress.line(f"vision: calibrating int8 on {len(files)} photographs")
        seen = calibration.batch_ranges(graph, exporter.folder, "vision", vision.pixel_batches(files, image))
    with exporter.group("vision", precision) as group:
        exporter.write("vision", graph, group, seen)
    got, features = exporter.compare("vision", inputs, want), list[np.ndarray]()
    if plan.calibrates_text:
        exporter.progress.line("vision: features of photographs for calibration")
        some = vision.pixel_batches(files[:CALIBRATION_IMAGES], image)
        features = [exporter.run("vision", each)["vision_features"] for each in some]
    return Features(want, got, features)


def _generative(
    exporter: GraphExporter,
    model: Any,
    checkpoint: Checkpoint,
    features: Features,
    texts: Arrays,
    precision: dict[str, str],
    options: LlmOptions,
) -> LlmSpec:
    """Write `qformer`: vision_features (B,N,C) -> query_output (B,Q,H), prefix_embeds (B,Q,D); and the graphs of
    language.py. The model loses its language model."""
    assert checkpoint.language_model is not None
    llm, model.llm = model.llm, None
    questions = describe.calibration_texts(checkpoint)
    wants = _group(exporter, "qformer", precision["qformer"], model, features, texts, questions)

    def prefixes(seen: np.ndarray, read: Arrays) -> np.ndarray:
        """vision_features (3,N,C), the question -> prefix_embeds (3,Q,D), by the graph."""
        return exporter.run("qformer", {"vision_features": seen, **read})["prefix_embeds"]

    known = language.read(checkpoint, llm, exporter.folder, options.max_positions)
    calibrated = zip(features.calibration, cycle(questions), strict=False) if precision["llm"] == "int8-static" else ()
    language.write(exporter, known, precision["llm"], options, [prefixes(*each) for each in calibrated])
    if exporter.verified:
        both = wants["qformer"]["prefix_embeds"], prefixes(features.got["vision_features"], texts)
        language.verify_graphs(exporter, known, precision, both)
    return known.spec


_PARTS = {"qformer": qformer.generative_graphs, "retrieval": qformer.retrieval_graphs}


def _group(
    exporter: GraphExporter,
    name: str,
    precision: str,
    model: Any,
    features: Features,
    text: Arrays,
    others: Sequence[Arrays] = (),
) -> dict[str, Arrays]:
    """Write the graphs of a Q-Former, calibrated with `others` and verified with `text`. Return PyTorch's outputs.

    Those of retrieval are
    image_embed: vision_features (B,N,C) -> image_embeds (B,Q,E)
    text_embed:  token_ids (B,L), text_mask (B,L) -> text_embeds (B,E)
    itm:         vision_features (B,N,C), token_ids (B,L), text_mask (B,L) -> itm_logits (B,2)
    """
    inputs = {**features.inputs, **text}
    parts = _PARTS[name](model)
    wants = {part.name: exporter.reference(part, inputs) for part in parts}
    with exporter.group(name, precision) as group:
        for part in parts:
            graph, seen = exporter.trace(part), NO_RANGES
            if precision == "int8-static":
                exporter.progress.line(f"{part.name}: calibrating int8")
                pairs = zip(features.calibration, cycle(others), strict=False)
                batches = ({**read, "vision_features": each} for each, read in pairs)
                seen = calibration.batch_ranges(graph, exporter.folder, part.name, batches)
            exporter.write(part.name, graph, group, seen)
    for part in parts:
        exporter.compare(part.name, inputs, wants[part.name])
    if precision in BITS and exporter.verified:
        round_weights(model, BITS[precision], BLOCK)
        for part in parts:
            exporter.compare_exact(part.name, inputs, part.run(inputs))
    return wants


def _verification(rows: Sequence[verify.Comparison]) -> tuple[Verification, ...]:
    """The comparisons for the manifest."""
    return tuple(
        Verification(row.component, row.precision, row.max_abs_error, row.cosine, row.agreement)
        for row in rows
        if row.against == verify.PYTORCH
    )
