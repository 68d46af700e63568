"""Checkpoints -> a bundle: which graphs, in which precision, verified, with tokenizers and manifest.

Knows the order of things; tracing, quantizing, comparing and writing are done elsewhere. Models are taken apart as it
goes on: after its graphs are written, a model's weights are rounded in place to verify the graphs against them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError

from blip2rt.bundle import Bundle, BundleWriter, Component, ImageSpec, Manifest, Source, Verification
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoints import load_model, read_config
from blip2rt.modeling.quantize import round_weights

from . import describe, graphs, llm, qformer, quantize, verify, vision

BLOCK = 64  # of the Q-Former's weights; the LLM's is the checkpoint's
GROUPS = ("vision", "qformer", "llm", "retrieval")
PRECISIONS: dict[str, tuple[str, ...]] = {
    "vision": ("fp32", "fp16", "int8w", "int8"),
    **dict.fromkeys(GROUPS[1:], ("fp32", "fp16", "int8w", "int4")),
}
DEFAULTS = {"vision": "int8w", "qformer": "int4", "llm": "int4", "retrieval": "int4"}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What `blip2rt-export` was asked for."""

    ckpt: Path
    out: Path
    retrieval_ckpt: Path | None = None
    name: str | None = None  # default: the bundle folder's
    precision: dict[str, str] = field(default_factory=dict)  # group -> precision; DEFAULTS for the others
    calib: Path | None = None
    card: Path | None = None
    max_positions: int = 1024
    overwrite: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Result:
    bundle: Bundle
    rows: list[verify.Row]
    sizes: dict[str, int]  # component -> bytes of its graph and weights; shared weights count for each


def export(options: Options, report: Report) -> Result:
    """Write the bundle, or nothing and raise Blip2rtError."""
    stage2, stage1 = _checkpoints(options)
    precision = {**DEFAULTS, **options.precision}
    files = _calibration(options, precision["vision"])
    if options.card is not None and not options.card.is_file():
        raise Blip2rtError(f"--card {options.card} is no file")
    with BundleWriter(options.out, overwrite=options.overwrite) as writer:
        work = _Work(writer.folder, precision, options, files, report)
        model2 = _load(stage2, report, vision=True) if stage2 else None
        model1 = _load(stage1, report, vision=model2 is None) if stage1 else None
        first: Any = model2 or model1
        image = describe.image_spec(first.config.vision)
        encoder, first.vision = first.vision, None
        features = work.vision(encoder, image)
        del encoder
        retrieval = work.retrieval(model1, features) if model1 is not None else None
        language = work.generative(model2, features) if model2 is not None else None
        if options.card is not None:
            shutil.copyfile(options.card, writer.folder / "MODEL_CARD.md")
        faults = [row.fault for row in work.rows if row.fault]
        if faults:
            raise Blip2rtError(f"the graphs deviate from PyTorch too far, no bundle was written: {'; '.join(faults)}")
        manifest = Manifest(
            name=options.name or options.out.resolve().name,
            created_by=describe.created_by(),
            components={name: work.components[name] for name in work.components},
            image=image,
            llm=language,
            retrieval=retrieval,
            prompts=describe.prompts(model2),
            decoding=describe.decoding() if model2 is not None else {},
            sources=_sources(model for model in (model2, model1) if model is not None),
            verification=tuple(
                Verification(row.component, row.precision, row.max_abs_error, row.cosine)
                for row in work.rows if row.against == verify.PYTORCH
            ),
        )  # fmt: skip
        return Result(writer.finish(manifest), work.rows, work.sizes)


