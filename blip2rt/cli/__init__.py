"""The command `blip2rt`: parse, call one function, print. Results on stdout, everything else on stderr.

Exit codes: 0 all went well, 1 some images failed and others did not, 2 a mistake in the input (one line says which),
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..command_line import Parser, complain, flags_named, nonempty, path, run
from ..errors import ImageError, OptionError, one_line, printable
from ..gallery import flags
from ..options import Options
from ..serve import cli as serve_cli

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..model import Model
    from ..results import Scored

_TOGETHER = 8  # images of `ask` that are in memory

# Options whose flag has another name than the field; the field's name is accepted, too.
_SHORT = {"num_beams": "--beams", "do_sample": "--sample", "bad_words": "--bad-word", "stop_strings": "--stop-string"}
_RENAMED = {"--" + field.replace("_", "-"): flag for field, flag in _SHORT.items()}
_FLAGS = {
    name: "--" + name.replace("_", "-") for name in (*(field.name for field in fields(Options)), "threads", "device")
}
_FLAGS |= _SHORT | flags.FLAGS


def main(arguments: list[str] | None = None) -> int:
    """Run `blip2rt` with `arguments`, or the process's own; return the exit code."""
    return run("blip2rt", lambda: _call(_parser().parse_args(arguments)))


def _call(args: argparse.Namespace) -> int:
    with flags_named(_FLAGS):
        code: int = args.run(args)
    return code


def _caption(args: argparse.Namespace) -> int:
    """Describe pictures, on standard output or in files. A bad picture does not stop the others."""
    if args.stream:
        _check_stream(args)
        return _say(_load(args).stream(_image(args.images[0]), args.prompt, question=args.ask, **_decoding(args)))
    from ..gallery import commands

    return commands.caption(args, partial(_load, args), _decoding(args))


def _ask(args: argparse.Namespace) -> int:
    """Answer a question about each image. A bad image does not stop the others."""
    options = _decoding(args)
    if args.stream:
        _check_stream(args)
        return _say(_load(args).stream(_image(args.images[0]), question=args.question, **options))
    model, failed = _load(args), 0
    for start in range(0, len(args.images), _TOGETHER):
        names = args.images[start : start + _TOGETHER]
        answers = model.ask([_image(name) for name in names], args.question, keep_going=True, **options)
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, ImageError):
                failed += 1
                if args.json:
                    print(json.dumps({"image": name, "error": str(answer)}, ensure_ascii=False))
                complain("blip2rt", answer)
            elif args.json:
                print(json.dumps(_answer(name, args.question, answer, model), ensure_ascii=False))
            else:
                print(answer.text if len(args.images) == 1 else f"{one_line(name)}\t{one_line(answer.text)}")
    return 2 if failed == len(args.images) else bool(failed)


def _answer(name: str, question: str, answer: Scored, model: Model) -> dict[str, Any]:
    """A line of JSON, as docs/json.md has it."""
    from ..gallery.outputs import Description

    about = (round(answer.score, 4), model.bundle.manifest.name, sum(answer.timings), answer.truncated)
    return Description(name, [answer.text], *about).row(timed=True) | {"question": question, "answer": answer.text}


def _check_stream(args: argparse.Namespace) -> None:
    many = len(args.images) > 1
    if args.command == "caption":
        many = not flags.sources_of(args).single or flags.writes(args)
    if many or args.json:
        raise OptionError("--stream prints one text as it comes: give one image, no file to write, and no --json")


def _match(args: argparse.Namespace) -> int:
    """Print how well each text describes the image, the best first."""
    matches = _load(args).match(_image(args.image), args.texts)
    for text, match in sorted(zip(args.texts, matches, strict=True), key=lambda row: -row[1].score):
        if args.json:
            print(json.dumps({"image": args.image, "text": text, **asdict(match)}, ensure_ascii=False))
        else:
            line = f"score {match.score:6.2f}  probability {match.probability:.3f}  cosine {match.cosine:6.3f}"
            line += "" if match.likelihood is None else f"  likelihood {match.likelihood:6.2f}"
            print(line if len(args.texts) == 1 else f"{line}  {one_line(text)}")
    return 0


def _index(args: argparse.Namespace) -> int:
    from ..gallery import commands

    return commands.index(args, partial(_load, args))


def _search(args: argparse.Namespace) -> int:
    from ..gallery import commands

    return commands.search(args, partial(_load, args))


def _duplicates(args: argparse.Namespace) -> int:
    from ..gallery import commands

    return commands.duplicates(args, partial(_load, args))


