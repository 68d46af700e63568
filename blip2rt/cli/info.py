"""`blip2rt info`: describe a bundle by its manifest and its pool's header. Opens no graph."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from ..bundle import Bundle, Decoding
from ..bundle.manifest import Component, TensorInfo, Verification
from ..errors import printable
from ..native import native


def to_dict(bundle: Bundle) -> dict[str, Any]:
    """The manifest as plain dicts and lists, with the bundle's path and size in bytes."""
    return {"path": str(bundle.path), "size": bundle.size, **asdict(bundle.manifest)}


def describe(bundle: Bundle) -> str:
    """Describe a bundle in a page of text."""
    manifest = bundle.manifest
    image = manifest.image
    lines = [
        f"{manifest.name}  ({bundle.path}, {bundle.size / 1e6:.1f} MB, made by {manifest.created_by})",
        f"image: {image.width} x {image.height}, {image.resample}",
    ]
    if manifest.target != "ort":
        lines.append(f"target: {manifest.target}")
    if manifest.llm is not None:
        llm = manifest.llm
        lines.append(
            f"llm: {llm.layers} layers x {llm.hidden_size}, {llm.vocab_size:,} tokens, {llm.max_positions:,} positions"
            f", {llm.prefix_length} for the image"
        )
    if manifest.retrieval is not None and manifest.retrieval.pool is not None:
        lines.append(f"pool: {_pool(bundle, manifest.retrieval.pool)}")
    sized = [(name, each, f"{_size(bundle, each) / 1e6:.2f} MB") for name, each in manifest.components.items()]
    components = [(name, each.precision, size, _signature(each)) for name, each, size in sized]
    components += [(f"({name})", "", f"{size / 1e6:.2f} MB", "of several") for name, size in _shared(bundle)]
    lines += ["", *_table(("component", "precision", "size", "inputs -> outputs"), components)]
    decoding = [(task, *map(str, asdict(defaults).values())) for task, defaults in manifest.decoding.items()]
    if decoding:
        lines += ["", *_table(("task", *(field.name for field in fields(Decoding))), decoding)]
        lines += [f"prompt of {task}: {prompt!r}" for task, prompt in manifest.prompts.items()]
    checks = [
        (each.component, each.precision, f"{each.max_abs_error:.2e}", *_agreement(each))
        for each in manifest.verification
    ]
    if checks:
        lines += ["", *_table(("verified", "precision", "max abs error", "cosine", "same tokens"), checks)]
    sources = [(source.part, source.name, source.licence, source.origin) for source in manifest.sources]
    if sources:
        lines += ["", *_table(("part", "source", "licence", "origin"), sources)]
    return printable("\n".join(lines))


def _size(bundle: Bundle, component: Component) -> int:
    """Bytes of a component's graph and of its external data, which is named after the graph."""
    files = bundle.manifest.files or {}
    stem = component.graph.rsplit(".", 1)[0]
    return sum(entry.size for name, entry in files.items() if name == component.graph or name.startswith(f"{stem}."))


def _shared(bundle: Bundle) -> list[tuple[str, int]]:
    """External data that belongs to several components: (file, bytes)."""
    stems = {component.graph.rsplit(".", 1)[0] for component in bundle.manifest.components.values()}
    files = (bundle.manifest.files or {}).items()
    return [(name, entry.size) for name, entry in files if name.endswith(".data") and name[:-5] not in stems]


def _pool(bundle: Bundle, name: str) -> str:
    """How many captions a pool has, or why it cannot be used, and its size."""
    file = bundle.file(name)
    try:
        content = f"{len(native.CaptionPool(str(file))):,} captions"
    except RuntimeError as error:
        content = f"unusable, {error}"
    return f"{content}, {file.stat().st_size / 1e6:.2f} MB, {name}"


def _signature(component: Component) -> str:
    """A component as "inputs -> outputs". The layers' caches, all alike, are left out."""

    def names(tensors: Sequence[TensorInfo]) -> str:
        shown = (tensor for tensor in tensors if not tensor.name.startswith(("past_", "present_")))
        return ", ".join(f"{tensor.name} ({','.join(map(str, tensor.shape))})" for tensor in shown)

    return f"{names(component.inputs)} -> {names(component.outputs)}"


def _agreement(check: Verification) -> tuple[str, str]:
    cosine = "" if check.cosine is None else f"{check.cosine:.6f}"
    return cosine, "" if check.agreement is None else f"{check.agreement:.0%}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
