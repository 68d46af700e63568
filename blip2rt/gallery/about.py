"""index.json: of which folder an index is, by which model. Knows its fields, nothing about what it is used for."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import bundle as contract
from ..bundle.atomic import partial_of, write_file
from ..bundle.reader import Bundle
from ..errors import GalleryError
from .catalog import damaged

FILE = "index.json"
LEFT = partial_of(Path(FILE)).name  # all that is there where the first run was killed at once
FORMAT, VERSION = "blip2rt-index", 2  # 1 had no checksums of vectors
_EMBEDS = (contract.VISION, contract.IMAGE_EMBED, contract.TEXT_EMBED)


def fingerprint(bundle: Bundle) -> str:
    """What tells a bundle's embeddings from another's; nothing where it makes none. What captions and matches is not
    in it.

    Hashes of the graphs that embed and of the files that they name, and how pictures and texts are prepared for them.
    """
    manifest, spec = bundle.manifest, bundle.manifest.retrieval
    if spec is None or not bundle.has(*_EMBEDS):
        return ""
    hashes = {name: entry.sha256 for name, entry in (manifest.files or {}).items()}
    graphs = [bundle.graph(component) for component in _EMBEDS]
    inside = [graph.read_bytes() for graph in graphs]
    named = {name for name in hashes if any(name.encode() in graph for graph in inside)}
    taken = {name: hashes[name] for name in {*named, spec.tokenizer, *(graph.name for graph in graphs)}}
    prepared = (asdict(manifest.image), spec.max_text_length, spec.pad_token_id, spec.clean_captions)
    return hashlib.sha256(json.dumps([prepared, taken], sort_keys=True).encode()).hexdigest()


def write(folder: Path, root: Path, fields: dict[str, Any]) -> None:
    """fields: `name` and `model` of its maker, `queries` and `size` of its vectors. Raises OSError."""
    about = fields | {"format": FORMAT, "version": VERSION, "root": _relative(root, folder)}
    text = json.dumps(about, indent=1, ensure_ascii=False)
    write_file(folder / FILE, text.encode("utf-8", "surrogateescape"))


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote; `root` as seen from the index. Raises GalleryError."""
    try:
        about = json.loads((folder / FILE).read_bytes())
        fits = about["format"] == FORMAT and all(isinstance(about[n], str) for n in ("root", "name", "model"))
        fits = fits and all(isinstance(about[n], int) and 0 < about[n] < 1 << 16 for n in ("queries", "size"))
    except NotADirectoryError:
        raise GalleryError(f"{folder} is no index, but a file: give the folder that `blip2rt index` made") from None
    except FileNotFoundError:
        raise GalleryError(f"{folder} is no index: make one by `blip2rt index DIR --out {folder}`") from None
    except OSError as error:
        raise GalleryError(f"cannot read {folder / FILE}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise damaged(folder / FILE, "it is not as it was written")
    if about.get("version") != VERSION:
        raise GalleryError(
            f"{folder} has version {about.get('version')!r}, and this blip2rt reads {VERSION}: make it again by "
            "`blip2rt index`, or upgrade blip2rt where the index is newer"
        )
    found: dict[str, Any] = about
    return found


def _relative(root: Path, folder: Path) -> str:
    """The root as seen from the index, so that both can be moved together."""
    try:
        return os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    except ValueError:  # on another drive
        return os.path.realpath(root)
