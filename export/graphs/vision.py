"""The image encoder as the graph `vision`: pixels (B,3,h,w) -> vision_features (B,N,C), batch norms folded."""

from __future__ import annotations

import torch

from blip2rt.bundle import PIXELS, VISION_FEATURES, ImageSpec

from . import trace


def vision_graph(encoder: torch.nn.Module, image: ImageSpec) -> trace.GraphSpec:
    """The graph `vision`, before tracing."""
    example = {PIXELS: torch.zeros(2, 3, image.height, image.width)}
    return trace.GraphSpec("vision", encoder, example, [VISION_FEATURES], {PIXELS: {0: "B"}})
