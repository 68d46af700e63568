"""`python -m tests.engines.native.tiny_graphs FOLDER`: the embed.onnx and llm.onnx of tests/tiny/bundle.py, random."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from tests.seeds import new_seed
from tests.tiny.bundle import build_graphs, random_weights


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    graphs = build_graphs(onnx, random_weights(np.random.default_rng(new_seed())))
    for name in ("embed", "llm"):
        onnx.save(graphs[name], folder / f"{name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
