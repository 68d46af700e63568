"""Other engines at the same work, each in a process of its own: `python -m blip2rt.bench.peers.MODULE JSON`.

Only these modules import torch and its like. Knows what each peer needs; how it is measured says its module.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    about: str
    module: str
    needs: tuple[str, ...]  # modules
    install: str
    whole: bool  # measures the whole caption, not the language model alone


PEERS = {
    "hf-fp32": Peer("transformers, eager, float32", "torch_peer", ("torch", "transformers"),
                    "pip install torch transformers", True),
    "hf-bf16": Peer("transformers, eager, bfloat16", "torch_peer", ("torch", "transformers"),
                    "pip install torch transformers", True),
    "hf-compile": Peer("transformers, torch.compile, float32", "torch_peer", ("torch", "transformers"),
                       "pip install torch transformers", True),
    "ctranslate2-int8": Peer("CTranslate2, int8, the language model alone", "ctranslate2_peer",
                             ("ctranslate2", "torch", "transformers"), "pip install ctranslate2 torch transformers",
                             False),
    "openvino-int4": Peer("OpenVINO, int4, the language model alone", "openvino_peer",
                          ("openvino", "nncf", "torch", "transformers"),
                          "pip install openvino nncf torch transformers", False),
}  # fmt: skip


def missing(name: str) -> list[str]:
    """The modules that a peer needs and that are not installed."""
    return [module for module in PEERS[name].needs if importlib.util.find_spec(module) is None]
