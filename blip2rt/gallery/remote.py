"""Pictures in object storage, read in place: files, and those of folders, patterns, shards and tables."""

from collections.abc import Iterator
from typing import Any

from ..errors import reason
from ..object_storage import Url
from ..untrusted.image_format import has_image_name
from ..untrusted.tar_headers import is_plain, tar_headers
from .sources import Failure, Picture

_NAMES = ("image", "name", "path", "url", "__key__", "key")  # columns of a Parquet file, the first that is there
_BYTES = ("bytes", "image", "jpg", "jpeg", "png", "webp")  # bytes, or structs with a field `bytes`


def walk_url(url: Url, recursive: bool) -> Iterator[Picture | Failure]:
    """Yield the pictures of a file, a shard (.tar), a table (.parquet), a folder or a pattern, sorted by name.

    Raise OptionError if it cannot be listed.
    """
    found = [
        (each, stamp) for each, stamp in url.objects(recursive) if each == url or "*" in url.path or _is_known(each)
    ]
    if not found:
        yield Failure(str(url), f"{str(url)!r} has no pictures, .tar or .parquet files")
    for each, stamp in found:
        try:
            yield from _pictures(each, stamp)
        except (OSError, ValueError) as error:
            yield Failure(str(each), f"cannot read {str(each)!r}: {reason(error)}")


def _pictures(url: Url, stamp: tuple[int, int]) -> Iterator[Picture]:
    name = str(url)
    if name.endswith(".tar"):
        last = ""
        for info, _, end in tar_headers(url):
            key = info.name.rpartition("/")[0] + "/" + info.name.rpartition("/")[2].partition(".")[0]
            if is_plain(info) and key != last and has_image_name(info.name) and end <= stamp[0]:
                last = key  # one picture per sample
                path = f"{name}/{info.name}"
                yield Picture(path, path, info.offset_data, info.size, url=url, url_stamp=stamp)
    elif name.endswith(".parquet"):
        from pyarrow import dataset

        table = dataset.dataset(url.path, filesystem=url.system, format="parquet")
        for batch in table.to_batches(batch_size=64, batch_readahead=1, fragment_readahead=1):
            yield from map(_from_row, batch.to_pylist())
    else:
        yield Picture(name, name, url=url, url_stamp=stamp)


def _from_row(row: dict[str, Any]) -> Picture:
    data = next((_bytes_of(row[name]) for name in _BYTES if _bytes_of(row.get(name)) is not None), None)
    name = next((row[name] for name in _NAMES if isinstance(row.get(name), str)), None)
    if data is None or name is None:
        columns = ", ".join(row)
        raise ValueError(f"it has the columns {columns}: name them {_BYTES[0]} and {_NAMES[0]}")
    return Picture(name, name, data=data)


def _bytes_of(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None


def _is_known(url: Url) -> bool:
    return has_image_name(url.path) or url.path.endswith((".tar", ".parquet"))
