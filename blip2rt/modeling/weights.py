"""Named tensors on disk, each read on demand: safetensors (one file or shards) and PyTorch's own format.

Files are read rather than mapped, so that tensors leave the memory after use. Does not know about models.
"""

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blip2rt.errors import Blip2rtError, CapabilityError, boundary

from .peft_folder import ADAPTER_FILES, base_of, has_adapter, merged, read_adapter_config
from .sources import parse_json, read_json
from .streaming import Reader

Stored = tuple[tuple[int, ...], Reader, torch.dtype]  # shape, reader, type

_NAMES = "F64:float64 F32:float32 F16:float16 BF16:bfloat16 I64:int64 I32:int32 I16:int16 I8:int8 U8:uint8 BOOL:bool"
_DTYPES = {name: getattr(torch, dtype) for name, _, dtype in (each.partition(":") for each in _NAMES.split())}
_MAX_LISTED = 6  # tensors that an error names
_FILES = ("model.safetensors", "pytorch_model.bin")


class Weights:
    """The tensors of a checkpoint: `shapes` and `dtypes` by name, and `read(name)`.

    source: a folder with model.safetensors or pytorch_model.bin, whole or in shards with their index; or one file,
    .safetensors or anything that torch.load reads. An adapter of peft in a folder is merged; `adapted` names the
    tensors that it changes. Raises Blip2rtError, which names all missing and damaged files.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(source)
        self._folder = Path(base_of(str(source)))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._readers: dict[str, Reader] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        faults: list[str] = []
        for file in self._files():
            try:
                readers = _open(file, "it" if file == self.source else file.name)
            except CapabilityError as error:
                raise Blip2rtError(f"{self.source}: {error}: give the original checkpoint") from error
            except Blip2rtError as error:
                faults.append(str(error))
                continue
            self._add({name: (shape, reader) for name, (shape, reader, _) in readers.items()})
            self.dtypes |= {name: dtype for name, (_, _, dtype) in readers.items()}
        if faults:
            raise Blip2rtError(f"{self.source}: {'; '.join(faults)}; copy or download the checkpoint again")
        self.adapted = self._merge_adapter() if has_adapter(self.source) else frozenset[str]()
        self._readers = {name: partial(_finite, self.source, name, read) for name, read in self._readers.items()}

    def _merge_adapter(self) -> frozenset[str]:
        """Merge the folder's adapter into the tensors; return the names of those that it changes."""
        config = read_adapter_config(self.source)
        file = next((f for name in ADAPTER_FILES if (f := self.source / name).is_file()), None)
        if file is None:
            raise Blip2rtError(
                f"{self.source} has an adapter without tensors: {' and '.join(ADAPTER_FILES)} are missing"
            )
        stored = _open(file, str(file))
        with boundary(f"{file} does not fit its base {self._folder}"):
            adapter = {name: (shape, reader) for name, (shape, reader, _) in stored.items()}
            known = {name: (shape, self._readers[name]) for name, shape in self.shapes.items()}
            changed = merged(config, adapter, known)
        self._add(changed)
        self.dtypes |= dict.fromkeys(changed, torch.float32)
        return frozenset(changed)

    def _add(self, entries: Mapping[str, tuple[tuple[int, ...], Reader]]) -> None:
        self._readers |= {name: reader for name, (_, reader) in entries.items()}
        self.shapes |= {name: shape for name, (shape, _) in entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored."""
        return self._readers[name]()

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def readers(
        self,
        wanted: Mapping[str, tuple[int, ...]],
        translate: Callable[[str], str | None],
        special: Mapping[str, Reader] | None = None,
    ) -> dict[str, Reader]:
        """A reader for each name of `wanted` (name -> shape). Raises Blip2rtError, which lists missing tensors and
        wrong shapes.

        translate: our name -> theirs, alternatives separated by |. special: readers that override these.
        """
        readers, missing, misshaped, used = dict(special or {}), [], [], list[str]()
        for name, shape in wanted.items():
            theirs = (translate(name) or name).split("|")
            found = next((each for each in theirs if each in self.shapes), None)
            if name in readers:
                continue
            if found is None:
                missing.append(theirs[0])
            elif self.shapes[found] != tuple(shape):
                misshaped.append(f"{found} is {self.shapes[found]} and not {tuple(shape)}")
            else:
                readers[name] = self._readers[found]
                used.append(found)
        self.require_floats(used)
        if missing or misshaped:
            raise Blip2rtError(f"{self.source} does not fit: {'; '.join(_few(missing, 'lacks') + _few(misshaped, ''))}")
        return readers

    def require_floats(self, names: Iterable[str]) -> None:
        """Raise Blip2rtError if a tensor is quantized: an integer that is neither a counter nor a position, or fp8."""
        allowed = (torch.int64, torch.bool)
        dtypes = {name: self.dtypes[name] for name in names}
        floats = {dtype for dtype in dtypes.values() if dtype.is_floating_point and dtype.itemsize > 1}
        wrong = [name for name, dtype in dtypes.items() if dtype not in (*floats, *allowed)]
        if wrong:
            kind = str(dtypes[wrong[0]]).removeprefix("torch.")
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise Blip2rtError(
                f"{self.source}: {wrong[0]} is of type {kind}{more}, quantized: give the original checkpoint"
            )

    def _files(self) -> list[Path]:
        if self.source.is_file():
            return [self.source]
        folder = self._folder
        for name in _FILES:
            if (folder / name).is_file():  # beside a whole file, as in transformers, an index is a stale one
                return [folder / name]
            index = folder / f"{name}.index.json"
            if index.is_file():
                with boundary(f"{index} is damaged, copy or download the checkpoint again"):
                    shards = read_json(index)["weight_map"].values()
                return [folder / _plain(shard, index) for shard in sorted(set(map(str, shards)))]
        raise Blip2rtError(f"{folder} has no weights: neither {' nor '.join(_FILES)}, nor an index of shards")


def _plain(shard: str, index: Path) -> str:
    """Return the file name of a shard. Raise Blip2rtError if it is not in the index's folder."""
    if Path(shard).name != shard or "\\" in shard:
        raise Blip2rtError(f"{index} names {shard!r}, which is not in the same folder: download the checkpoint again")
    return shard


def _few(items: list[str], verb: str) -> list[str]:
    """A clause that lists the first items and counts the others."""
    if not items:
        return []
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return [f"{verb} {', '.join(items[:_MAX_LISTED])}{more}".strip()]


def has_weights(folder: Path) -> bool:
    """Whether a folder contains weights that `Weights` reads."""
    return any((folder / f"{name}{end}").is_file() for name in _FILES for end in ("", ".index.json"))


def _open(file: Path, named: str) -> dict[str, Stored]:
    """The stored tensors by name. Raises Blip2rtError, whose message begins with `named`."""
    if not file.is_file():
        raise Blip2rtError(f"{named} is missing")
    with boundary(f"{named} is damaged"):
        return _open_safetensors(file) if file.suffix == ".safetensors" else _open_torch(file)


def _finite(source: Path, name: str, read: Reader) -> torch.Tensor:
    """Read a tensor. Raises Blip2rtError if a number of 16 bits or more is NaN or infinite."""
    tensor = read()
    checked = tensor.numel() and tensor.is_floating_point() and tensor.itemsize > 1
    if checked and not all(math.isfinite(each) for each in torch.aminmax(tensor)):
        raise Blip2rtError(f"{source}: {name} contains NaN or infinity: take a checkpoint from before that")
    return tensor


def _open_safetensors(file: Path) -> dict[str, Stored]:
    """Read the header: its length, JSON, then follow the tensors' bytes."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        size = file.stat().st_size
        if length > size:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("not a safetensors file")
    header.pop("__metadata__", None)
    start, found, end = 8 + length, {}, 8 + length
    for name, entry in header.items():
        kind, shape, (first, last) = _described(name, entry)
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise CapabilityError(f"{name} is of type {kind}, and {', '.join(_DTYPES)} can be read")
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has {last - first} bytes, which is not {shape}")
        end = max(end, start + last)
        found[name] = (shape, _slice(file, start + first, last - first, dtype, shape), dtype)
    if size < end:
        raise ValueError(f"{size:,} bytes instead of {end:,}")
    return found


def _described(name: str, entry: Any) -> tuple[str, tuple[int, ...], list[int]]:
    """A tensor's type, shape and offsets, from its entry in the header."""
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if (
        not (isinstance(kind, str) and isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2)
        or any(type(number) is not int or number < 0 for number in (*shape, *offsets))
        or offsets[0] > offsets[1]
    ):
        raise ValueError(f"the header's entry of {name} is malformed")
    return kind, tuple(shape), offsets


def _slice(file: Path, offset: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Reader:
    def read() -> torch.Tensor:
        if not size:
            return torch.empty(shape, dtype=dtype)
        buffer = bytearray(size)
        with open(file, "rb", buffering=0) as stream:
            stream.seek(offset)
            view, done = memoryview(buffer), 0
            while done < size:  # a call reads at most 2 GB
                count = stream.readinto(view[done:])
                if not count:
                    raise Blip2rtError(f"{file} is truncated; copy or download the checkpoint again")
                done += count
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    return read


def torch_state(file: Path, mmap: bool = False) -> Any:
    """Load tensors, never code, that PyTorch saved. Raises ValueError for anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError("it was not saved by PyTorch, or contains more than tensors, which is not loaded") from error


def _open_torch(file: Path) -> dict[str, Stored]:
    """Open a state dict that PyTorch saved, alone or under "model"."""
    state = torch_state(file, mmap=zipfile.is_zipfile(file))
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise ValueError("it has no named tensors")

    def reader(tensor: torch.Tensor) -> Reader:
        return lambda: tensor

    return {name: (tuple(tensor.shape), reader(tensor), tensor.dtype) for name, tensor in tensors.items()}
