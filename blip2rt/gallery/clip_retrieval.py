"""The layout of clip-retrieval: img_emb/img_emb_N.npy and metadata/metadata_N.parquet, one vector a picture."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.atomic import AtomicFolder
from ..errors import OptionError
from ..install_hints import pip_install
from .vectors import one_vector

if TYPE_CHECKING:
    from .index import Index

ROWS = 100_000  # of a part


def arrow() -> Any:
    """pyarrow with its Parquet. Raises OptionError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise OptionError(f"clip-retrieval's metadata need pyarrow: {pip_install('parquet')}") from None
    return pyarrow


def export(index: Index, out: Path, rows: int = ROWS) -> int:
    """Write an index's pictures into `out`, a folder. Return how many."""
    pyarrow = arrow()
    files, count, part = index.files(), 0, 0
    with AtomicFolder(out / "img_emb") as vectors, AtomicFolder(out / "metadata") as metadata:
        while chunk := list(islice(files, rows)):
            embeds = one_vector(index.vectors.read([file.row for file in chunk]))
            np.save(vectors.folder / f"img_emb_{part}.npy", embeds.astype(np.float16))
            paths = [os.fsencode(index.root / file.path).decode("utf-8", "backslashreplace") for file in chunk]
            pyarrow.parquet.write_table(
                pyarrow.table({"image_path": paths}), metadata.folder / f"metadata_{part}.parquet"
            )
            count, part = count + len(chunk), part + 1
        vectors.finish()
        metadata.finish()
    return count
