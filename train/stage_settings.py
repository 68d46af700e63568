"""Settings of each stage, beside those that both share."""

from dataclasses import dataclass, field

from .recipe import Check, option
from .settings import BELOW_ONE, NOT_NEGATIVE, POSITIVE, LlmSettings, TrainSettings


@dataclass(frozen=True)
class ContrastSettings:
    """Heads and losses of stage 1."""

    embed_dim: int = option(256, "width E of the contrastive space", check=POSITIVE)
    max_text_length: int = option(32, "tokens of a caption, including [CLS] and [SEP]", check=POSITIVE)
    itm_weight: float = option(
        1.0, "weight of ITM relative to ITC and ITG; 0 skips it; the paper has 1", check=NOT_NEGATIVE
    )
    itm_ramp: int = option(
        0, "steps over which ITM's negatives change from random to drawn by similarity", check=NOT_NEGATIVE
    )
    itm_std: float = option(
        0.0, "standard deviation of ITM's fresh head; 0: as PyTorch draws a layer", check=NOT_NEGATIVE
    )
    head_lr: float = option(1e-4, "peak learning rate of projections and heads; lr if unset", check=NOT_NEGATIVE)


@dataclass(frozen=True)
class Stage1Settings(TrainSettings):
    """Settings of stage 1."""

    contrast: ContrastSettings = field(default_factory=ContrastSettings)


@dataclass(frozen=True)
class PrefixSettings:
    """Soft prompt of stage 2."""

    stage1: str = option(
        "",
        "stage-1 checkpoint to start from: ours, Hugging Face's or LAVIS'; with start, it provides the text "
        "branch (default: BERT, as in the paper's ablation)",
        metavar="CHECKPOINT",
    )
    normalize_prefix: bool = option(False, "LayerNorm after the projection")
    question_to_qformer: bool = option(
        False, "the queries read the question, or a caption's prompt, too, as in the paper's VQA finetune"
    )
    projection_lr: float = option(1e-4, "peak learning rate of the projection; lr if unset", check=NOT_NEGATIVE)


@dataclass(frozen=True)
class TextSettings:
    """Texts of stage 2."""

    max_text_tokens: int = option(32, "tokens of one text, including prompt and end", check=POSITIVE)
    texts_per_image: int = option(1, "texts drawn for each image and packed behind one soft prompt", check=POSITIVE)
    learn_bos: bool = option(True, "without a prompt, the LM learns to predict its bos token after the last query")
    clean_answers: bool = option(
        False, 'answers lose capitals and punctuation, as captions do ("2:30 pm" becomes "2 30 pm")'
    )
    hidden_positions: float = option(
        0.0, "share of the image's positions that is hidden in training, drawn at every step", check=BELOW_ONE
    )


@dataclass(frozen=True)
class Stage2Settings(TrainSettings):
    """Settings of stage 2."""

    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    text: TextSettings = field(default_factory=TextSettings)


@dataclass(frozen=True)
class CiderSettings:
    """Sampled captions."""

    cider_samples: int = option(
        5, "captions sampled per image and rewarded by CIDEr", check=Check("2 or more", lambda count: count > 1)
    )


@dataclass(frozen=True)
class SelfCriticalSettings:
    stage2: Stage2Settings = field(default_factory=Stage2Settings)
    cider: CiderSettings = field(default_factory=CiderSettings)

    def faults(self) -> list[str]:
        shard = self.stage2.loop.machine.shard
        unequal = "shard is all, and sampled captions end at unequal lengths: give --shard trained"
        return [unequal] if shard == "all" else []
