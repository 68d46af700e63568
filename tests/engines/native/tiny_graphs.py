"""`python -m tests.engines.native.tiny_graphs FOLDER`: the tiny random embed.onnx and llm.onnx of tests/conftest.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from tests.conftest import build_graphs, random_weights


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    graphs = build_graphs(onnx, random_weights(np.random.default_rng()))
    for name in ("embed", "llm"):
        onnx.save(graphs[name], folder / f"{name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
