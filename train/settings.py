"""Settings of a training, in groups, one for each part of it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip2rt.modeling.sources import list_checkpoints

from .recipe import Check, Given, option

POSITIVE = Check("a number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Check("0 or more", lambda value: 0 <= value < math.inf)
SHARE = Check("0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Check("0 to below 1", lambda value: 0 <= value < 1)
COLOURS = Check("three numbers, one per colour", lambda value: len(value) == 3 and all(map(math.isfinite, value)))
DEVIATIONS = Check("three numbers above 0, one per colour", lambda value: COLOURS.accepts(value) and min(value) > 0)
BITS = Check("0, 4 or 8", lambda value: value in (0, 4, 8))
SEED = Check("0 to 1,000,000,000", lambda value: 0 <= value <= 1_000_000_000)
QUESTION_PROMPT = Check("a text with {} for the question", lambda value: value.count("{}") == 1 == value.count("{"))


def one_of(*words: str) -> Check:
    return Check(f"{', '.join(words[:-1])} or {words[-1]}", lambda value: value in words)


def missing(name: str) -> str:
    return f"{name} is missing: give it in the recipe or as --{name.replace('_', '-')} VALUE"


@dataclass(frozen=True)
class RunSettings:
    """The run."""

    out: str = option("", "folder of checkpoints and logs; a run with an existing one resumes", metavar="FOLDER")
    resume: str = option(
        "auto",
        "auto: resume from the newest checkpoint in out, of the same training; always: of any training; never: reject "
        "an out that has one",
        check=one_of("auto", "always", "never"),
        metavar="WHEN",
    )
    dry_run: bool = option(False, "check all and estimate the size")
    gpus: int = option(1, "number of GPUs that --dry-run plans the training for", check=POSITIVE)

    def faults(self) -> list[str]:
        found = [] if self.out else [missing("out")]
        if self.gpus > 1 and not self.dry_run:
            found.append("gpus describes a dry run: give --dry-run")
        if self.resume == "never" and self.out and list_checkpoints(self.out):
            found.append(f"out {self.out!r} has checkpoints, resume is never: give another folder, or --resume auto")
        return found


@dataclass(frozen=True)
class BatchSettings:
    """Batches."""

    batch_size: int = option(64, "samples per step, over all processes and micro-batches", check=POSITIVE)
    accumulate: int = option(
        1, "micro-batches per step and process; stage 1 contrasts all of them and encodes each twice", check=POSITIVE
    )
    seed: int = option(0, "seed of all randomness, together with the step", check=SEED)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer (AdamW, linear warm-up, cosine decay)."""

    steps: int = option(1000, "total steps", check=POSITIVE, replaces="epochs")
    epochs: float = option(
        0.0,
        "passes over the images of the tables (stage 1: captions), instead of steps; at most a tenth is warm-up",
        check=NOT_NEGATIVE,
        replaces="steps",
    )
    lr: float = option(1e-4, "peak learning rate", check=POSITIVE)
    min_lr: float = option(1e-5, "learning rate at the last step", check=NOT_NEGATIVE)
    warmup: int = option(100, "warm-up steps; a tenth of a shorter training", check=NOT_NEGATIVE)
    layer_decay: float = option(1.0, "learning rate of a trained encoder's layer over the next one's", check=SHARE)
    weight_decay: float = option(0.05, "weight decay of matrices; not of biases, norms and scalars", check=NOT_NEGATIVE)
    beta1: float = option(0.9, "AdamW's first beta", check=BELOW_ONE)
    beta2: float = option(0.98, "AdamW's second beta", check=BELOW_ONE)
    clip: float = option(0.0, "gradient clipping by norm; 0: none", check=NOT_NEGATIVE)

    def faults(self) -> list[str]:
        found = []
        if self.min_lr > self.lr:
            found.append(f"min_lr {self.min_lr} is above lr {self.lr}: give a smaller one")
        return found


