"""Other engines at the same work, each in its own process: `python -m blip2rt.bench.peers.MODULE JSON`.

Only these modules import torch and other engines. timing.py needs neither.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    about: str
    module: str
    needs: tuple[str, ...]  # modules

    @property
    def install(self) -> str:
        return f"pip install {' '.join(self.needs)}"


_TORCH = ("torch", "transformers")
PEERS = {
    "hf-fp32": Peer("transformers, eager, float32", "torch_peer", _TORCH),
    "hf-bf16": Peer("transformers, eager, bfloat16", "torch_peer", _TORCH),
    "openvino-int4": Peer("OpenVINO, int4, language model only", "openvino_peer", ("openvino", "nncf", *_TORCH)),
}


def missing(name: str) -> list[str]:
    """Return the modules of a peer that are not installed."""
    return [module for module in PEERS[name].needs if importlib.util.find_spec(module) is None]
