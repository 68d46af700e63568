"""Compresses the vectors of a picture into coefficients of which every score is a linear function.

The Q x E numbers of a picture are projected onto their principal components, weighted by what decides a search: the
directions in which texts differ, and the queries whose vectors win. A score needs no decoded vectors: projecting a
text's embeds onto the components gives one weight per coefficient and query.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...bundle.regular_files import read_bounded
from ..catalog import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...backends import Floats

WIDE, NARROW = 64, 192  # coefficients in 16 bits, and smaller ones in 8
RECORD = np.dtype([("wide", "<i2", (WIDE,)), ("narrow", "i1", (NARROW,))])
_MAX_BYTES = 1 << 29
_TEXT_FLOOR = 1e-3  # smallest weight of a direction or a query, relative to the largest
_WEIGHING_PICTURES, _WEIGHING_TEXTS = 1000, 256


@dataclass(frozen=True)
class Codec:
    """image_embeds (B, Q, E) <-> records of K = WIDE + NARROW coefficients, zeros included if Q x E is smaller."""

    mean: Floats  # (Q, E)
    encoder: Floats  # (Q, E, K)
    decoder: Floats  # (K, Q, E)
    steps: Floats  # (K,), of the quantization

    @classmethod
    def fit(cls, image_embeds: Floats, text_embeds: Floats) -> Codec:
        """Fit to samples: image_embeds (N, Q, E), text_embeds (T, E)."""
        count, queries, size = image_embeds.shape
        components = min(WIDE + NARROW, count - 1, queries * size)
        root, inverse = _square_root(text_embeds)
        wins = _winning_queries(image_embeds[:_WEIGHING_PICTURES], text_embeds[:_WEIGHING_TEXTS])[:, None]
        mean = image_embeds.mean(axis=0)
        basis = _principal_components((((image_embeds - mean) @ root) * wins).reshape(count, -1), components)
        basis = basis.reshape(components, queries, size)
        encoder, decoder = (basis @ root) * wins, (basis @ inverse) / wins
        largest = np.abs(np.tensordot(image_embeds - mean, encoder, ([1, 2], [1, 2]))).max(axis=0)
        limits = np.where(np.arange(components) < WIDE, 32767, 127)
        unused = WIDE + NARROW - components
        return cls(
            mean.astype(np.float32),
            np.pad(encoder.transpose(1, 2, 0), ((0, 0), (0, 0), (0, unused))).astype(np.float32),
            np.pad(decoder, ((0, unused), (0, 0), (0, 0))).astype(np.float32),
            np.pad(np.maximum(largest * 1.2, 1e-9) / limits, (0, unused), constant_values=1).astype(np.float32),
        )

    def coefficients(self, image_embeds: Floats) -> Floats:
        """image_embeds (B, Q, E) -> coefficients (B, K) in quantization steps."""
        flat = (image_embeds - self.mean).reshape(len(image_embeds), -1)
        projected = flat @ self.encoder.reshape(flat.shape[1], -1)
        return np.divide(projected, self.steps, dtype=np.float32)

    def projection(self, query: Floats) -> tuple[Floats, Floats]:
        """Embeds of a text (E,) or a picture (Q, E) -> weights (K, R) and biases (R,).

        The score of a picture is the largest of `coefficients @ weights + biases`: R is Q for a text, 1 for a picture.
        """
        if query.ndim == 1:
            weights, biases = self.decoder @ query, self.mean @ query
        else:
            weights = np.tensordot(self.decoder, query, 2)[:, None] / len(query)
            biases = np.atleast_1d(np.float32((self.mean * query).sum() / len(query)))
        return (weights * self.steps[:, None]).astype(np.float32), biases.astype(np.float32)

    def save(self, path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path, queries: int, size: int) -> Codec:
        """Raises GalleryError for a file that does not fit the model's vectors, or is damaged."""
        total = WIDE + NARROW
        shapes = [(queries, size), (queries, size, total), (total, queries, size), (total,)]
        try:
            with np.load(io.BytesIO(read_bounded(path, _MAX_BYTES, follow=False)), allow_pickle=False) as stored:
                arrays = [np.asarray(stored[field.name], np.float32) for field in fields(cls)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
            raise damaged(path, str(error) or type(error).__name__) from None
        if [array.shape for array in arrays] != shapes or not all(np.isfinite(array).all() for array in arrays):
            raise damaged(path, "its arrays are invalid")
        return cls(*arrays)


def pack(coefficients: Floats) -> NDArray[np.void]:
    """Round coefficients (B, K) to records (B,)."""
    records = np.zeros(len(coefficients), RECORD)
    rounded = np.rint(coefficients)
    records["wide"] = np.clip(rounded[:, :WIDE], -32768, 32767)
    records["narrow"] = np.clip(rounded[:, WIDE:], -128, 127)
    return records


def unpack(records: NDArray[np.void]) -> Floats:
    """Records (B,) -> coefficients (B, K)."""
    coefficients = np.empty((len(records), WIDE + NARROW), np.float32)
    coefficients[:, :WIDE], coefficients[:, WIDE:] = records["wide"], records["narrow"]
    return coefficients


def _square_root(text_embeds: Floats) -> tuple[Floats, Floats]:
    """The symmetric square root (E, E) of the texts' second moment, bounded below, and its inverse."""
    values, vectors = np.linalg.eigh(text_embeds.T @ text_embeds / len(text_embeds))
    roots = np.sqrt(np.maximum(values, _TEXT_FLOOR * values.max()))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _winning_queries(image_embeds: Floats, text_embeds: Floats) -> Floats:
    """Weights (Q,): the root of how often a query has the largest cosine among the ten best pictures of a text."""
    count, queries, size = image_embeds.shape
    scores = (image_embeds.reshape(-1, size) @ text_embeds.T).reshape(count, queries, -1)
    best = np.argpartition(scores.max(axis=1), -min(10, count), axis=0)[-10:]  # (10, T)
    winners = np.take_along_axis(scores.argmax(axis=1), best, axis=0)
    share = np.bincount(winners.ravel(), minlength=queries) / winners.size
    return np.sqrt(np.maximum(share, _TEXT_FLOOR)).astype(np.float32)


def _principal_components(rows: Floats, count: int) -> Floats:
    """The first `count` right singular vectors (count, D) of rows (N, D), by subspace iteration."""
    basis = np.random.default_rng(0).normal(size=(rows.shape[1], min(count + 32, *rows.shape))).astype(np.float32)
    for _ in range(4):
        basis, _ = np.linalg.qr(rows.T @ (rows @ basis))
    _, _, rotation = np.linalg.svd(rows @ basis, full_matrices=False)
    found: Floats = (rotation @ basis.T)[:count]
    return found
