"""Export in clip-retrieval's layout: img_emb/img_emb_N.npy and metadata/metadata_N.parquet, one vector a picture."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ...bundle.atomic import AtomicFolder
from ...errors import names_file, utf8_name
from ..catalog import File
from ..vectors import Vectors, one_vector
from .tables import load_pyarrow

ROWS_PER_PART = 100_000


def export(files: Iterator[File], vectors: Vectors, root: Path, out: Path) -> None:
    """Write the pictures of an index, with paths below `root`, to the folder `out`."""
    pyarrow, part = load_pyarrow(), 0
    with names_file(out), AtomicFolder(out / "img_emb") as embeddings, AtomicFolder(out / "metadata") as metadata:
        while chunk := list(islice(files, ROWS_PER_PART)):
            embeds = one_vector(vectors.read([file.row for file in chunk]))
            np.save(embeddings.folder / f"img_emb_{part}.npy", embeds.astype(np.float16))
            paths = [utf8_name(str(root / file.path)) for file in chunk]
            table = pyarrow.table({"image_path": paths})
            pyarrow.parquet.write_table(table, metadata.folder / f"metadata_{part}.parquet")
            part += 1
        embeddings.finish()
        metadata.finish()
