"""The small encoder of a distillation: what of it learns, what its frozen layers make of images, what it was before.

Knows encoders and image files, nothing about the teacher or steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from blip2rt.modeling.blip2 import Blip2Config, Trained
from blip2rt.modeling.vision import VisionEncoder, layer_numbers

from ..data.features import cache_key
from ..loop.parallel import here
from .teacher import BATCH, view_pixels

FAR = 8.0  # standard deviations: what is farther counts as so far


class Student(Trained):
    """The small encoder, and maps from its features to the teacher's, which nobody needs afterwards."""

    def __init__(self, config: Blip2Config, frozen_layers: int, widths: tuple[int, int], former: bool) -> None:
        super().__init__(config)
        self.frozen_layers = frozen_layers
        self.vision = VisionEncoder(config.vision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.positions_head = nn.Linear(config.vision.features, widths[0])
        self.image_head = nn.Linear(config.vision.features, widths[1])
        if former:
            self.former_head = nn.Linear(config.vision.features, config.vision.features)

    @torch.no_grad()
    def lower(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (b, 3, h, w) -> output of the frozen layers (b, ...)."""
        return self.vision.lower(_channels_last(pixels), self.frozen_layers)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Output of `lower` -> guesses at the teacher's features of positions (b, N, C) and of the image (b, E), and at
        the former encoder's of positions (b, N, C)."""
        features = self.vision.upper(_channels_last(hidden), self.frozen_layers)
        former = self.former_head(features) if hasattr(self, "former_head") else None
        return self.positions_head(features), self.image_head(features.mean(1)), former


def _channels_last(hidden: torch.Tensor) -> torch.Tensor:
    """A grid in the memory format that convolutions like; a sequence as it is."""
    return hidden.contiguous(memory_format=torch.channels_last) if hidden.dim() == 4 else hidden


class Former(nn.Module):
    """An encoder of the same kind, frozen. Its features have mean 0 and deviation 1 in every channel."""

    def __init__(self, encoder: VisionEncoder, layers: int, hidden: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers
        with torch.no_grad():
            features = torch.cat([encoder.upper(part, layers) for part in hidden])
        self.mean = nn.Buffer(features.mean((0, 1)))
        self.std = nn.Buffer(features.std((0, 1)) + 1e-4)

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output of the frozen layers (b, ...) -> features (b, N, C)."""
        features = self.encoder.upper(_channels_last(hidden), self.layers)
        return ((features - self.mean) / self.std).clamp(-FAR, FAR)


class Hidden:
    """Output of the frozen layers for every view of the images, plain and mirrored, computed once: memory-mapped."""

    def __init__(self, paths: list[Path], student: Student, cache: str, views: int) -> None:
        key = _hidden_key(paths, student)
        names = [f"{key}-view{view}{end}.npy" for view in range(views) for end in ("", "-mirrored")]
        files = [Path(cache, name) for name in names]
        if here().main:
            for number, file in enumerate(files):
                if not file.is_file():
                    _write_hidden(file, student, paths, *divmod(number, 2))
        here().wait()
        self._arrays = [np.load(file, mmap_mode="r") for file in files]

    def rows(self, where: list[tuple[int, int]], mirrored: np.ndarray) -> torch.Tensor:
        """(b, ...) float32 of images by view and index."""
        found = [self._arrays[2 * view + int(m)][i] for (view, i), m in zip(where, mirrored, strict=True)]
        return torch.from_numpy(np.stack(found)).float()


def _hidden_key(paths: list[Path], student: Student) -> str:
    """A name for the images and the frozen layers' values: any encoder that shares these finds what another left."""
    config = replace(student.config.vision, weights=None)
    key = hashlib.sha256(f"lower {student.frozen_layers} {cache_key(paths, config)}".encode())
    for name, number in layer_numbers(student.vision).items():
        if number <= student.frozen_layers:
            key.update(student.vision.get_parameter(name).detach().cpu().contiguous().numpy())
    return key.hexdigest()[:16]


@torch.no_grad()
def _write_hidden(file: Path, student: Student, paths: list[Path], view: int, mirrored: int) -> None:
    """Fill one view's file; it gets its name when it is whole."""
    partial, out = file.with_suffix(".partial"), None
    student.to(here().device)
    for start in tqdm(range(0, len(paths), BATCH), desc=f"frozen layers, view {view}{', mirrored' * mirrored}"):
        some = range(start, min(start + BATCH, len(paths)))
        pixels = view_pixels(paths, ((view, index) for index in some), student.config.vision)
        hidden = student.lower((pixels.flip(3) if mirrored else pixels).to(here().device)).half().cpu().numpy()
        if out is None:
            shape = (len(paths), *hidden.shape[1:])
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        out[start : start + len(hidden)] = hidden
    assert out is not None
    out.flush()
    partial.rename(file)