class _Work:
    """Writes the graphs of each group into the bundle's folder, and keeps what the manifest and the table need."""

    def __init__(
        self, folder: Path, precision: dict[str, str], options: Options, files: list[Path], report: Report
    ) -> None:
        self.folder, self.precision, self.options, self.files, self.report = folder, precision, options, files, report
        self.components: dict[str, Component] = {}
        self.rows: list[verify.Row] = []
        self.sizes: dict[str, int] = {}
        self.pixels = np.zeros(0, np.float32)

    def vision(self, encoder: Any, image: ImageSpec) -> np.ndarray:
        """Returns vision_features (B,N,C) of a few images, for the graphs that come after."""
        part, precision = vision.vision_part(encoder, image), self.precision["vision"]
        shape = (3, 3, image.height, image.width)
        noise = np.random.default_rng().uniform(-1, 1, shape).astype(np.float32)
        self.pixels = vision.pixels(self.files[:3], image) if self.files else noise
        want = part.run({"pixels": self.pixels})
        self.report("vision: tracing")
        model = graphs.trace(part)
        inputs, outputs = graphs.describe(model.graph.inputs), graphs.describe(model.graph.outputs)
        if precision == "int8":
            self.report(f"vision: calibrating int8 on {len(self.files)} images")
            model = vision.quantize_int8(model, self.folder, self.files, image)
        elif precision == "fp16":
            quantize.store_fp16(model)
        elif precision == "int8w":
            quantize.store_int8(model)
        self._write("vision", "vision", model, precision, inputs, outputs)
        self._judge("vision", precision, {"pixels": self.pixels}, want)
        return want["vision_features"]

    def retrieval(self, model: Any, features: np.ndarray) -> Any:
        text = describe.example_texts(model)
        self._group("retrieval", model, qformer.retrieval_parts(model), {"vision_features": features, **text})
        return describe.retrieval_spec(model, self.folder)

    def generative(self, model: Any, features: np.ndarray) -> Any:
        language, model.llm = model.llm, None
        parts = qformer.generative_parts(model)
        prefixes = parts[0].run({"vision_features": features})["prefix_embeds"]
        self._group("qformer", model, parts, {"vision_features": features})
        return self._llm(model, language, prefixes)

    def _group(self, group: str, model: Any, parts: Sequence[graphs.Part], inputs: dict[str, np.ndarray]) -> None:
        """Graphs that share one data file."""
        precision = self.precision[group]
        wants = {part.name: part.run(inputs) for part in parts}
        data = graphs.DataFile(self.folder, f"{group}.data")
        for part in parts:
            self.report(f"{part.name}: tracing")
            self._write(part.name, group, graphs.trace(part), precision, data=data)
        data.close()
        for part in parts:
            self._judge(part.name, precision, inputs, wants[part.name])
        if precision in quantize.BITS:
            round_weights(model, quantize.BITS[precision], BLOCK)
            for part in parts:
                self._judge(part.name, precision, inputs, part.run(inputs), verify.OWN)

    def _llm(self, model: Any, language: Any, prefixes: np.ndarray) -> Any:
        config, precision = model.config.llm, self.precision["llm"]
        bits = quantize.BITS.get(precision)
        if config.bits and config.bits != bits:
            self.report(f"llm: trained against {config.bits}-bit weights, exported as {precision}")
        self.report("llm: tracing")
        data = graphs.DataFile(self.folder, "llm.data")
        block = config.block
        self._write(
            "llm", "llm", llm.trace_llm(language, self.options.max_positions), precision, data=data, block=block
        )
        embed = llm.embed_part(language)
        self._write("embed", "llm", graphs.trace(embed), precision, data=data, block=block)
        data.close()
        spec, prompts = describe.llm_spec(model, language, self.folder, self.options.max_positions)
        if self.options.verify:
            self._judge_llm(language, embed, describe.llm_inputs(language, prompts, prefixes), bits, block)
        return spec

    def _judge_llm(
        self, language: Any, embed: graphs.Part, rows: list[np.ndarray], bits: int | None, block: int
    ) -> None:
        self.report("llm: verifying")
        precision = self.precision["llm"]
        paths = self.folder / "llm.onnx", self.folder / "embed.onnx"
        reference = verify.llm_reference(language, rows)
        got, agreement = verify.run_llm(*paths, reference)
        note = f"{agreement:.0%} of greedy tokens agree"
        self.rows.append(
            verify.judge("llm", precision, verify.PYTORCH, {"logits": got}, {"logits": reference.logits}, note)
        )
        ids = {"token_ids": reference.tokens.astype(np.int64)}
        self._judge("embed", precision, ids, embed.run(ids))
        if bits is None:
            return
        round_weights(language, bits, block)
        reference = verify.llm_reference(language, rows, tokens=reference.tokens)
        with verify.exact(paths[0]) as copy:
            got, _ = verify.run_llm(copy, paths[1], reference)
        self.rows.append(verify.judge("llm", precision, verify.OWN, {"logits": got}, {"logits": reference.logits}))
        self._judge("embed", precision, ids, embed.run(ids), verify.OWN)

    def _write(
        self, name: str, group: str, model: ir.Model, precision: str, inputs: Any = None, outputs: Any = None,
        data: graphs.DataFile | None = None, block: int = BLOCK,
    ) -> None:  # fmt: skip
        inputs, outputs = inputs or graphs.describe(model.graph.inputs), outputs or graphs.describe(model.graph.outputs)
        if precision in quantize.BITS:
            self.report(f"{name}: quantizing to {precision}")
            quantize.quantize_weights(model, quantize.BITS[precision], block)
        elif precision == "fp16" and group != "vision":
            quantize.store_fp16(model)
        file = data or graphs.DataFile(self.folder, f"{group}.data")
        path = self.folder / f"{name}.onnx"
        self.sizes[name] = graphs.save(model, path, file)
        if data is None:
            file.close()
        self.components[name] = Component(path.name, precision, inputs, outputs)

    def _judge(self, name: str, precision: str, inputs: Any, want: Any, against: str = verify.PYTORCH) -> None:
        if not self.options.verify:
            return
        graph = self.folder / f"{name}.onnx"
        if against == verify.OWN:
            with verify.exact(graph) as copy:
                got = verify.run(copy, inputs)
        else:
            self.report(f"{name}: verifying")
            got = verify.run(graph, inputs)
        self.rows.append(verify.judge(name, precision, against, got, want))


