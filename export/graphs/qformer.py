"""The Q-Former and its heads as the graphs that read vision_features and text.

A stage-2 checkpoint has one graph; with question_input it also reads the question's token_ids and text_mask (B,L):
qformer:     vision_features (B,N,C) -> query_output (B,Q,H), prefix_embeds (B,Q,D)

A stage-1 checkpoint has three:
image_embed: vision_features (B,N,C) -> image_embeds (B,Q,E)
text_embed:  token_ids (B,L), text_mask (B,L) -> text_embeds (B,E)
itm:         vision_features (B,N,C), token_ids (B,L), text_mask (B,L) -> itm_logits (B,2)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blip2rt.bundle import QFORMER, RETRIEVAL, TEXT_MASK, TOKEN_IDS, VISION_FEATURES
from blip2rt.modeling.blip2 import Blip2
from blip2rt.native import native

from .trace import GraphSpec

_AXES = {VISION_FEATURES: {0: "B"}, TOKEN_IDS: {0: "B", 1: "L"}, TEXT_MASK: {0: "B", 1: "L"}}


def graphs(model: Blip2) -> list[GraphSpec]:
    """The graphs of a model, by its stage."""
    return [_graph(name, model) for name in (RETRIEVAL if model.config.stage == 1 else (QFORMER,))]


def _graph(name: str, model: Blip2) -> GraphSpec:
    config, (inputs, outputs) = model.config, native.component_tensors(name)
    if name == QFORMER and config.question_input:
        inputs += [TOKEN_IDS, TEXT_MASK]
    text_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    example = {
        VISION_FEATURES: torch.zeros(2, config.vision.positions, config.vision.features),
        TOKEN_IDS: torch.ones(2, 5, dtype=torch.int64),
        TEXT_MASK: text_mask,
    }
    axes = {tensor: _AXES[tensor] for tensor in inputs}
    return GraphSpec(name, _Graph(model, _FORWARD[name]), {tensor: example[tensor] for tensor in inputs}, outputs, axes)


class _Graph(nn.Module):
    """A model whose forward is one of its functions."""

    def __init__(self, model: Blip2, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.model, *inputs)


def _qformer(model: Blip2, vision_features: Tensor, *question: Tensor) -> tuple[Tensor, Tensor]:
    query_output = model.query_output(vision_features, *question)
    return query_output, model.prefix_embeds(query_output)


_FORWARD: dict[str, Callable[..., Any]] = {
    QFORMER: _qformer,
    RETRIEVAL[0]: lambda model, vision_features: model.image_embeds(model.query_output(vision_features)),
    RETRIEVAL[1]: Blip2.text_embeds,
    RETRIEVAL[2]: Blip2.itm_logits,
}
