"""The command `blip2rt`: parses, calls one function, prints. Results on stdout, everything else on stderr.

Exit codes: 0 all went well, 2 a mistake in the input (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .errors import Blip2rtError, ImageError, OptionError
from .options import Options

if TYPE_CHECKING:
    from .bundle import Bundle
    from .model import Model

# Options whose flag has another name.
_FLAGS = {"num_beams": "--beams", "do_sample": "--sample", "bad_words": "--bad-word", "stop_strings": "--stop-string"}


def main(arguments: list[str] | None = None) -> int:
    """Runs `blip2rt` with `arguments`, or the process's own; gives the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # names and texts that the terminal cannot show
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata: what matters is whether the image can be read
    args = _parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except OptionError as error:
        return _complain(_as_flags(str(error)))
    except Blip2rtError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        _abandon_stdout()
        return 0
    except OSError as error:  # stdout is on a full disk
        _abandon_stdout()
        return _complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except MemoryError:
        return _complain("not enough memory")
    return code


def _complain(error: object) -> int:
    print(f"blip2rt: error: {error}", file=sys.stderr)
    return 2


def _as_flags(message: str) -> str:
    """Options by the names that they have on the command line."""
    for name in (*(field.name for field in fields(Options)), "threads"):
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        place = r"\b" if "_" in name else r"(?:(?<=; )|^)"  # else it is a word like any other
        message = re.sub(rf"{place}{name}\b", flag, message)
    return message


def _abandon_stdout() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not stumble over it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _caption(args: argparse.Namespace) -> int:
    """One image: its caption(s). Several: path<TAB>caption a line. A bad image does not stop the others."""
    model = _load(args)
    images = map(_image, args.images)
    if args.stream:
        _check_stream(args, len(args.images))
        return _say(model.stream(next(images), args.prompt, **_decoding(args)))
    results = model.caption_each(images, prompt=args.prompt, keep_going=True, **_decoding(args))
    code = 0
    for path, result in zip(args.images, results, strict=True):
        if isinstance(result, ImageError):
            code = _complain(result)
            if args.json:
                print(json.dumps({"image": path, "error": str(result)}, ensure_ascii=False), flush=True)
            continue
        captions = [result] if isinstance(result, str) else result
        if args.json:
            line: dict[str, Any] = {"image": path, "caption": captions[0]}
            if len(captions) > 1:
                line["captions"] = captions
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            for caption in captions:
                print(caption if len(args.images) == 1 else f"{path}\t{caption}", flush=True)
    return code


def _ask(args: argparse.Namespace) -> int:
    options = _decoding(args)
    if args.stream:
        _check_stream(args, 1)
        return _say(_load(args).stream(_image(args.image), question=args.question, **options))
    answer = _load(args).ask(_image(args.image), args.question, **options)
    print(json.dumps({"image": args.image, "question": args.question, "answer": answer}, ensure_ascii=False)
          if args.json else answer)  # fmt: skip
    return 0


def _check_stream(args: argparse.Namespace, images: int) -> None:
    if images > 1 or args.json:
        raise OptionError("--stream prints one text as it comes: give one image, and no --json")


