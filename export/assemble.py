"""Checkpoints -> a bundle: which graphs, in which precision, verified, with tokenizers and manifest.

The order: vision, the graphs that read its features, the language model. A single graph is made in graph_exporter.py,
the language model's in language.py. Models are taken apart on the way: after its graphs are written, a model's weights
are rounded in place to verify the graphs against them.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from blip2rt.bundle import PIXELS, QFORMER, VISION, VISION_FEATURES, Bundle, ImageSpec, LlmSpec, Manifest
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.quantize import round_weights
from blip2rt.version import __version__

from . import bundle_extras, describe, language, unpack
from .checks import calibration, verify
from .graph_exporter import BLOCK, GraphExporter
from .graphs import qformer
from .graphs.trace import GraphSpec
from .options import ExportOptions, ExportPlan, LlmOptions, resolve
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
class Loaded:
    """A model, and the texts that its Q-Former reads: token_ids and text_mask (3,L); empty if it reads none."""

    model: Any
    texts: Arrays  # to verify it with
    questions: list[Arrays]  # to calibrate it with


@dataclass(frozen=True)
class Features:
    """Outputs of the image encoder: vision_features (3,N,C)."""

    want: Arrays  # of the test images, by PyTorch; empty without verification
    got: Arrays  # the same, by the graph
    calibration: list[np.ndarray]  # of photographs, by the graph, if a graph that reads features is int8-static


def export(
    options: ExportOptions, progress: Progress, plan: ExportPlan | None = None, encode: EncodeMatrix = round_to_nearest
) -> Result:
    """Write the bundle, or nothing and raise Blip2rtError.

    plan: the resolved options, if they are known already; encode: how a matrix becomes blocks of integers.
    """
    plan = resolve(options) if plan is None else plan
    with BundleWriter(options.out, overwrite=options.overwrite) as writer:
        exporter = GraphExporter(writer.folder, options.target, progress, verified=options.verify, encode=encode)
        verifier, models = exporter.verifier, _load(plan, progress)
        configs = [each.model.config for each in models]
        image = describe.image_spec(configs[0].vision)
        features = _vision(exporter, models[0].model, image, plan)
        llm = question = retrieval = None
        if plan.stage1 is not None:
            _group(exporter, "retrieval", plan.precision["retrieval"], models[-1], features)
        if plan.stage2 is not None:
            llm = _generative(exporter, models[0], plan.stage2, features, plan.precision, options.llm)
        for config in configs:
            unpack.save_config(config, writer.folder)
        if options.info.card is not None:
            shutil.copyfile(options.info.card, writer.folder / "MODEL_CARD.md")
        faults = [row.fault for row in verifier.comparisons if row.fault]
        if faults:
            raise Blip2rtError(f"the graphs deviate from PyTorch too far, no bundle was written: {'; '.join(faults)}")
        summary = verify.verdict(verifier.comparisons, options.target.precisions)
        exporter.notes += describe.size_notes(configs[0].vision, llm, options)
        if plan.stage1 is not None:
            retrieval = describe.retrieval_spec(plan.stage1, models[-1].model.temperature.item(), writer.folder)
        if plan.stage2 is not None:
            question = describe.question_spec(plan.stage2, writer.folder)
        manifest = Manifest(
            name=plan.name,
            created_by=f"blip2rt {__version__}",
            components=verifier.components,
            image=image,
            llm=llm,
            retrieval=retrieval,
            question=question,
            prompts=describe.prompts(configs[0]),
            decoding=describe.decoding(configs[0], options.info.length_penalty),
            target=options.target.name,
            sources=describe.sources(configs),
            verification=describe.verification(verifier.comparisons),
        )
        progress.line("hashing")
        manifest, left_out = bundle_extras.restore(plan, manifest, writer.folder)
        notes = (*plan.notes, *exporter.notes, *left_out)
        return Result(writer.finish(manifest), verifier.comparisons, exporter.sizes, notes, summary)


def _load(plan: ExportPlan, progress: Progress) -> list[Loaded]:
    """Load the models of stage 2 and stage 1, if they are given. The first one has the image encoder."""
    models: list[Loaded] = []
    for checkpoint in (plan.stage2, plan.stage1):
        if checkpoint is not None:
            progress.line(f"loading {checkpoint.source}")
            model = checkpoint.load(vision=not models, streamed=True)
            describe.require_tokenizers(checkpoint)  # before hours of work
            models.append(Loaded(model, *describe.qformer_texts(checkpoint)))
    return models


def vision_graph(encoder: torch.nn.Module, image: ImageSpec) -> GraphSpec:
    """The graph `vision`, before tracing."""
    example = {PIXELS: torch.zeros(2, 3, image.height, image.width)}
    return GraphSpec(VISION, encoder, example, [VISION_FEATURES], {PIXELS: {0: "B"}})


def _vision(exporter: GraphExporter, model: Any, image: ImageSpec, plan: ExportPlan) -> Features:
    """Write `vision`: pixels (B,3,h,w) -> vision_features (B,N,C), batch norms folded. The model loses its encoder."""
    encoder, model.vision = model.vision, None
    files, shown = plan.photographs[:-3], plan.photographs[-3:]
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 3, image.height, image.width)).astype(np.float32)
    inputs = {PIXELS: to_pixels(list(shown), image) if shown else noise}
    batches = partial(calibration.pixel_batches, files, image)
    outputs = exporter.export(VISION, plan.precision["vision"], [vision_graph(encoder, image)], inputs, batches)
    features = list[np.ndarray]()
    if "int8-static" in (plan.precision["qformer"], plan.precision["llm"]):
        exporter.progress.line("vision: features of photographs for calibration")
        some = islice(batches(), CALIBRATION_IMAGES // calibration.BATCH)
        features = [exporter.verifier.run(VISION, each)[VISION_FEATURES] for each in some]
    return Features(*outputs[VISION], features)


def _generative(
    exporter: GraphExporter,
    loaded: Loaded,
    checkpoint: Checkpoint,
    features: Features,
    precision: dict[str, str],
    options: LlmOptions,
) -> LlmSpec:
    """Write `qformer`: vision_features (B,N,C) -> query_output (B,Q,H), prefix_embeds (B,Q,D); and the graphs of
    language.py. The model loses its language model."""
    llm, loaded.model.llm = loaded.model.llm, None
    wants = _group(exporter, "qformer", precision["qformer"], loaded, features)

    def prefixes(seen: np.ndarray, read: Arrays) -> np.ndarray:
        """vision_features (3,N,C), the question -> prefix_embeds (3,Q,D), by the graph."""
        return exporter.verifier.run(QFORMER, {VISION_FEATURES: seen, **read})["prefix_embeds"]

    known = describe.language_model(checkpoint, llm, exporter.folder, options.max_positions)
    static = precision["llm"] == "int8-static"
    calibrated = zip(features.calibration, cycle(loaded.questions), strict=False) if static else ()
    language.write(exporter, known, precision["llm"], options, [prefixes(*each) for each in calibrated])
    if exporter.verifier.enabled:
        both = wants[QFORMER]["prefix_embeds"], prefixes(features.got[VISION_FEATURES], loaded.texts)
        language.verify_graphs(exporter, known, precision, both)
    return known.spec


def _group(exporter: GraphExporter, name: str, precision: str, loaded: Loaded, features: Features) -> dict[str, Arrays]:
    """Write the graphs of a Q-Former, and verify them. Return PyTorch's outputs.

    Those of retrieval are
    image_embed: vision_features (B,N,C) -> image_embeds (B,Q,E)
    text_embed:  token_ids (B,L), text_mask (B,L) -> text_embeds (B,E)
    itm:         vision_features (B,N,C), token_ids (B,L), text_mask (B,L) -> itm_logits (B,2)
    """
    verifier, parts = exporter.verifier, qformer.graphs(loaded.model)
    inputs = {**features.want, **loaded.texts}

    def batches() -> Iterator[Arrays]:
        for each, read in zip(features.calibration, cycle(loaded.questions), strict=False):
            yield {**read, VISION_FEATURES: each}

    outputs = exporter.export(name, precision, parts, inputs, batches)
    if precision in BITS and verifier.enabled:
        round_weights(loaded.model, BITS[precision], BLOCK)
        for part in parts:
            verifier.compare_exact(part.name, inputs, part.run(inputs))
    return {part: want for part, (want, _) in outputs.items()}