def _checkpoints(options: Options) -> tuple[Path | None, Path | None]:
    """(stage 2, stage 1); all that is wrong with them at once."""
    config, faults = _config(options.ckpt), []
    if options.retrieval_ckpt is None:
        return (None, options.ckpt) if config.stage == 1 else (options.ckpt, None)
    other = _config(options.retrieval_ckpt)
    if config.stage != 2:
        faults.append(
            f"--ckpt {options.ckpt} is of stage {config.stage}: with --retrieval-ckpt it has to be of stage 2"
        )
    if other.stage != 1:
        faults.append(f"--retrieval-ckpt {options.retrieval_ckpt} is of stage {other.stage}: it has to be of stage 1")
    if config.vision != other.vision:
        faults.append("the two checkpoints look through different image encoders, and a bundle has one")
    if faults:
        raise Blip2rtError("; ".join(faults))
    return options.ckpt, options.retrieval_ckpt


def _calibration(options: Options, precision: str) -> list[Path]:
    if options.calib is not None:
        return vision.photographs(options.calib)
    if precision == "int8":
        raise Blip2rtError("vision=int8 needs photographs to calibrate on: give --calib FOLDER, or choose vision=fp16")
    return []


def _config(folder: Path) -> Blip2Config:
    try:
        return read_config(folder)
    except (ValueError, KeyError, TypeError) as error:  # not JSON, or not of the right form
        raise Blip2rtError(f"checkpoint {folder}: its config.json is damaged ({error})") from error


def _load(folder: Path, report: Report, *, vision: bool) -> Any:
    report(f"loading {folder}")
    try:
        return load_model(folder, vision=vision)
    except (SafetensorError, OSError) as error:
        raise Blip2rtError(f"checkpoint {folder} is damaged or incomplete: {error}") from error


def _sources(models: Any) -> tuple[Source, ...]:
    """Every part once, as the checkpoints name them."""
    found = {tuple(sorted(source.items())): source for model in models for source in model.config.sources}
    keys = ("part", "name", "licence", "origin")
    return tuple(Source(*(str(source.get(key, "")) for key in keys)) for source in found.values())
