"""Faults of a manifest beyond its types: values, components, file names. Touches no files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from . import names
from .manifest import Manifest, TensorInfo
from .names import ENCODER, GENERATIVE, LLM, QFORMER, RETRIEVAL, VISION

# Upper bounds: far above every existing model, far below what would fill a machine's memory.
MAX_SIDE = 16_384
MAX_TOKENS = 10_000_000  # positions, words, token ids
MAX_TEXT_LENGTH = MAX_CHARACTERS = 100_000
MAX_BEAMS = 1_000
_MAX_LLM = {"layers": 1_000, "kv_heads": 10_000, "head_dim": 10_000, "hidden_size": 1_000_000}
_MAX_LLM |= {"vocab_size": MAX_TOKENS, "max_positions": MAX_TOKENS, "prefix_length": 100_000}


def manifest_faults(manifest: Manifest) -> list[str]:
    """Everything that is wrong with a manifest whose types are right."""
    return _value_faults(manifest) or [*_component_faults(manifest), *_name_faults(manifest)]


def _value_faults(manifest: Manifest) -> list[str]:
    """Values out of range."""
    faults = []
    image, llm, retrieval = manifest.image, manifest.llm, manifest.retrieval
    sane = all(abs(x) <= 100 for x in image.mean) and all(1e-4 <= x <= 100 for x in image.std)
    if not len(image.mean) == len(image.std) == 3 or not sane:
        faults.append("image.mean needs three numbers from -100 to 100, image.std three from 0.0001 to 100")
    if image.resample not in names.RESAMPLE:
        faults.append(f"image.resample is {image.resample!r}: choose from {', '.join(names.RESAMPLE)}")
    if manifest.target not in names.TARGETS:
        faults.append(f"target is {manifest.target!r}: this blip2rt knows {', '.join(names.TARGETS)}")
    sizes = {"image.height": (image.height, MAX_SIDE), "image.width": (image.width, MAX_SIDE)}
    if llm is not None:
        sizes |= {f"llm.{name}": (getattr(llm, name), limit) for name, limit in _MAX_LLM.items()}
    for section, spec in (("retrieval", retrieval), ("question", manifest.question)):
        if spec is not None:
            sizes[f"{section}.max_text_length"] = (spec.max_text_length, MAX_TEXT_LENGTH)
    for task, defaults in manifest.decoding.items():
        sizes[f"decoding.{task}.num_beams"] = (defaults.num_beams, MAX_BEAMS)
        sizes[f"decoding.{task}.max_new_tokens"] = (defaults.max_new_tokens, MAX_TOKENS)
        if not 0 <= defaults.min_new_tokens <= MAX_TOKENS or not abs(defaults.length_penalty) <= 100:
            faults.append(f"decoding.{task}: min_new_tokens is 0 or more, length_penalty from -100 to 100")
    if retrieval is not None:
        for name, low in (("temperature", 1e-4), ("itm_weight", 0), ("likelihood_weight", 0)):
            value = getattr(retrieval, name)
            if not low <= value <= 1e4:
                faults.append(f"retrieval.{name} is {value}, not from {'0.0001' if low else 0} to 10,000")
    if retrieval is not None and retrieval.likelihood_weight and (llm is None or retrieval.mean_prefix is None):
        faults.append("retrieval.likelihood_weight is given without a language model or retrieval.mean_prefix")
    if retrieval is not None and retrieval.pool is not None and (llm is None or not llm.eos_token_ids):
        faults.append("retrieval.pool is given without a language model or llm.eos_token_ids")
    faults += [
        f"{name} is {size}, not from 1 to {limit:,}" for name, (size, limit) in sizes.items() if not 0 < size <= limit
    ]
    faults += _image_faults(manifest)
    faults += _length_faults(manifest)
    return faults + [
        f"{name} is {token}, not a token id" for name, token in _token_ids(manifest) if not 0 <= token <= MAX_TOKENS
    ]


def _image_faults(manifest: Manifest) -> list[str]:
    """An image size that the vision graph does not read."""
    image, vision = manifest.image, manifest.components.get(VISION)
    shapes = [tensor.shape for tensor in vision.inputs if tensor.name == names.PIXELS] if vision is not None else []
    expected = (3, image.height, image.width)

    def fits(shape: tuple[int | str, ...]) -> bool:
        sides = zip(shape[1:], expected, strict=False)
        return len(shape) != 4 or all(isinstance(axis, str) or axis == side for axis, side in sides)

    size = f"{image.height} x {image.width}"
    return [f"image is {size}, but vision reads pixels {list(shape)}" for shape in shapes if not fits(shape)]


def _length_faults(manifest: Manifest) -> list[str]:
    """Texts longer than any bundle needs."""
    texts = {"name": manifest.name, "created_by": manifest.created_by}
    texts |= {f"prompts.{task}": prompt for task, prompt in manifest.prompts.items()}
    long = {name: len(text) for name, text in texts.items() if len(text) > MAX_CHARACTERS}
    return [f"{name} has {size:,} characters, more than {MAX_CHARACTERS:,}" for name, size in long.items()]


def _token_ids(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Every token id of the manifest with its place."""
    for section, spec in (("llm", manifest.llm), ("retrieval", manifest.retrieval), ("question", manifest.question)):
        for name in ("bos_token_id", "pad_token_id", "decoder_start_token_id", "eos_token_ids", "empty_prompt_ids"):
            value = getattr(spec, name, None)
            for token in value if isinstance(value, tuple) else () if value is None else (value,):
                yield f"{section}.{name}", token