def _info(args: argparse.Namespace) -> int:
    from .info import describe, to_dict

    bundle = _read_bundle(args.bundle)
    print(json.dumps(to_dict(bundle), indent=2, ensure_ascii=False) if args.json else describe(bundle))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..bundle import MANIFEST, embedded, verify

    folder = args.bundle or embedded()
    signed = ""
    if args.key is not None:
        from ..bundle.signature import verify_signature

        signed = f", signed: {printable(verify_signature(Path(folder) / MANIFEST, args.key))}"
    bundle = verify(folder, _progress() if sys.stderr.isatty() else None)
    files = bundle.manifest.files or {}
    print(f"{one_line(str(bundle.path))}: {len(files)} files, {bundle.size / 1e6:.1f} MB, all as exported{signed}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine, report, to_dict

    findings = examine()
    text, code = report(findings)
    print(json.dumps(to_dict(findings), indent=2, ensure_ascii=False) if args.json else text)
    return code


def _completion(args: argparse.Namespace) -> int:
    """Print what a shell reads to complete commands, options and files."""
    import shtab

    parser = _parser()
    assert parser._subparsers is not None
    for command in parser._subparsers._group_actions[0].choices.values():  # type: ignore[union-attr]
        for action in command._actions:
            if action.metavar in ("IMAGE", "FILE"):
                action.complete = shtab.FILE
            elif action.metavar == "BUNDLE":
                action.complete = shtab.DIRECTORY
    print(shtab.complete(parser, args.shell))
    return 0


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


def _load(args: argparse.Namespace, threads: int | None = None) -> Model:
    """threads: in place of those that were asked for."""
    from ..loading import load

    threads = args.threads if threads is None else threads
    return load(args.model, backend=args.backend, device=args.device, threads=threads, scaled_jpeg=args.scaled_jpeg)


def _read_bundle(path: str | None) -> Bundle:
    from ..bundle import embedded, read

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


def _parser() -> Parser:
    parser = Parser(
        description="Captions, answers and matches for images, by BLIP-2 on this machine.",
        epilog="exit codes: 0 all went well, 1 some images failed, 2 a mistake, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, work: Callable[[argparse.Namespace], int], about: str, **more: Any) -> Parser:
        more.setdefault("description", f"{about[0].upper()}{about[1:]}.")
        command: Parser = commands.add_parser(name, help=about, **more)
        command.set_defaults(run=work)
        return command

    one_image = "image file; - reads it from standard input"
    command = add("caption", _caption, "describe images and folders of them", renamed=_RENAMED,
                  description="Describe images. One image: its caption. Several, or a folder: path<TAB>caption a line, "
                  "or files.\nA bad image does not stop the others; the exit code is then 1, or 2 where all are "
                  "bad.")  # fmt: skip
    flags.add_sources(command, "image, folder, pattern or shard; - reads an image, or a list, from standard input")
    decoding = command.add_argument_group("decoding")
    decoding.add_argument("--prompt", metavar="TEXT", help="words that the caption goes on from")
    decoding.add_argument(
        "--num-captions", type=int, default=argparse.SUPPRESS, metavar="N",
        help="captions of each image, best first (default: 1)",
    )  # fmt: skip
    _add_decoding(decoding)
    _add_sampling(command)
    flags.add_outputs(command)
    _add_model(command)
    _add_output(command, stream=True)

    command = add("ask", _ask, "answer a question about images", renamed=_RENAMED)
    command.add_argument("images", nargs="+", type=nonempty, metavar="IMAGE",
                         help=f"{one_image}; of several: path<TAB>answer a line")  # fmt: skip
    command.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    _add_decoding(command.add_argument_group("decoding"))
    _add_sampling(command)
    _add_model(command)
    _add_output(command, stream=True)

    command = add("match", _match, "tell how well texts describe an image",
                  description="Tell how well texts describe an image, the best first.\n\n"
                  "score        ranks texts for an image or images for a text: higher is better, on no fixed scale\n"
                  "probability  that the text describes the image, 0 to 1, by the matching head\n"
                  "cosine       between the text's embedding and the image's nearest one, -1 to 1\n"
                  "likelihood   log p(text | image) - log p(text), by the language model, where it counts")  # fmt: skip
    command.add_argument("image", type=nonempty, metavar="IMAGE", help=one_image)
    command.add_argument("texts", nargs="+", metavar="TEXT", help="a text, in quotes; several are ranked")
    _add_model(command)
    _add_output(command)

    flags.add_commands(add, _index, _search, _duplicates, _add_model)

    where = "a bundle's folder (default: the embedded model, nano)"
    command = add("serve", serve_cli.run, "answer over HTTP, as OpenAI and Ollama do",
                  description="Answer over HTTP: the routes of OpenAI and Ollama, our own, and a page for a browser at "
                  "/.\nNothing is fetched, and nobody but this machine may call, unless you say so.")  # fmt: skip
    serve_cli.add_options(command)
    _add_model(command)

    command = add("info", _info, "show what a bundle holds", renamed={"--model": ""})
    command.add_argument("bundle", nargs="?", type=nonempty, metavar="BUNDLE", help=where)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command = add("verify", _verify, "check the sha256 of a bundle's files", renamed={"--model": ""})
    command.add_argument("bundle", nargs="?", type=nonempty, metavar="BUNDLE", help=where)
    command.add_argument("--key", type=path, metavar="FILE",
                         help="check the manifest's signature, blip2rt.json.minisig, by this public key of minisign, "
                         "too")  # fmt: skip
    command = add("doctor", _doctor, "examine this machine: what is missing, and the command that mends it")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command = add("completion", _completion, "print what a shell reads to complete this command",
                  description="Print what a shell reads to complete this command; needs the package shtab.\n\n"
                  "bash  eval \"$(blip2rt completion bash)\" in ~/.bashrc\n"
                  "zsh   blip2rt completion zsh > ~/.zfunc/_blip2rt, with ~/.zfunc in $fpath\n"
                  "fish  blip2rt completion fish > ~/.config/fish/completions/blip2rt.fish")  # fmt: skip
    command.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    return parser


def _add_decoding(group: argparse._ArgumentGroup) -> None:
    """Options of every search; what is not given stays out of the namespace, and is the bundle's."""
    add = _adder(group)
    add("--beams", int, "N", "beam width (default: the bundle's, for nano 3; 1 is greedy)", dest="num_beams")
    add("--max-new-tokens", int, "N", "longest text, in tokens (default: the bundle's)")
    add("--min-new-tokens", int, "N", "shortest text, in tokens (default: the bundle's)")
    add("--length-penalty", float, "X",
        "with beams, above 0 favours longer texts and below 0 shorter ones (default: the bundle's)")  # fmt: skip
    group.add_argument("--early-stopping", action="store_true", default=argparse.SUPPRESS,
                       help="with beams, end as soon as there are as many texts as beams")  # fmt: skip
    add("--repetition-penalty", float, "X", "above 1 makes words that were said less likely (default: 1)")
    add("--no-repeat-ngram-size", int, "N", "let no N tokens in a row come twice (default: 0, which is off)")
    add("--bad-word", str, "TEXT", "never say TEXT; may be given several times", dest="bad_words", action="append")
    add("--forced-prefix", str, "TEXT", "begin the text with TEXT")
    add("--stop-string", str, "TEXT", "end the text where TEXT comes up; may be given several times",
        dest="stop_strings", action="append")  # fmt: skip
    add("--max-time", float, "SECONDS", "end the text after so many seconds, as far as it is")


def _add_sampling(command: Parser) -> None:
    group = command.add_argument_group("sampling (with --sample)")
    add = _adder(group)
    group.add_argument("--sample", dest="do_sample", action="store_true", default=argparse.SUPPRESS,
                       help="draw tokens; with beams, draw their candidates")  # fmt: skip
    add("--temperature", float, "X", "above 1 is wilder, below 1 tamer (default: 1)")
    add("--top-k", int, "N", "draw from the N likeliest tokens; 0 draws from all (default: 50)")
    add("--top-p", float, "P", "draw from the likeliest tokens that have probability P together (default: 1)")
    add("--min-p", float, "P", "draw from tokens at least P times as likely as the likeliest (default: 0)")
    add("--seed", int, "N", "draw the same text for the same number (default: another number each time)")


def _adder(group: argparse._ArgumentGroup) -> Callable[..., None]:
    """Add an option of a field of Options to `group`."""

    def add(flag: str, kind: Callable[[str], Any], metavar: str, about: str, **more: Any) -> None:
        name = more.pop("dest", flag[2:].replace("-", "_"))
        group.add_argument(flag, dest=name, type=kind, metavar=metavar, help=about, default=argparse.SUPPRESS, **more)

    return add


def _add_model(command: Parser) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--model", type=nonempty, metavar="BUNDLE",
                       help="a bundle's folder (default: the embedded model, nano)")  # fmt: skip
    group.add_argument("--backend", default=backends.DEFAULT, choices=backends.names(),
                       help="ONNX Runtime (ort), or TensorRT (trt) for a bundle that was exported for it")  # fmt: skip
    group.add_argument("--device", metavar="DEVICE", help="cpu for ort, cuda for trt (default: the backend's)")
    group.add_argument("--threads", type=int, metavar="N", help="threads to use in all (default: every physical core)")
    group.add_argument("--scaled-jpeg", action="store_true",
                       help="decode large JPEGs at a fraction of their size: faster, almost the same")  # fmt: skip


def _add_output(command: Parser, stream: bool = False) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")
    if stream:
        group.add_argument("--stream", action="store_true", help="print the text as it comes; one image, no beams")