@dataclass(frozen=True)
class MachineSettings:
    """Memory and speed."""

    precision: str = option(
        "auto",
        "auto (bf16 if the hardware supports it), bf16, fp16 or fp32",
        check=one_of("auto", "bf16", "fp16", "fp32"),
        metavar="NAME",
    )
    shard: str = option(
        "none",
        "shard over processes: none, trained (weights, gradients and moments) or all (frozen layers too)",
        check=one_of("none", "trained", "all"),
        metavar="WHAT",
    )
    recompute: bool = option(False, "activation checkpointing: less memory, more time")
    compile: bool = option(False, "torch.compile the layers: slower start, faster steps")


@dataclass(frozen=True)
class LogSettings:
    """Logs and checkpoints."""

    log_every: int = option(10, "steps between lines of metrics.jsonl", check=POSITIVE)
    save_every: int = option(200, "steps between checkpoints", check=POSITIVE)
    eval_every: int = option(400, "steps between evaluations", check=POSITIVE)
    keep: int = option(2, "checkpoints to keep", check=POSITIVE)


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop."""

    run: RunSettings = field(default_factory=RunSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True)
class DataSettings:
    """Data."""

    train_table: str = option("", "images and texts: .tsv, .csv, .jsonl, COCO .json or a folder", metavar="FILE")
    train_data: tuple[dict[str, Any], ...] = option(
        (),
        "instead of a table: data sets encoded at every step, {path, images, weight} each, as train_table or shards",
        metavar="DATA",
    )
    train_tables: tuple[dict[str, Any], ...] = option(
        (),
        "instead of one table: several with cached features, {path, images, weight} each, drawn by weight",
        metavar="TABLE",
    )
    dev_table: str = option("", "unseen images for evaluation; any format of train_table", metavar="FILE")
    images: str = option("", "folder of the images in the tables", metavar="FOLDER")
    features: str = option("features", "folder of cached vision features and shard indices", metavar="FOLDER")
    cache_features: bool = option(True, "cache the frozen encoder's features of tables; off: encode at every step")
    views: int = option(6, "views of every image in the cache; 1: no augmentation", check=POSITIVE)
    crop_area: float = option(0.5, "smallest area of a random crop, as a share of the image", check=SHARE)
    workers: int = option(2, "processes that read train_data", check=NOT_NEGATIVE)
    max_bad: int = option(1000, "unusable samples (bad_samples.tsv) before the training stops", check=NOT_NEGATIVE)

    @property
    def encodes(self) -> bool:
        """Whether the encoder runs at every step, not once for a cache."""
        return bool(self.train_data) or not self.cache_features

    @property
    def entries(self) -> tuple[dict[str, Any], ...]:
        """All data sets: `train_data`, `train_tables`, or the only `train_table`."""
        return self.train_data or self.train_tables or ({"path": self.train_table, "images": self.images},)

    def faults(self) -> list[str]:
        several = [name for name in ("train_data", "train_tables") if getattr(self, name)]
        if len(several) > 1:
            return ["train_data and train_tables are both given: give one of them"]
        if several and self.train_table:
            return [f"train_table and {several[0]} are both given: give the table as an entry of {several[0]}"]
        if several:
            return []
        table = Path(self.train_table)
        whole = self.train_table and (table.is_dir() or not (table.suffix or table.exists()))  # a missing folder, too
        needed = ("train_table",) if whole else ("train_table", "images")
        return [missing(name) for name in needed if not getattr(self, name)]


@dataclass(frozen=True)
class OriginSettings:
    """Origin."""

    start: str = option(
        "",
        "start from a checkpoint of the same stage: ours, Hugging Face's or LAVIS'; it defines the model, except for "
        "fields that are set",
        metavar="CHECKPOINT",
    )
    sources: tuple[dict[str, str], ...] = option(
        (), "origins of the parts, for the model card: part, name, licence, origin", metavar="SOURCE"
    )


@dataclass(frozen=True)
class VisionSettings:
    """Image encoder."""

    vision_source: str = option("vit:g", "vit:g or vit:l (the paper's), timm:NAME or hf:PATH", metavar="SOURCE")
    vision_weights: str = option(
        "", "weights: a path, pkg:PACKAGE/FILE, or for timm: pretrained; an hf: encoder has its own", metavar="WEIGHTS"
    )
    vision_size: int = option(224, "image height and width in pixels", check=POSITIVE)
    vision_mean: tuple[float, ...] = option(
        (0.48145466, 0.4578275, 0.40821073), "pixel mean of each colour (CLIP's)", check=COLOURS
    )
    vision_std: tuple[float, ...] = option(
        (0.26862954, 0.26130258, 0.27577711), "pixel standard deviation of each colour (CLIP's)", check=DEVIATIONS
    )
    train_vision: bool = option(False, "train the encoder too, as in the paper's finetunes")


@dataclass(frozen=True)
class QFormerSettings:
    """Q-Former."""

    learned_positions: bool = option(False, "add learned position embeddings to the encoder's output")
    qformer_init: str = option(
        "google-bert/bert-base-uncased", "initial weights, ITG's head and tokenizer", metavar="FOLDER"
    )
    queries: int = option(32, "learned queries Q", check=POSITIVE)
    query_std: float = option(0.02, "standard deviation of new queries", check=POSITIVE)
    query_gain: float = option(0.0, "initial gain of the queries' LayerNorm; 0: the text's", check=NOT_NEGATIVE)
    dec_std: float = option(0.02, "standard deviation of [DEC]'s embedding; 0: mean of words", check=NOT_NEGATIVE)
    qformer_bits: int = option(0, "4 or 8: train with weights rounded as in the bundle; 0: exact", check=BITS)
    qformer_block: int = option(64, "block of that quantization", check=POSITIVE)
    dropout: float = option(0.1, "dropout of the Q-Former's text stream", check=SHARE)
    query_dropout: float = option(0.1, "dropout of its query stream", check=SHARE)
    attention_dropout: float = option(0.1, "dropout of its attention's probabilities", check=SHARE)


@dataclass(frozen=True)
class LlmSettings:
    """Language model."""

    llm_source: str = option("facebook/opt-2.7b", "language model: path, hub id or pkg:PACKAGE/FILE", metavar="SOURCE")
    llm_bits: int = option(0, "4 or 8: train with its weights rounded as in the bundle; 0: as loaded", check=BITS)
    llm_block: int = option(64, "block of that quantization", check=POSITIVE)
    lora_rank: int = option(0, "train LoRA adapters of this rank in its linear layers; 0: none", check=NOT_NEGATIVE)
    lora_alpha: float = option(16.0, "scale of the adapters: lora_alpha / lora_rank", check=POSITIVE)
    lora_layers: tuple[str, ...] = option((), "layers with adapters, as q_proj v_proj (default: all)", metavar="LAYER")
    lora_lr: float = option(1e-4, "peak learning rate of the adapters", check=POSITIVE)
    end: str = option("\n", "token that ends a caption or an answer; OPT's is a newline", metavar="TOKEN")
    prepend_bos: bool = option(True, "put the bos token between soft prompt and text, as for OPT")
    caption_prompt: str = option("", "prompt before every caption")
    no_repeat_words: bool = option(False, "the exported bundle's captions say no content word twice")
    ask_prompt: str = option("Question: {} Answer:", "prompt before every answer", check=QUESTION_PROMPT)


@dataclass(frozen=True)
class TrainSettings:
    """Settings that both stages share."""

    loop: LoopSettings = field(default_factory=LoopSettings)
    data: DataSettings = field(default_factory=DataSettings)
    origin: OriginSettings = field(default_factory=OriginSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    qformer: QFormerSettings = field(default_factory=QFormerSettings)
    given: Given = field(default_factory=dict)

    def faults(self) -> list[str]:
        found, decay = [], self.loop.optimizer.layer_decay
        if self.vision.train_vision and self.data.cache_features:
            found.append("train_vision changes the encoder, so features cannot be cached: give --no-cache-features")
        if self.loop.optimizer.epochs and self.data.train_data:
            found.append("epochs needs tables, whose images are counted at once, but train_data is given: give --steps")
        if decay != 1 and not self.vision.train_vision:
            found.append(f"layer_decay {decay} needs a trained encoder: give --train-vision")
        return found
