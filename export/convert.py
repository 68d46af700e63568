"""`blip2rt-convert`: a checkpoint of any format -> a folder that transformers loads; a bundle -> checkpoints of ours.

With --set, a checkpoint of ours -> the same one with other fields in its config.

Tensors go from file to file one by one. What Hugging Face's format has no place for (the temperature, the head of the
Q-Former's language modelling, our config) lies beside it in files that transformers ignores and we read again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip2rt import bundle
from blip2rt.bundle.atomic import AtomicFolder
from blip2rt.command_line import Parser, nonempty, path, run
from blip2rt.errors import Blip2rtError

from .cli import add_parts, parts

SHARD = 2_000_000_000  # bytes of a file of weights, at most
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: list[str] | None = None) -> int:
    """Run `blip2rt-convert` with `argv`, or the process's own; return the exit code."""
    return run("blip2rt-convert", lambda: _run(sys.argv[1:] if argv is None else argv), extra="export",
               interrupted="interrupted, nothing was written")  # fmt: skip


def _parser(out_is_last: bool) -> Parser:
    """out_is_last: the folder to write is the second positional argument, as it once was, and not --out."""
    parser = Parser(
        usage="%(prog)s CKPT --to hf|ours --out DIR [options]",
        description="A checkpoint of blip2rt or LAVIS -> a folder that transformers loads; a bundle -> checkpoints.",
        renamed={"--checkpoint": "", "--ckpt": "", "--model": ""},
    )
    parser.add_argument("ckpt", type=nonempty, metavar="CKPT",
                        help="checkpoint: folder, .pth file or hub id; or a bundle, --to ours")  # fmt: skip
    parser.add_argument("--to", choices=("hf", "ours"),
                        help="hf: Hugging Face's format; ours, of a bundle: DIR/stage1 and DIR/stage2, which it was "
                        "made of, rounded as they ship, to train on from (default: ours with --set)")  # fmt: skip
    parser.add_argument("--set", type=nonempty, action="append", default=[], metavar="FIELD=VALUE",
                        help="write a checkpoint of ours with this field of its config changed and the same tensors, "
                        "as qformer_bits=4 or vision.weights=PATH; may be given several times")  # fmt: skip
    shown = "the folder to write, whole or not at all"
    parser.add_argument("--out", type=path, required=not out_is_last, metavar="DIR", help=shown)
    if out_is_last:
        parser.add_argument("out", type=path, metavar="--out", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights")
    add_parts(parser)
    return parser


def _run(argv: list[str]) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    named = any(word.partition("=")[0] == "--out" for word in argv)
    parser = _parser(out_is_last=not named)
    args = parser.parse_args(argv)
    if not args.to and not args.set:
        parser.error("--to is missing: give --to hf or --to ours")
    for folder in convert(args.ckpt, args.to or "ours", args.out, parts(args), args.dtype, args.set):
        print(folder)


def convert(source: str, to: str, out: Path, given: Any, dtype: str, fields: Sequence[str] = ()) -> list[Path]:
    """Returns what was written. Raises Blip2rtError: `out` exists, the source cannot be read or has no equal."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Blip2rtError(f"{out} exists and is not empty: choose another place")
    if fields:
        return [_changed(source, to, out, fields)]
    if (Path(source) / bundle.MANIFEST).is_file():
        if to != "ours":
            raise Blip2rtError(
                f"{source} is a bundle: give --to ours, and then that folder's stage1 or stage2 --to {to}"
            )
        from .unpack import unpack

        with _whole(out) as folder:
            return [out / name for name in unpack(Path(source), folder, out)]
    if to == "ours":
        raise Blip2rtError(f"{source} is no bundle, and trainings start from checkpoints of any format as they are")
    _to_hugging_face(source, out, given, dtype)
    return [out]


def _changed(source: str, to: str, out: Path, fields: Sequence[str]) -> Path:
    """The checkpoint with other fields in its config. Raises Blip2rtError."""
    if to != "ours":
        raise Blip2rtError(f"--set is of checkpoints of ours: leave --to {to} out, and convert what was written")
    if (Path(source) / bundle.MANIFEST).is_file():
        raise Blip2rtError(f"--set: {source} is a bundle: --to ours, and then --set of that folder's stage1 or stage2")
    from .change import change

    with _whole(out) as folder:
        change(source, fields, folder)
    return out


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when it is done, or leaves nothing. Raises Blip2rtError: it cannot be written."""
    try:
        with AtomicFolder(out) as whole:
            yield whole.folder
            whole.finish()
    except OSError as error:
        if error.errno is None:
            raise
        raise Blip2rtError(f"--out {out} cannot be written: {error.strerror}") from error


def _to_hugging_face(source: str, out: Path, given: Any, dtype: str) -> None:
    from blip2rt.modeling import checkpoints

    from .describe import require_tokenizers

    config = checkpoints.read_config(source, given)
    faults = _faults(config)
    if faults:
        raise Blip2rtError(f"{source} has no equal in Hugging Face's format: {'; '.join(faults)}")
    assert config.vision.vit is not None, "that is among the faults"
    require_tokenizers(config)
    eps, other = config.vision_norm_eps, config.vision.vit.layer_norm_eps
    if eps != other:
        print(
            f"note: Hugging Face has one epsilon for all norms of an encoder; the last one has {eps:g}, and {other:g} "
            "there (blip2rt reads its own again)",
            file=sys.stderr,
        )
    model = checkpoints.load_model(source, streamed=True, config=config, parts=given)
    with _whole(out) as folder:
        tokenizer = _save_processor(config, folder)
        theirs = hugging_face_config(config, tokenizer, dtype)
        theirs.save_pretrained(folder)
        save_tensors(model, folder, dtype, theirs)
        _save_own(model, folder)


def _faults(config: Any) -> list[str]:
    """What of a model only ours has."""
    vision, qformer = config.vision, config.qformer
    conditions = {
        f"its image encoder is {vision.source}, not EVA-CLIP's": vision.vit is None,
        "its encoder has CLIP's norm before the first block": vision.vit is not None and vision.vit.pre_norm,
        "its images are not square": vision.height != vision.width,
        "position embeddings are learned on top of the encoder's (learned_positions)": config.learned_positions,
        "the prefix passes a LayerNorm (normalize_prefix)": config.stage == 2 and config.normalize_prefix,
        "each query has an offset of its own (query_offsets)": config.stage == 2 and config.query_offsets,
        "its Q-Former reads the question too (question_input)": config.question_input,
        "the queries' LayerNorm is not the text's (query_gain)": qformer.text_branch and qformer.query_gain is not None,
        "its language model is a GGUF file": config.llm is not None and config.llm.source.endswith(".gguf"),
    }
    return [what for what, true in conditions.items() if true]


def hugging_face_config(config: Any, tokenizer: Any, dtype: str) -> Any:
    """Our config as transformers' Blip2Config."""
    from transformers import Blip2Config

    from blip2rt.modeling.llm import text_config

    vision, qformer, vit = config.vision, config.qformer, config.vision.vit
    text = text_config(config.llm.source, config.llm.overrides) if config.llm is not None else None
    if text is not None and len(config.llm.end_ids) == 1:
        text.eos_token_id = config.llm.end_ids[0]
    if text is not None and config.llm.empty_prompt_ids:
        text.bos_token_id = config.llm.empty_prompt_ids[0]
    theirs = Blip2Config(
        vision_config={
            "hidden_size": vit.width, "intermediate_size": vit.mlp_width, "num_hidden_layers": vit.layers,
            "num_attention_heads": vit.heads, "image_size": vision.height, "patch_size": vit.patch,
            "hidden_act": vit.activation, "layer_norm_eps": vit.layer_norm_eps, "qkv_bias": vit.qkv_bias,
        },
        qformer_config={
            "vocab_size": qformer.vocab_size, "hidden_size": qformer.hidden_size, "num_hidden_layers": qformer.layers,
            "num_attention_heads": qformer.heads, "intermediate_size": qformer.intermediate_size,
            "max_position_embeddings": qformer.max_positions, "layer_norm_eps": qformer.layer_norm_eps,
            "cross_attention_frequency": qformer.cross_attention_frequency, "hidden_dropout_prob": qformer.dropout,
            "attention_probs_dropout_prob": qformer.attention_dropout, "encoder_hidden_size": vit.width,
            "use_qformer_text_input": qformer.text_branch,
        },
        **({} if text is None else {"text_config": text.to_dict(), "image_token_index": _image_token(tokenizer)}),
        num_query_tokens=qformer.queries,
        image_text_hidden_size=config.embed_dim,
    )  # fmt: skip
    setattr(theirs, "dtype" if hasattr(theirs, "dtype") else "torch_dtype", dtype)  # older releases' name
    theirs.architectures = ["Blip2ForImageTextRetrieval" if text is None else "Blip2ForConditionalGeneration"]
    return theirs


def _image_token(tokenizer: Any) -> int:
    return int(tokenizer.convert_tokens_to_ids("<image>"))


def _save_processor(config: Any, folder: Path) -> Any:
    """Image processor and tokenizer; returns the tokenizer, which may have got <image>."""
    from transformers import Blip2Processor, BlipImageProcessor

    from blip2rt.modeling.checkpoints import qformer_tokenizer
    from blip2rt.modeling.llm import llm_tokenizer
    from blip2rt.modeling.preprocessing import FILTERS

    vision = config.vision
    images = BlipImageProcessor(
        size={"height": vision.height, "width": vision.width}, image_mean=list(vision.mean), image_std=list(vision.std),
        resample=FILTERS.index(vision.resample),
    )  # fmt: skip
    if config.stage == 1:
        tokenizer = qformer_tokenizer(config)
        images.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return tokenizer
    tokenizer = llm_tokenizer(config.llm)
    Blip2Processor(images, tokenizer, config.qformer.queries).save_pretrained(folder)
    return tokenizer


def save_tensors(model: Any, folder: Path, dtype: str, theirs: Any) -> None:
    """Shards of at most SHARD bytes and their index, or one file."""
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    shard: dict[str, Any] = {}
    index: dict[str, str] = {}
    shards: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        nonlocal shard, size
        save_file(shard, folder / f"part-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(shard))
        shard, size = {}, 0

    for name, tensor in _tensors(model, theirs):
        stored = tensor.to(kind).contiguous()
        if shard and size + stored.nbytes > SHARD:
            flush()
        shard[name], size, total = stored, size + stored.nbytes, total + stored.nbytes
    flush()
    if len(shards) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        index.update(dict.fromkeys(names, file))
    data = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(data, indent=2) + "\n")


def _tensors(model: Any, theirs: Any) -> Iterator[tuple[str, Any]]:
    """Hugging Face's names and the values of all parameters, tied ones once."""
    from blip2rt.modeling import streaming
    from blip2rt.modeling.names import hugging_face_name

    table = None if model.config.llm is None else model.llm.get_input_embeddings().weight
    image_token = theirs.image_token_index
    if table is not None and image_token >= len(table):
        raise Blip2rtError(
            f"the language model has {len(table)} embeddings and its tokenizer no id below that to spare for <image>, "
            "which Hugging Face's BLIP-2 needs; resize the model's embeddings first"
        )
    done: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        there = hugging_face_name(name)
        if there is not None and id(parameter) not in done:
            done.add(id(parameter))
            yield there.partition("|")[0], streaming.read(parameter)


def _save_own(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    from blip2rt.modeling import streaming
    from blip2rt.modeling.hugging_face import OWN_CONFIG, OWN_WEIGHTS
    from blip2rt.modeling.names import hugging_face_name

    own = {
        name: streaming.read(parameter).contiguous()
        for name, parameter in model.named_parameters()
        if hugging_face_name(name) is None
    }
    if own:
        save_file(own, folder / OWN_WEIGHTS)
    (folder / OWN_CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
