"""Checkpoints -> a bundle: which graphs, in which precision, verified, with tokenizers and manifest.

Knows the order of things; tracing, quantizing, comparing and writing are done elsewhere. Models are taken apart as it
goes on: after its graphs are written, a model's weights are rounded in place to verify the graphs against them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from blip2rt.bundle import Bundle, Component, ImageSpec, Manifest, Source, Verification
from blip2rt.bundle.writer import BundleWriter
from blip2rt.errors import Blip2rtError
from blip2rt.modeling import streaming
from blip2rt.modeling.quantize import round_weights

from . import describe, targets, unpack
from .checks import ranges as calibrate
from .checks import verify
from .choices import Choices, Options, resolve
from .graphs import llm, qformer, t5, trace, vision
from .precision import weights
from .progress import Progress

BLOCK = 64  # of the Q-Former's weights; the LLM's is the checkpoint's
NO_RANGES: weights.Ranges = {}
CALIBRATED = 24  # photographs that ranges behind the image encoder are taken from
FINER_BELOW = 1_000_000_000  # parameters of an LLM whose int4 weights meet activations of 16 bits: small ones need it
OWN_LIMIT = 500_000_000  # parameters of an LLM up to which its graph is also compared with its own rounded weights


@dataclass(frozen=True)
class Result:
    bundle: Bundle
    rows: list[verify.Row]
    sizes: dict[str, int]  # component -> bytes of its graph and weights; shared weights count for each


def export(
    options: Options, progress: Progress, choices: Choices | None = None, encode: weights.Encode = weights.nearest
) -> Result:
    """Write the bundle, or nothing and raise Blip2rtError.

    choices: what the options say, where that is known already; encode: how a matrix becomes blocks of integers.
    """
    choices = resolve(options) if choices is None else choices
    with BundleWriter(options.out, overwrite=options.overwrite) as writer:
        work = _Work(writer.folder, choices, options, progress, encode)
        models: list[Any] = []
        for checkpoint in (choices.stage2, choices.stage1):
            if checkpoint is not None:
                progress.line(f"loading {checkpoint.source}")
                models.append(checkpoint.load(vision=not models))
        model2 = models[0] if choices.stage2 else None
        model1 = models[-1] if choices.stage1 else None
        image = describe.image_spec(models[0].config.vision)
        encoder, models[0].vision = models[0].vision, None
        features = work.vision(encoder, image)
        del encoder
        retrieval = work.retrieval(model1, features) if model1 is not None else None
        language = work.generative(model2, features) if model2 is not None else None
        for model in models:
            unpack.save_config(model.config, writer.folder)
        if options.card is not None:
            shutil.copyfile(options.card, writer.folder / "MODEL_CARD.md")
        faults = [row.fault for row in work.rows if row.fault]
        if faults:
            raise Blip2rtError(f"the graphs deviate from PyTorch too far, no bundle was written: {'; '.join(faults)}")
        manifest = Manifest(
            name=options.name or options.out.resolve().name,
            created_by=describe.created_by(),
            components=work.components,
            image=image,
            llm=language,
            retrieval=retrieval,
            question=describe.question_spec(model2, writer.folder) if model2 is not None else None,
            prompts=describe.prompts(model2),
            decoding=describe.decoding(options.length_penalty) if model2 is not None else {},
            target=options.target.name,
            sources=_sources(models),
            verification=tuple(
                Verification(row.component, row.precision, row.max_abs_error, row.cosine, row.agreement)
                for row in work.rows if row.against == verify.PYTORCH
            ),
        )  # fmt: skip
        progress.line("hashing")
        return Result(writer.finish(manifest), work.rows, work.sizes)


class _Work:
    """Writes the graphs of each group into the bundle's folder, and keeps what the manifest and the table need."""

    def __init__(
        self, folder: Path, choices: Choices, options: Options, progress: Progress, encode: weights.Encode
    ) -> None:
        self.folder, self.options, self.progress, self.encode = folder, options, progress, encode
        self.precision, self.files, self.target = choices.precision, choices.photographs, options.target
        self.calibration: list[np.ndarray] = []  # vision_features of photographs, in batches of three
        self.seen: dict[str, np.ndarray] = {}  # what the graphs made of the images that they are verified with
        self.question: dict[str, np.ndarray] = {}  # that the Q-Former reads with three images, where it does
        self.components: dict[str, Component] = {}
        self.rows: list[verify.Row] = []
        self.sizes: dict[str, int] = {}

    def vision(self, encoder: Any, image: ImageSpec) -> np.ndarray:
        """Returns vision_features (B,N,C) of a few images, to verify the graphs that come after with."""
        part, precision = vision.vision_part(encoder, image), self.precision["vision"]
        shape = (3, 3, image.height, image.width)
        noise = np.random.default_rng().uniform(-1, 1, shape).astype(np.float32)
        inputs = {"pixels": vision.pixels(self.files[:3], image) if self.files else noise}
        self.progress.line("vision: tracing")
        want = self._reference(part, inputs)
        model, ranges = trace.trace(part, self.target.opset), NO_RANGES
        signature = trace.describe(model.graph.inputs), trace.describe(model.graph.outputs)
        if precision == "int8-static":
            self.progress.line(f"vision: calibrating int8 on {len(self.files)} images")
            if self.target is targets.ORT and vision.is_convolutional(model):
                model = vision.quantize_int8(model, self.folder, self.files, image)
            else:
                ranges = self._ranges("vision", model, self._photographs(image, self.files))
        data = trace.DataFile(self.folder, "vision.data")
        self._write("vision", model, precision, data, signature=signature, ranges=ranges)
        data.close()
        if "int8-static" in (self.precision["qformer"], self.precision["llm"]):
            self.progress.line("vision: features of photographs to calibrate on")
            seen = self._photographs(image, self.files[:CALIBRATED])
            self.calibration = [self._run("vision", each)["vision_features"] for each in seen]
        self._judge("vision", precision, inputs, want)
        return want.get("vision_features", np.zeros(0, np.float32))

    def _ranges(self, name: str, model: ir.Model, batches: Iterable[verify.Arrays]) -> weights.Ranges:
        return calibrate.of_batches(model, self.folder, name, batches, self.target.operands)

    def _photographs(self, image: ImageSpec, files: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(files), 3):
            yield {"pixels": vision.pixels(files[start : start + 3], image)}

    def _run(self, name: str, inputs: verify.Arrays) -> dict[str, np.ndarray]:
        """Outputs of a graph that is written."""
        return verify.run(self.folder / f"{name}.onnx", inputs, self.target.open)

    def _reference(self, part: trace.Part, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What PyTorch answers, where that is to be compared."""
        return part.run(inputs) if self.options.verify else {}

    def retrieval(self, model: Any, features: np.ndarray) -> Any:
        text = describe.example_texts(model)
        self._group("retrieval", model, qformer.retrieval_parts(model), {"vision_features": features, **text})
        return describe.retrieval_spec(model, self.folder)

    def generative(self, model: Any, features: np.ndarray) -> Any:
        language, model.llm = model.llm, None
        parts = qformer.generative_parts(model)
        if model.config.question_input:
            self.question = describe.example_texts(model)
        inputs = {"vision_features": features, **self.question}
        prefixes = self._reference(parts[0], inputs).get("prefix_embeds")
        self._group("qformer", model, parts, inputs)
        if prefixes is None:
            return self._llm(model, language, [])
        return self._llm(model, language, [prefixes, self._prefixes(self.seen["vision_features"])])

    def _prefixes(self, features: np.ndarray) -> np.ndarray:
        """prefix_embeds (3,Q,D) by the graph."""
        return self._run("qformer", {"vision_features": features, **self.question})["prefix_embeds"]

    def _group(self, group: str, model: Any, parts: Sequence[trace.Part], inputs: dict[str, np.ndarray]) -> None:
        """Graphs that share one data file."""
        precision = self.precision[group]
        wants = {part.name: self._reference(part, inputs) for part in parts}
        data = trace.DataFile(self.folder, f"{group}.data")
        for part in parts:
            self.progress.line(f"{part.name}: tracing")
            graph, ranges = trace.trace(part, self.target.opset), NO_RANGES
            if precision == "int8-static":
                self.progress.line(f"{part.name}: calibrating int8")
                batches = ({**inputs, "vision_features": seen} for seen in self.calibration if len(seen) == 3)
                ranges = self._ranges(part.name, graph, batches)
            self._write(part.name, graph, precision, data, ranges=ranges)
        data.close()
        for part in parts:
            self._judge(part.name, precision, inputs, wants[part.name])
        if precision in weights.BITS and self.options.verify:
            round_weights(model, weights.BITS[precision], BLOCK)
            for part in parts:
                self._judge(part.name, precision, inputs, part.run(inputs), verify.OWN)

    def _llm(self, model: Any, language: Any, prefixes: Sequence[np.ndarray]) -> Any:
        """prefixes: what PyTorch makes of the images, and what the graphs do; nothing where nothing is verified."""
        config, precision = model.config.llm, self.precision["llm"]
        if config.bits and config.bits != weights.BITS.get(precision):
            self.progress.line(f"llm: trained against {config.bits}-bit weights, exported as {precision}")
        spec, prompts = describe.llm_spec(model, language, self.folder, self.options.max_positions)
        self.progress.line("llm: tracing")
        traced = self.target.llm_graphs(language, self.options.max_positions)
        ranges: dict[str, weights.Ranges] = {}
        if precision == "int8-static":
            kept = dict(traced)
            ranges = self._llm_ranges(kept, language, prompts, spec.decoder_start_token_id)
            traced = iter(kept.items())
        size = _parameters(language)
        finer = (self.options.llm_activations or (16 if size < FINER_BELOW else 8)) == 16
        data = trace.DataFile(self.folder, "llm.data")
        for name, graph in traced:
            seen = ranges.get(name, NO_RANGES)
            self._write(name, graph, precision, data, block=config.block, ranges=seen, finer=finer)
        data.close()
        if prefixes:
            self.progress.line("llm: verifying")
            with streaming.streamed(language):
                rows, whole = (describe.llm_inputs(language, prompts, each) for each in prefixes)
            self._judge_llm(language, rows, whole, spec.decoder_start_token_id, config.block)
        return spec

    def _llm_ranges(
        self, traced: dict[str, ir.Model], language: Any, prompts: list[list[int]], start: int | None
    ) -> dict[str, weights.Ranges]:
        """Graph -> ranges, from the photographs' prefixes and what the language model says to them."""
        self.progress.line("llm: calibrating int8")
        prefixes = np.concatenate([self._prefixes(seen) for seen in self.calibration if len(seen) == 3])
        with streaming.streamed(language):
            rows = describe.llm_inputs(language, (prompts * len(prefixes))[: len(prefixes)], prefixes)
        return calibrate.of_language(traced, self.folder, rows, start, self.target.operands)

    def _judge_llm(
        self, language: Any, rows: list[np.ndarray], whole: list[np.ndarray], start: int | None, block: int
    ) -> None:
        """rows: [prefix | prompt] as PyTorch has them, for the llm alone; whole: as the graphs before it give them."""
        precision, chosen = self.precision["llm"], [self.precision[each] for each in ("vision", "qformer", "llm")]
        encoder = None if start is None else self.folder / "encoder.onnx"
        own = verify.LlmGraphs(self.folder / "llm.onnx", self.folder / "embed.onnx", encoder, start, self.target.open)
        tokens, got = own.run([*rows, *whole])
        want = verify.llm_logits(language, [*rows, *rows], tokens, start)
        parts = ("llm", precision, slice(len(rows))), (verify.WHOLE, "/".join(chosen), slice(len(rows), None))
        for name, used, part in parts:
            agreement = float((got[part].argmax(-1) == want[part].argmax(-1)).mean())
            compared = {"logits": got[part]}, {"logits": want[part]}
            self.rows.append(verify.judge(name, used, verify.PYTORCH, *compared, agreement))
        tokens = tokens[: len(rows)]
        embed, ids = llm.embed_part(language), {"token_ids": tokens.astype(np.int64)}
        self._judge("embed", precision, ids, embed.run(ids))
        size = _parameters(language)
        if self.target is targets.TRT or precision not in weights.BITS or size > OWN_LIMIT:
            return
        t5.round_weights(language, weights.BITS[precision], block)
        exact_encoder = contextlib.nullcontext() if encoder is None else verify.exact(encoder)
        with verify.exact(own.llm) as exact_llm, exact_encoder as seen:
            copies = verify.LlmGraphs(exact_llm, own.embed, seen, start)
            _, got = copies.run(rows, tokens)
        want = verify.llm_logits(language, rows, tokens, start)
        self.rows.append(verify.judge("llm", precision, verify.OWN, {"logits": got}, {"logits": want}))
        self._judge("embed", precision, ids, embed.run(ids), verify.OWN)

    def _write(
        self, name: str, model: ir.Model, precision: str, data: trace.DataFile, block: int = BLOCK,
        signature: Any = None, ranges: weights.Ranges = NO_RANGES, finer: bool = False,
    ) -> None:  # fmt: skip
        self.progress.line(f"{name}: writing in {precision}")

        def show(done: int, total: int) -> None:
            self.progress.bar(name, done, total)

        self.target.apply(model, precision, block, data.keep, show, self.encode, ranges)
        if finer:
            weights.finer_activations(model)
        inputs, outputs = signature or (trace.describe(model.graph.inputs), trace.describe(model.graph.outputs))
        path = self.folder / f"{name}.onnx"
        self.sizes[name] = trace.save(model, path, data)
        self.components[name] = Component(path.name, precision, inputs, outputs)

    def _judge(self, name: str, precision: str, inputs: Any, want: Any, against: str = verify.PYTORCH) -> None:
        if not self.options.verify:
            return
        graph = self.folder / f"{name}.onnx"
        if against == verify.OWN:
            with verify.exact(graph) as copy:
                got = verify.run(copy, inputs)
        else:
            self.progress.line(f"{name}: verifying")
            got = self._run(name, inputs)
            self.seen |= got
        self.rows.append(verify.judge(name, precision, against, got, want))


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _sources(models: Any) -> tuple[Source, ...]:
    """Every part once, as the checkpoints name them."""
    found = {tuple(sorted(source.items())): source for model in models for source in model.config.sources}
    keys = ("part", "name", "licence", "origin")
    return tuple(Source(*(str(source.get(key, "")) for key in keys)) for source in found.values())
