"""THE contract between export and the runtime: names of graphs and tensors, reading, checking and writing a bundle.

Knows files, sizes and hashes; nothing about images, text or engines. Standard library only: both sides import it.

    bundle = read("models/nano")            # manifest and file sizes checked, no graph opened
    verify("models/nano")                   # sha256 of every file

    with BundleWriter("out/nano") as writer:
        ...write graphs and tokenizers into writer.folder...
        writer.finish(manifest)             # hashes, writes blip2rt.json, renames to out/nano
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import BundleError
from .manifest import (
    Component,
    Decoding,
    FileEntry,
    ImageSpec,
    LlmSpec,
    Manifest,
    QuestionSpec,
    RetrievalSpec,
    Source,
    TensorInfo,
    Verification,
    from_json,
)

if TYPE_CHECKING:
    from .bundle_writer import BundleWriter

__all__ = [
    "Bundle", "BundleWriter", "Component", "Decoding", "FileEntry", "ImageSpec", "LlmSpec", "Manifest",
    "QuestionSpec", "RetrievalSpec", "Source", "TensorInfo", "Verification", "embedded", "encoder_tensors",
    "llm_tensors", "read", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`BundleWriter` lives in a module of its own, which a reader never loads."""
    if name == "BundleWriter":
        from .bundle_writer import BundleWriter

        return BundleWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


FORMAT = "blip2rt-bundle"
FORMAT_VERSION = 1
MANIFEST = "blip2rt.json"

# Components. `vision` is always there, each group wholly or not at all; `encoder` with an encoder-decoder alone.
VISION, QFORMER, EMBED, ENCODER, LLM = "vision", "qformer", "embed", "encoder", "llm"
IMAGE_EMBED, TEXT_EMBED, ITM = "image_embed", "text_embed", "itm"
GENERATIVE = (QFORMER, EMBED, LLM)
RETRIEVAL = (IMAGE_EMBED, TEXT_EMBED, ITM)
COMPONENTS = (VISION, *GENERATIVE, ENCODER, *RETRIEVAL)

# Tensors. Shapes: docs/design.md.
PIXELS, VISION_FEATURES, QUERY_OUTPUT, PREFIX_EMBEDS = "pixels", "vision_features", "query_output", "prefix_embeds"
TOKEN_IDS, TOKEN_EMBEDS, TEXT_MASK = "token_ids", "token_embeds", "text_mask"
INPUTS_EMBEDS, POSITION_IDS, LAST_INDEX = "inputs_embeds", "position_ids", "last_index"
SEQLENS_K, TOTAL_SEQUENCE_LENGTH, LOGITS = "seqlens_k", "total_sequence_length", "logits"
ATTENTION_MASK, ENCODER_MASK = "attention_mask", "encoder_mask"
IMAGE_EMBEDS, TEXT_EMBEDS, ITM_LOGITS = "image_embeds", "text_embeds", "itm_logits"
PAST_KEY, PAST_VALUE = "past_key_{}", "past_value_{}"
PRESENT_KEY, PRESENT_VALUE = "present_key_{}", "present_value_{}"
CROSS_KEY, CROSS_VALUE = "cross_key_{}", "cross_value_{}"
PAST_MASK, TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP = "past_mask", "top_logits", "top_tokens", "log_sum_exp"
NEW_KEY, NEW_VALUE = "new_key_{}", "new_value_{}"

TARGETS = ("ort", "trt")  # what a bundle's graphs are made for: ONNX Runtime, TensorRT
TOP_K = 64  # likeliest tokens that the llm graph of the target trt returns, or the whole vocabulary where it is smaller

RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's filters

# component -> (inputs, outputs); the llm's come from llm_tensors(), the encoder's from encoder_tensors().
TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    VISION: ((PIXELS,), (VISION_FEATURES,)),
    QFORMER: ((VISION_FEATURES,), (QUERY_OUTPUT, PREFIX_EMBEDS)),
    EMBED: ((TOKEN_IDS,), (TOKEN_EMBEDS,)),
    IMAGE_EMBED: ((VISION_FEATURES,), (IMAGE_EMBEDS,)),
    TEXT_EMBED: ((TOKEN_IDS, TEXT_MASK), (TEXT_EMBEDS,)),
    ITM: ((VISION_FEATURES, TOKEN_IDS, TEXT_MASK), (ITM_LOGITS,)),
}


