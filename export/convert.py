"""`blip2rt-convert`: a checkpoint of any format -> a folder that transformers loads; a bundle -> checkpoints of ours.

Tensors are copied one by one. What Hugging Face's format cannot store (the temperature, ITG's head, our config) goes to
extra files, which transformers ignores and blip2rt reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2rt import bundle
from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.bundle.location import locate as bundle_folder
from blip2rt.command_line import Parser, nonempty, path, run
from blip2rt.errors import Blip2rtError, collected
from blip2rt.modeling.sources import add_parts, is_local, locate, parts

if TYPE_CHECKING:
    from blip2rt.modeling.blip2 import Blip2Config
    from blip2rt.modeling.checkpoint import Checkpoint

SHARD_BYTES = 2_000_000_000  # per file of weights, at most
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-convert` with `argv`, or the process's own; return the exit code."""
    interrupted = "interrupted, nothing was written"
    return run("blip2rt-convert", lambda: _run(argv), extra="export", interrupted=interrupted)


def _parser() -> Parser:
    parser = Parser(
        usage="%(prog)s CKPT --to hf|ours --out DIR [options]",
        description="A checkpoint of blip2rt or LAVIS -> a folder that transformers loads; a bundle -> checkpoints.",
        renamed={"--checkpoint": "", "--ckpt": "", "--model": ""},
    )
    source = "checkpoint: folder, .pth file or hub id; or a bundle, such as nano, --to ours"
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT", help=source)
    formats = (
        "hf: Hugging Face's format; ours: turn a bundle into the checkpoints DIR/stage1 and DIR/stage2, rounded as "
        "shipped, to continue training"
    )
    parser.add_argument("--to", choices=("hf", "ours"), required=True, help=formats)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write, atomically")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights")
    add_parts(parser)
    return parser


def _run(argv: list[str] | None) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    args = _parser().parse_args(argv)
    if args.ckpt == "nano":
        args.ckpt = str(bundle_folder(args.ckpt))
    found: list[str] = []
    with collected(found):
        _require_empty(args.out)
    with collected(found):
        if is_local(args.ckpt) and not (Path(args.ckpt) / bundle.MANIFEST).is_file():
            locate(args.ckpt)
    if found:
        raise Blip2rtError("; ".join(found))
    from blip2rt.modeling.checkpoint import Checkpoint  # imports torch, which takes seconds

    for folder in convert(Checkpoint(args.ckpt, parts(args)), args.to, args.out, args.dtype):
        print(folder)


def convert(checkpoint: Checkpoint, to: str, out: Path, dtype: str) -> list[Path]:
    """Return the written folders; the source of `checkpoint` may be a bundle.

    Raises Blip2rtError: `out` exists, or the source cannot be read or converted.
    """
    source = checkpoint.source
    _require_empty(out)
    if (Path(source) / bundle.MANIFEST).is_file():
        if to != "ours":
            raise Blip2rtError(
                f"{source} is a bundle: give --to ours, then --to {to} for that folder's stage1 or stage2"
            )
        from .unpack import unpack

        with _atomic(out) as folder:
            return [out / name for name in unpack(Path(source), folder, out)]
    if to == "ours":
        raise Blip2rtError(f"{source} is not a bundle, and training starts from checkpoints of any format directly")
    _to_hugging_face(checkpoint, out, dtype)
    return [out]


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Blip2rtError(f"{out} exists and is not empty: choose another place")