def _match(args: argparse.Namespace) -> int:
    match = _load(args).match(_image(args.image), args.text)
    if args.json:
        print(json.dumps({"image": args.image, "text": args.text, **asdict(match)}, ensure_ascii=False))
    else:
        print(f"probability {match.probability:.3f}  cosine {match.cosine:.3f}  score {match.score:.2f}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from .info import describe, to_dict

    bundle = _read_bundle(args.bundle)
    print(json.dumps(to_dict(bundle), indent=2, ensure_ascii=False) if args.json else describe(bundle))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from .bundle import verify

    bundle = verify(args.bundle, _progress() if sys.stderr.isatty() else None)
    files = bundle.manifest.files or {}
    print(f"{bundle.path}: {len(files)} files, {bundle.size / 1e6:.1f} MB, all as exported")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, report

    text, code = report(examine())
    print(text)
    return code


def _progress() -> Callable[[int, int], None]:
    """A line on the terminal that counts per cent, for bundles that take their time."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown and total > 200_000_000:
            shown = percent
            print(f"\rverifying {percent:3d}%", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _load(args: argparse.Namespace) -> Model:
    from .model import load

    return load(
        args.model, backend=args.backend, device=args.device, threads=args.threads, scaled_jpeg=args.scaled_jpeg
    )


def _read_bundle(path: str | None) -> Bundle:
    from .bundle import embedded, read

    return read(embedded() if path is None else path)


def _image(path: str) -> str | bytes:
    """`-` is the image that comes through standard input."""
    if path == "-" and sys.stdin is None:
        raise ImageError("- is standard input, which is closed: give a file, or send the image through a pipe")
    return sys.stdin.buffer.read() if path == "-" else path


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
    """The options of generation that were given."""
    return {field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)}


def _say(pieces: Iterator[str]) -> int:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as every other error does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"blip2rt: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="blip2rt", description="Captions, answers and matches for images, by BLIP-2 on this machine.")
    parser.add_argument("--version", action="version", version=f"blip2rt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("caption", help="describe images", description=_caption.__doc__)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file; - reads one from standard input")
    command.add_argument("--prompt", help="words that the caption goes on from")
    command.add_argument("--num-captions", type=int, default=argparse.SUPPRESS, metavar="N",
                         help="captions for each image, best first")  # fmt: skip
    _add_decoding(command)
    _add_model(command, _caption)

    command = commands.add_parser("ask", help="answer a question about an image")
    command.add_argument("image", metavar="IMAGE", help="image file; - reads it from standard input")
    command.add_argument("question", metavar="QUESTION")
    _add_decoding(command)
    _add_model(command, _ask)

    command = commands.add_parser("match", help="tell how well a text describes an image")
    command.add_argument("image", metavar="IMAGE", help="image file; - reads it from standard input")
    command.add_argument("text", metavar="TEXT")
    _add_model(command, _match)

    command = commands.add_parser("info", help="show what a bundle holds")
    command.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a bundle's folder (default: the embedded model)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_info)

    command = commands.add_parser("verify", help="check the sha256 of a bundle's files")
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    command.set_defaults(run=_verify)

    command = commands.add_parser("doctor", help="examine this machine: driver, TensorRT, memory, what is missing")
    command.set_defaults(run=_doctor)
    return parser


def _add_decoding(command: argparse.ArgumentParser) -> None:
    """Flags of the fields of Options that make sense on a command line; what is not given stays out."""

    def add(flag: str, kind: Callable[[str], Any], metavar: str, about: str, **more: Any) -> None:
        name = more.pop("dest", flag[2:].replace("-", "_"))
        command.add_argument(flag, dest=name, type=kind, metavar=metavar, help=about, default=argparse.SUPPRESS, **more)

    def switch(flag: str, name: str, about: str) -> None:
        command.add_argument(flag, dest=name, action="store_true", help=about, default=argparse.SUPPRESS)

    add("--beams", int, "N", "beams of the search; 1 is greedy", dest="num_beams")
    add("--max-new-tokens", int, "N", "longest text, in tokens")
    add("--min-new-tokens", int, "N", "shortest text, in tokens")
    switch("--early-stopping", "early_stopping", "of beams: end with as many texts as there are beams")
    add("--length-penalty", float, "X", "above 0 favours longer texts, below 0 shorter ones")
    add("--repetition-penalty", float, "X", "above 1 makes words that were said less likely")
    add("--no-repeat-ngram-size", int, "N", "no N tokens in a row come twice")
    add("--bad-word", str, "TEXT", "never say it; may be given several times", dest="bad_words", action="append")
    add("--forced-prefix", str, "TEXT", "the text begins with it")
    add("--stop-string", str, "TEXT", "end where it comes up; may be repeated", dest="stop_strings", action="append")
    add("--max-time", float, "SECONDS", "end where the text is by then")
    switch("--sample", "do_sample", "draw tokens; with beams, draw their candidates")
    add("--temperature", float, "X", "of sampling: above 1 is wilder, below 1 tamer")
    add("--top-k", int, "N", "of sampling: from the N likeliest tokens (default: 50; 0: all)")
    add("--top-p", float, "P", "of sampling: from the likeliest tokens that have probability P together")
    add("--min-p", float, "P", "of sampling: from tokens at least P times as likely as the likeliest")
    add("--seed", int, "N", "of sampling: the same text for the same number")
    command.add_argument("--stream", action="store_true", help="print the text as it comes; one image, no beams")


def _add_model(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    command.add_argument("--model", metavar="BUNDLE", help="a bundle's folder (default: the embedded model)")
    command.add_argument("--backend", default="ort", choices=("ort", "trt"),
                         help="ONNX Runtime (default), or TensorRT for a bundle that was exported for it")  # fmt: skip
    command.add_argument("--device", choices=("cpu", "cuda"), help="of ort: cpu (default) or cuda")
    command.add_argument("--threads", type=int, metavar="N", help="threads to use (default: every physical core)")
    command.add_argument("--scaled-jpeg", action="store_true",
                         help="decode large JPEGs at a fraction of their size: faster, almost the same")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print one JSON object a line")
    command.set_defaults(run=run)
