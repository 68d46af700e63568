"""index.json: the root folder of an index, and the model that made it."""

import json
import os
from pathlib import Path
from typing import Any

from ..bundle import IMAGE_EMBED
from ..bundle.atomic import partial_of, write_file
from ..bundle.fingerprint import fingerprint
from ..bundle.reader import Bundle
from ..bundle.regular_files import read_bounded
from ..errors import GalleryError
from ..object_storage import Url, is_copy
from .catalog import damaged

FILE_NAME = "index.json"
PARTIAL_NAME = partial_of(Path(FILE_NAME)).name  # all that remains if the first run was killed immediately
FORMAT, VERSION = "blip2rt-index", 4  # 1 had no checksums of vectors, 2 none of the shortlist, 3 no places in shards
_MAX_BYTES = 1 << 20


def write(folder: Path, root: Path | Url, fields: dict[str, Any], final: Path | None = None) -> None:
    """Write index.json. Raises OSError.

    fields: name and model of the bundle, queries and size of its vectors. final: where the folder will be moved to.
    """
    manifest = fields | {"format": FORMAT, "version": VERSION, "root": _relative(root, final or folder)}
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_file(folder / FILE_NAME, text.encode("utf-8", "surrogateescape"), follow=False)


def fields_of(bundle: Bundle) -> dict[str, Any]:
    """Return what index.json says of the model that makes an index."""
    queries, size = shape_of(bundle)
    return {"name": bundle.manifest.name, "model": fingerprint(bundle), "queries": queries, "size": size}


def shape_of(bundle: Bundle) -> tuple[int, int]:
    """Return the queries and the size of the vectors that a bundle makes of a picture."""
    *_, queries, size = bundle.manifest.components[IMAGE_EMBED].outputs[-1].shape
    return int(queries), int(size)


def read(folder: Path) -> dict[str, Any]:
    """Read index.json; `root` is relative to the index. Raises GalleryError."""
    try:
        manifest: dict[str, Any] = json.loads(read_bounded(folder / FILE_NAME, _MAX_BYTES, follow=False))
        valid = manifest["format"] == FORMAT and all(isinstance(manifest[n], str) for n in ("root", "name", "model"))
        valid = valid and all(type(manifest[n]) is int for n in ("queries", "size"))
        valid = valid and b"\0" not in os.fsencode(manifest["root"])
    except NotADirectoryError:
        raise GalleryError(f"{folder} is a file, not an index: give the folder created by `blip2rt index`") from None
    except FileNotFoundError:
        raise GalleryError(f"{folder} is not an index: create one with `blip2rt index DIR --out {folder}`") from None
    except OSError as error:
        raise GalleryError(f"cannot read {folder / FILE_NAME}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise damaged(folder / FILE_NAME, "its content is invalid")
    version = manifest.get("version")
    if version != VERSION:
        fix = "create it again with `blip2rt index`, or upgrade blip2rt if the index is newer"
        raise GalleryError(f"{folder} has version {version!r}, but this blip2rt reads {VERSION}: {fix}")
    return manifest


def _relative(root: Path | Url, folder: Path) -> str:
    """The root relative to the index, so that both can be moved together; of an index with a URL, absolute."""
    if isinstance(root, Url):
        return str(root)
    if is_copy(folder):
        return os.path.realpath(root)
    try:
        return os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    except ValueError:  # on another drive
        return os.path.realpath(root)