@contextlib.contextmanager
def _atomic(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when it is finished, or disappears. Raises Blip2rtError if it cannot be written."""
    try:
        with AtomicFolder(out) as atomic:
            yield atomic.folder
            atomic.finish()
    except OSError as error:
        if error.errno is None:
            raise
        raise Blip2rtError(f"--out {out} cannot be written: {error.strerror}") from error


def _to_hugging_face(checkpoint: Checkpoint, out: Path, dtype: str) -> None:
    from .describe import require_tokenizers

    config = checkpoint.config
    faults = _faults(config)
    if faults:
        raise Blip2rtError(f"{checkpoint.source} cannot be stored in Hugging Face's format: {'; '.join(faults)}")
    assert config.vision.vit is not None, "that is among the faults"
    require_tokenizers(checkpoint)
    eps, other = config.vision_norm_eps, config.vision.vit.layer_norm_eps
    if eps != other:
        print(
            f"note: Hugging Face has one epsilon for all norms of an encoder; the last one has {eps:g}, and {other:g} "
            "there (blip2rt reads its own)",
            file=sys.stderr,
        )
    model = checkpoint.load(streamed=True)
    with _atomic(out) as folder:
        tokenizer = _save_processor(checkpoint, folder)
        theirs = hugging_face_config(checkpoint, tokenizer, dtype)
        theirs.save_pretrained(folder)
        save_tensors(model, folder, dtype, theirs)
        _save_own(model, checkpoint.config, folder)


def _faults(config: Blip2Config) -> list[str]:
    """Features of the model that Hugging Face's format lacks."""
    vision, qformer = config.vision, config.qformer
    conditions = {
        f"its image encoder is {vision.source}, not EVA-CLIP's": vision.vit is None,
        "its encoder has CLIP's norm before the first block": vision.vit is not None and vision.vit.pre_norm,
        "its images are not square": vision.height != vision.width,
        "position embeddings are learned on top of the encoder's (learned_positions)": config.learned_positions,
        "the prefix passes a LayerNorm (normalize_prefix)": config.stage == 2 and config.normalize_prefix,
        "its Q-Former reads the question too (question_input)": config.question_input,
        "the queries' LayerNorm is not the text's (query_gain)": qformer.text_branch and qformer.query_gain is not None,
        "its language model is a GGUF file": config.llm is not None and config.llm.source.endswith(".gguf"),
    }
    return [what for what, true in conditions.items() if true]


def hugging_face_config(checkpoint: Checkpoint, tokenizer: Any, dtype: str) -> Any:
    """Our config as transformers' Blip2Config."""
    from transformers import Blip2Config

    from blip2rt.modeling.hugging_face import QFORMER_FIELDS, VIT_FIELDS

    config, language = checkpoint.config, checkpoint.language_model
    vision, qformer, vit = config.vision, config.qformer, config.vision.vit
    assert vit is not None, "other encoders cannot be stored"
    more: dict[str, Any] = {}
    if language is not None:
        text = language.text_config.to_dict()
        ends = language.end_token_ids
        text["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
        if language.config.empty_prompt_ids:
            text["bos_token_id"] = language.config.empty_prompt_ids[0]
        more = {"text_config": text, "image_token_index": int(tokenizer.convert_tokens_to_ids("<image>"))}
    theirs = Blip2Config(
        vision_config=_translated(vit, VIT_FIELDS) | {"image_size": vision.height},
        qformer_config=_translated(qformer, QFORMER_FIELDS)
        | {"encoder_hidden_size": vit.width, "use_qformer_text_input": qformer.text_branch},
        num_query_tokens=qformer.queries,
        image_text_hidden_size=config.embed_dim,
        **more,
    )
    theirs.dtype = dtype
    theirs.architectures = ["Blip2ForImageTextRetrieval" if language is None else "Blip2ForConditionalGeneration"]
    return theirs


def _translated(config: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in fields.items()}


def _save_processor(checkpoint: Checkpoint, folder: Path) -> Any:
    """Save image processor and tokenizer; return the tokenizer, to which <image> may have been added."""
    from transformers import Blip2Processor, BlipImageProcessor

    from blip2rt.modeling.preprocessing import FILTERS

    vision, language = checkpoint.config.vision, checkpoint.language_model
    images = BlipImageProcessor(
        size={"height": vision.height, "width": vision.width},
        image_mean=list(vision.mean),
        image_std=list(vision.std),
        resample=FILTERS.index(vision.resample),
    )
    if language is None:
        images.save_pretrained(folder)
        checkpoint.bert.tokenizer.save_pretrained(folder)
        return checkpoint.bert.tokenizer
    Blip2Processor(images, language.tokenizer, checkpoint.config.qformer.queries).save_pretrained(folder)
    return language.tokenizer


def save_tensors(model: Any, folder: Path, dtype: str, theirs: Any) -> None:
    """Write shards of at most SHARD_BYTES and their index, or one file."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    from blip2rt.modeling import streaming

    kind, parameters = getattr(torch, dtype), dict(_parameters(model, theirs))
    empty = {name: torch.empty(each.shape, dtype=kind, device="meta") for name, each in parameters.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        tensors = {name: streaming.read(parameters[name]).to(kind).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        data = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data, indent=2) + "\n")


def _parameters(model: Any, theirs: Any) -> Iterator[tuple[str, Any]]:
    """All parameters by Hugging Face's names, tied ones only once."""
    from blip2rt.modeling.names import hugging_face_name

    table = None if model.config.llm is None else model.llm.get_input_embeddings().weight
    image_token = theirs.image_token_index
    if table is not None and image_token >= len(table):
        raise Blip2rtError(
            f"the language model has {len(table)} embeddings, and its tokenizer no unused id below that for <image>, "
            "which Hugging Face's BLIP-2 needs: resize the model's embeddings first"
        )
    done: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        there = hugging_face_name(name)
        if there is not None and id(parameter) not in done:
            done.add(id(parameter))
            yield there.partition("|")[0], parameter


def _save_own(model: Any, config: Blip2Config, folder: Path) -> None:
    """Write what the other files do not store."""
    from safetensors.torch import save_file

    from blip2rt.modeling import streaming
    from blip2rt.modeling.checkpoint import Checkpoint
    from blip2rt.modeling.hugging_face import OWN_CONFIG, OWN_WEIGHTS, own_fields
    from blip2rt.modeling.names import hugging_face_name

    own = {
        name: streaming.read(parameter).contiguous()
        for name, parameter in model.named_parameters()
        if hugging_face_name(name) is None
    }
    if own:
        save_file(own, folder / OWN_WEIGHTS)
    fields = own_fields(config, Checkpoint(folder).config)
    (folder / OWN_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