def _component_faults(manifest: Manifest) -> list[str]:
    """Incomplete groups of components, and tensors that the contract requires."""
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
    if QFORMER in have and manifest.question is None and names.TOKEN_IDS in _names(manifest.components[QFORMER].inputs):
        faults.append("qformer reads token_ids but question is null")
    for name, component in manifest.components.items():
        expected = names.TENSORS.get(name, ((), ()))
        if llm is not None and name == LLM:
            in_place = names.PRESENT_KEY.format(0) in _names(component.outputs)
            expected = names.llm_tensors(llm.layers, llm.encoder_decoder, manifest.target, in_place)
        elif llm is not None and name == ENCODER:
            expected = names.encoder_tensors(llm.layers)
        elif manifest.question is not None and name in (QFORMER, names.ATTENTION):
            expected = ((*expected[0], names.TOKEN_IDS, names.TEXT_MASK), expected[1])
        for kind, required, tensors in zip(
            ("inputs", "outputs"), expected, (component.inputs, component.outputs), strict=True
        ):
            lacking = [tensor for tensor in required if tensor not in _names(tensors)]
            if lacking:
                faults.append(f"{name} lacks the {kind} {', '.join(lacking[:3])}{'...' if lacking[3:] else ''}")
    return faults


def _names(tensors: tuple[TensorInfo, ...]) -> set[str]:
    return {tensor.name for tensor in tensors}


def _name_faults(manifest: Manifest) -> list[str]:
    """Files that are used but not listed, or outside the bundle."""
    files = manifest.files or {}
    needed = {component.graph for component in manifest.components.values()}
    sections = (manifest.llm, manifest.retrieval, manifest.question)
    needed |= {section.tokenizer for section in sections if section is not None}
    retrieval = manifest.retrieval
    prefix = None if retrieval is None else retrieval.mean_prefix
    pool = None if retrieval is None else retrieval.pool
    needed |= {name for name in (prefix, pool) if name is not None}
    faults = [f"{name} is used but not in files" for name in sorted(needed) if name not in files]
    llm = manifest.llm
    if llm is not None and prefix in files and files[prefix].size != 4 * llm.prefix_length * llm.hidden_size:
        faults.append(f"{prefix} is not of {llm.prefix_length} x {llm.hidden_size} float32")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            faults.append(f"the file name {name!r} leads outside the bundle")
    return faults
