"""Pictures in object storage (s3://, gs://, file://), read in place by pyarrow: files, folders, patterns and shards.

After `?`, a URL has options of its file system, such as region. They are left out of names.
"""

import io
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from ..errors import OptionError, reason
from ..untrusted.image_format import has_image_name
from ..untrusted.tar_headers import is_plain, tar_headers
from .sources import Failure, Picture, file_system, split_url

_BLOCK = 4 << 20  # bytes read at once to find a shard's pictures
_NAMES = ("image", "name", "path", "url", "__key__", "key")  # columns of a Parquet file, the first that is there
_BYTES = ("bytes", "image", "jpg", "jpeg", "png", "webp")  # bytes, or structs with a field `bytes`


def walk_url(url: str, recursive: bool) -> Iterator[Picture | Failure]:
    """Yield the pictures of a file, a shard (.tar), a table (.parquet), a folder or a pattern, sorted by name.

    Raise OptionError if it cannot be listed.
    """
    scheme, path, query = split_url(url)
    try:
        system, pattern = file_system(url), "*" in path
        found = [] if pattern else [system.get_file_info(path)]
        kind = "Directory" if pattern else found[0].type.name
        if kind == "NotFound":
            raise FileNotFoundError(2, "there is no such object or folder", url)
        if kind == "Directory":
            from pyarrow import fs

            base = path.partition("*")[0].rpartition("/")[0] if pattern else path
            entries = system.get_file_info(fs.FileSelector(base, recursive=recursive or pattern))
            found = sorted((each for each in entries if each.is_file and "/." not in each.path), key=lambda e: e.path)
            found = [each for each in found if (_matches(each.path, path) if pattern else _is_known(each.path))]
    except (OSError, ValueError) as error:
        fix = "check the URL, its options and its credentials"
        raise OptionError(f"cannot read {url!r} ({reason(error)}): {fix}") from None
    if not found:
        yield Failure(url, f"{url!r} has no pictures, .tar or .parquet files")
    for each in found:
        name = f"{scheme}://{each.path}"
        try:
            yield from _pictures(name, f"{name}{query}", (each.size, each.mtime_ns))
        except (OSError, ValueError) as error:
            yield Failure(name, f"cannot read {name!r}: {reason(error)}")


def _pictures(name: str, url: str, stamp: tuple[int, int]) -> Iterator[Picture]:
    if name.endswith(".tar"):
        path, last = split_url(url)[1], ""
        with file_system(url).open_input_file(path) as file:
            for info, _, end in tar_headers(name, io.BufferedReader(file, _BLOCK), file.size()):
                key = info.name.rpartition("/")[0] + "/" + info.name.rpartition("/")[2].partition(".")[0]
                if is_plain(info) and key != last and has_image_name(info.name) and end <= file.size():
                    last = key  # one picture per sample
                    yield Picture(f"{name}/{info.name}", url, info.offset_data, info.size, remote_stamp=stamp)
    elif name.endswith(".parquet"):
        from pyarrow import dataset

        table = dataset.dataset(split_url(url)[1], filesystem=file_system(url), format="parquet")
        for batch in table.to_batches(batch_size=64, batch_readahead=1, fragment_readahead=1):
            yield from map(_from_row, batch.to_pylist())
    else:
        yield Picture(name, url, remote_stamp=stamp)


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


def _matches(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def _is_known(path: str) -> bool:
    return has_image_name(path) or path.endswith((".tar", ".parquet"))
