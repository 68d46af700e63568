"""How alike texts are, as a sentence encoder reads them (Reimers & Gurevych 2019): which images look alike, and how
well an image fits a text that was written of another.

Knows texts, and a BERT-family folder whose mean output is a sentence; nothing of pixels or losses.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.sources import fetch

from .data import Dataset

_BATCH = 128
_MOST_TOKENS = 64
_SHARPNESS = 10.0  # of the mean over an image's texts: towards 0 their plain mean, towards infinity the most alike


class Likeness:
    """Of the texts of a table, which its images have in common with others."""

    def __init__(self, data: Dataset, source: str, folder: str | Path) -> None:
        self.embeds = sentence_embeds([sample.text for sample in data.samples], source, Path(folder))
        self.of_image: list[list[int]] = [[] for _ in data.paths]  # its texts' numbers
        for row, sample in enumerate(data.samples):
            self.of_image[sample.image].append(row)
        most = max(map(len, self.of_image))
        self._texts = torch.tensor([rows + [-1] * (most - len(rows)) for rows in self.of_image])  # (images, K)

    def neighbours(self, count: int) -> np.ndarray:
        """The `count` images whose texts are most alike those of each, most alike first: (images, count)."""
        here = self._texts >= 0
        means = F.normalize((self.embeds[self._texts] * here[..., None]).sum(1), dim=-1)
        found = []
        for start in range(0, len(means), 1000):
            like = means[start : start + 1000] @ means.T
            like[torch.arange(len(like)), torch.arange(start, start + len(like))] = -torch.inf
            found.append(like.topk(count, 1).indices)
        return torch.cat(found).numpy()

    def __call__(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """The likeness (B, T) of each image's texts to each text, a smooth maximum of their cosines; images (B) and
        texts (T) by index. A text says nothing of its own image: there the image's other texts count."""
        rows = self._texts[images.cpu()]  # (B, K)
        cosine = torch.einsum("bke,te->btk", self.embeds[rows], self.embeds[texts.cpu()])
        counts = (rows >= 0)[:, None] & (rows[:, None] != texts.cpu()[None, :, None])
        mean = (_SHARPNESS * cosine).masked_fill(~counts, -torch.inf).logsumexp(-1) - counts.sum(-1).log()
        likeness = mean / _SHARPNESS
        return likeness.nan_to_num(nan=1.0).to(images.device)  # the only text of its image


def sentence_embeds(texts: list[str], source: str, folder: Path) -> torch.Tensor:
    """(texts, D) of unit length, from `folder` where they have been computed before. Raises Blip2rtError."""
    key = hashlib.sha256("\n".join([source, *texts]).encode()).hexdigest()[:16]
    file = folder / f"{key}-texts.npy"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as out:
            np.save(out, _embed(texts, source).numpy())
        partial.rename(file)
    return torch.from_numpy(np.load(file))


@torch.no_grad()
def _embed(texts: list[str], source: str) -> torch.Tensor:
    model, tokenizer = _load(source)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    embeds = torch.empty(len(texts), model.config.hidden_size)
    with tqdm(total=len(texts), desc="sentences", unit="text") as bar:
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            batch = tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt"
            ).to(model.device)
            mask = batch["attention_mask"][..., None]
            hidden = model(**batch).last_hidden_state.float()
            embeds[part] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()
            bar.update(len(part))
    return embeds


def _load(source: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    path = fetch(source)
    try:
        model = AutoModel.from_pretrained(path).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise Blip2rtError(f"likeness {source!r} is no sentence encoder that transformers opens: {reason}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