def llm_tensors(
    layers: int, encoder_decoder: bool = False, target: str = "ort"
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the llm graph's inputs and outputs, each layer's key before its value."""
    cross = (*_each(layers, CROSS_KEY, CROSS_VALUE), ENCODER_MASK) if encoder_decoder else ()
    past = _each(layers, PAST_KEY, PAST_VALUE)
    first = (INPUTS_EMBEDS, POSITION_IDS, LAST_INDEX)
    if target == "trt":
        chosen = (LOGITS, TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP)
        return (*first, PAST_MASK, *past, *cross), (*chosen, *_each(layers, NEW_KEY, NEW_VALUE))
    inputs = (*first, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, *past, *cross)
    return inputs, (LOGITS, *_each(layers, PRESENT_KEY, PRESENT_VALUE))


def encoder_tensors(layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the encoder graph's inputs and outputs, for a decoder of `layers` layers."""
    return (INPUTS_EMBEDS, ATTENTION_MASK), _each(layers, CROSS_KEY, CROSS_VALUE)


def _each(layers: int, *names: str) -> tuple[str, ...]:
    return tuple(name.format(i) for i in range(layers) for name in names)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest and file sizes have been checked."""

    path: Path
    manifest: Manifest

    def has(self, *components: str) -> bool:
        """Whether every one of `components` is in the bundle."""
        return all(name in self.manifest.components for name in components)

    def graph(self, component: str) -> Path:
        """Path of a component's ONNX graph."""
        return self.path / self.manifest.components[component].graph

    def file(self, name: str) -> Path:
        """Path of a file of the bundle."""
        return self.path / name

    @property
    def size(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(entry.size for entry in (self.manifest.files or {}).values())


def embedded() -> Path:
    """Where the model that comes with the package is. Raises BundleError when this installation has none."""
    path = Path(__file__).parent / "models" / "nano"
    if not (path / MANIFEST).is_file():
        raise BundleError(f"this installation has no embedded model ({path}): name a bundle, --model or load(bundle)")
    return path


def read(path: str | os.PathLike[str]) -> Bundle:
    """Reads and checks a bundle's manifest and the sizes of its files; opens no graph.

    Raises BundleError: no bundle there, a newer format version, faults in the manifest, and all missing or
    changed files at once.
    """
    if not isinstance(path, str | os.PathLike):
        raise BundleError(f"a bundle is {path!r}: give its folder's path")
    folder = Path(path)
    data = _read_json(folder)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f'{folder / MANIFEST} is not the manifest of a blip2rt bundle (no "format": "{FORMAT}")')
    version = data.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{folder / MANIFEST}: format_version is {version!r}, not a whole number from 1 up")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format version {version}, this blip2rt reads versions up to {FORMAT_VERSION}: "
            "install a newer blip2rt, or export the bundle again with this one"
        )
    try:
        manifest = from_json(data)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {error}") from None
    faults = manifest_faults(manifest)
    if faults:
        raise BundleError(f"{folder / MANIFEST} is damaged: {'; '.join(faults)}")
    faults = _size_faults(folder, manifest)
    if faults:
        raise BundleError(f"bundle {folder} is not whole: {'; '.join(faults)}: copy or export it again")
    return Bundle(folder, manifest)


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Bundle:
    """`read`, then the sha256 of every file. `progress(bytes_done, bytes_in_all)` is called as it goes on.

    Raises BundleError that names every altered file.
    """
    import hashlib  # only here: loading a bundle does not hash

    bundle = read(path)
    done, altered = 0, []
    for name, entry in sorted((bundle.manifest.files or {}).items()):
        digest = hashlib.sha256()
        try:
            with open(bundle.file(name), "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, bundle.size)
        except OSError as error:
            raise BundleError(f"cannot read {bundle.file(name)}: {error.strerror or error}") from None
        if digest.hexdigest() != entry.sha256:
            altered.append(name)
    if altered:
        raise BundleError(
            f"bundle {bundle.path} is altered: the sha256 of {', '.join(altered)} differs from the manifest's: "
            "copy or export it again"
        )
    return bundle


def _read_json(folder: Path) -> Any:
    file = folder / MANIFEST
    try:
        if folder.is_file():
            raise BundleError(f"{folder} is a file; a bundle is the folder that holds {MANIFEST}")
        if not folder.exists():
            raise BundleError(f"no bundle at {folder}: there is no such folder")
        if not file.is_file():
            raise BundleError(f"no bundle at {folder}: the folder has no {MANIFEST}")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged: not JSON ({error})") from None


def manifest_faults(manifest: Manifest) -> list[str]:
    """What the types cannot say, fault by fault."""
    return _value_faults(manifest) or [*_component_faults(manifest), *_name_faults(manifest)]


def _value_faults(manifest: Manifest) -> list[str]:
    """Numbers that make no sense."""
    faults = []
    image, llm, retrieval = manifest.image, manifest.llm, manifest.retrieval
    sane = all(abs(x) <= 100 for x in image.mean) and all(1e-4 <= x <= 100 for x in image.std)
    if not len(image.mean) == len(image.std) == 3 or not sane:
        faults.append("image.mean needs three numbers from -100 to 100, image.std three from 0.0001 to 100")
    if image.resample not in RESAMPLE:
        faults.append(f"image.resample is {image.resample!r}: choose from {', '.join(RESAMPLE)}")
    if manifest.target not in TARGETS:
        faults.append(f"target is {manifest.target!r}: this blip2rt knows {', '.join(TARGETS)}")
    sizes = {"image.height": image.height, "image.width": image.width}
    if llm is not None:
        names = ("layers", "kv_heads", "head_dim", "hidden_size", "vocab_size", "max_positions", "prefix_length")
        sizes |= {f"llm.{name}": getattr(llm, name) for name in names}
    for section, spec in (("retrieval", retrieval), ("question", manifest.question)):
        if spec is not None:
            sizes[f"{section}.max_text_length"] = spec.max_text_length
    if retrieval is not None and not 1e-4 <= retrieval.temperature <= 1e4:
        faults.append(f"retrieval.temperature is {retrieval.temperature}, not from 0.0001 to 10,000")
    if retrieval is not None and not 0 <= retrieval.itm_weight <= 1e4:
        faults.append(f"retrieval.itm_weight is {retrieval.itm_weight}, not from 0 to 10,000")
    faults += [f"{name} is {size}, not from 1 to 10,000,000" for name, size in sizes.items() if not 0 < size <= 10**7]
    return faults + [
        f"{name} is {token}, not a token id" for name, token in _token_ids(manifest) if not 0 <= token <= 10**7
    ]


def _token_ids(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Every token id that the manifest names, and where."""
    for section, spec in (("llm", manifest.llm), ("retrieval", manifest.retrieval), ("question", manifest.question)):
        for name in ("bos_token_id", "pad_token_id", "decoder_start_token_id", "eos_token_ids", "empty_prompt_ids"):
            value = getattr(spec, name, None)
            for token in value if isinstance(value, tuple) else () if value is None else (value,):
                yield f"{section}.{name}", token


def _component_faults(manifest: Manifest) -> list[str]:
    """Groups that are not whole, tensors that the contract asks for."""
    faults = []
    have = set(manifest.components)
    if VISION not in have:
        faults.append("the component vision is missing")
    llm = manifest.llm
    generative = (*GENERATIVE, ENCODER) if llm is not None and llm.encoder_decoder else GENERATIVE
    for group, section, key in ((generative, llm, "llm"), (RETRIEVAL, manifest.retrieval, "retrieval")):
        missing = [name for name in group if name not in have]
        if section is not None and missing:
            faults.append(f"{key} is given but the components {', '.join(missing)} are missing")
        if section is None and len(missing) < len(group):
            faults.append(f"{', '.join(name for name in group if name in have)} are given but {key} is null")
    if llm is not None and llm.encoder_decoder and llm.decoder_start_token_id is None:
        faults.append("llm.encoder_decoder is true but llm.decoder_start_token_id is null")
    if QFORMER in have and manifest.question is None and TOKEN_IDS in _names(manifest.components[QFORMER].inputs):
        faults.append("qformer reads token_ids but question is null")
    for name, component in manifest.components.items():
        expected = TENSORS.get(name, ((), ()))
        if llm is not None and name == LLM:
            expected = llm_tensors(llm.layers, llm.encoder_decoder, manifest.target)
        elif llm is not None and name == ENCODER:
            expected = encoder_tensors(llm.layers)
        elif manifest.question is not None and name == QFORMER:
            expected = ((*expected[0], TOKEN_IDS, TEXT_MASK), expected[1])
        for kind, want, tensors in zip(
            ("inputs", "outputs"), expected, (component.inputs, component.outputs), strict=True
        ):
            lacking = [wanted for wanted in want if wanted not in _names(tensors)]
            if lacking:
                faults.append(f"{name} lacks the {kind} {', '.join(lacking[:3])}{'...' if lacking[3:] else ''}")
    return faults


def _names(tensors: tuple[TensorInfo, ...]) -> set[str]:
    return {tensor.name for tensor in tensors}


def _name_faults(manifest: Manifest) -> list[str]:
    """Files that are used but not listed, or lie outside the bundle."""
    files = manifest.files or {}
    needed = {component.graph for component in manifest.components.values()}
    sections = (manifest.llm, manifest.retrieval, manifest.question)
    needed |= {section.tokenizer for section in sections if section is not None}
    faults = [f"{name} is used but not in files" for name in sorted(needed) if name not in files]
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            faults.append(f"the file name {name!r} leads outside the bundle")
    return faults


def _size_faults(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for name, entry in sorted((manifest.files or {}).items()):
        try:
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
        except OSError as error:
            faults.append(f"{name} cannot be read: {error.strerror or error}")
            continue
        if size is None:
            faults.append(f"{name} is missing")
        elif size != entry.size:
            faults.append(f"{name} has {size} bytes instead of {entry.size}")
    return faults
