"""The parser of the command `blip2rt`. Imports little, because every call builds it."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from .. import backends
from ..command_line import Parser, nonempty, path, whole
from ..gallery import flags as gallery_flags
from ..options import Options

Handler = Callable[[argparse.Namespace], int]
Adder = Callable[[Parser], object]  # adds a command's flags

# Options whose flag has another name than the field; the field's name is accepted, too.
_SHORT = {"num_beams": "--beams", "do_sample": "--sample", "bad_words": "--bad-word", "stop_strings": "--stop-string"}
_ALIASES = {"--" + field.replace("_", "-"): flag for field, flag in _SHORT.items()}
_EXPLAINED = dict.fromkeys(("--prefix", "--suffix"), 'give --template "photo of {caption}"')
_FIELDS = [*(field.name for field in fields(Options)), "threads", "device", "max_pixels", "run_timeout"]
FLAGS = {name: "--" + name.replace("_", "-") for name in _FIELDS} | _SHORT | gallery_flags.FLAGS

_CAPTION = """Describe images. One image: its caption. Several, or a folder: path<TAB>caption a line, or files.
A bad image does not stop the others; the exit status is then 1, or 2 if all are bad."""
_MATCH = """Score how well texts describe an image, best first.

score        ranks texts for an image, or images for a text: higher is better, on no fixed scale
probability  that the text is true of the image, 0 to 1, calibrated
itm          probability of a match by the matching head alone, 0 to 1
cosine       between the text's embedding and the image's nearest one, -1 to 1
likelihood   log p(text | image) - log p(text), by the language model, if the bundle weighs it"""
_FILL = """Fill a JSON Schema from images: one JSON object a line, which is valid under the schema.
Each field asks its description or, without one, its name."""
_TAG = """Label pictures: comma-separated labels a picture, likeliest first, or files.
Probabilities are calibrated on photographs: how often people name the label in one of five captions."""
_POOL = """Embed captions of other pictures, for `blip2rt caption --pool FILE`: those nearest to
a picture guide its caption, which takes on their words without training."""
_SERVE = """Serve over HTTP: the routes of OpenAI and Ollama, our own, and a web page at /.
By default nothing is fetched, and only this machine may connect."""
_STDIO = """Answer requests on standard input, one JSON object a line, with the model kept open:
captions, answers, matches, labels, forms and embeddings, also streamed and
cancelled.

  {"id": 1, "task": "caption", "image": "photo.jpg"}

Ends with its input, once every request has been answered."""
_BUNDLE = "a bundle's folder, or hf://USER/REPOSITORY (default: the embedded model, nano)"
_PULL = """Download a bundle from the Hugging Face Hub, or the newest commit of one. Prints its folder.

The name hf://USER/REPOSITORY then stands for this commit in --model and load(), without network access.
hf://USER/REPOSITORY@REVISION names a branch, a tag or a commit. An interrupted download resumes."""
_SOURCES = "image, folder, pattern or shard; - reads an image, or a list, from standard input"
_ONE_IMAGE = "image file; - reads it from standard input"

# flag, type, metavar, help. An option that is not given stays out of the namespace: the bundle's default applies.
_DECODING: tuple[tuple[str, Any, str, str], ...] = (
    ("--beams", int, "N", "beam width (default: the bundle's, for nano 3; 1 is greedy)"),
    ("--max-new-tokens", int, "N", "longest text, in tokens (default: the bundle's)"),
    ("--min-new-tokens", int, "N", "shortest text, in tokens (default: the bundle's)"),
    ("--length-penalty", float, "X", "with beams: above 0 prefers longer texts (default: the bundle's)"),
    ("--early-stopping", bool, "", "with beams: end as soon as there are as many texts as beams"),
    ("--repetition-penalty", float, "X", "above 1 makes repeated words less likely (default: 1)"),
    ("--no-repeat-ngram-size", int, "N", "let no N consecutive tokens occur twice (default: 0, off)"),
    ("--bad-word", list, "TEXT", "never generate TEXT; may be repeated"),
    ("--forced-prefix", str, "TEXT", "begin the text with TEXT"),
    ("--stop-string", list, "TEXT", "end the text at TEXT; may be repeated"),
    ("--max-time", float, "SECONDS", "end the text after this time, finished or not"),
)
_SAMPLING: tuple[tuple[str, Any, str, str], ...] = (
    ("--sample", bool, "", "sample tokens; with beams, sample their candidates"),
    ("--temperature", float, "X", "above 1 is more varied, below 1 less (default: 1)"),
    ("--top-k", int, "N", "sample from the N most likely tokens; 0 is all (default: 50)"),
    ("--top-p", float, "P", "sample from the most likely tokens with total probability P (default: 1)"),
    ("--min-p", float, "P", "sample from tokens at least P times as likely as the most likely (default: 0)"),
    ("--seed", int, "N", "the same seed gives the same text (default: random)"),
)


def build_parser(handlers: Mapping[str, Handler], words: Sequence[str] = ()) -> Parser:
    """The parser of all commands. handlers: the function that runs each command, by command name.

    words: what will be parsed; if they name one of the handlers, the parser has only that command.
    """
    parser = Parser(
        description="Captions, answers and matches for images, by BLIP-2 on this machine.",
        epilog="exit status: 0 success, 1 some images failed, 2 a mistake, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in words if not word.startswith("-")), "")
    only = named if named in handlers and named != "help" else None  # the argument of `help` is any command

    def add(name: str, about: str, arguments: Adder, model: bool = True, output: bool = False, **more: Any) -> None:
        if only in (None, name):
            more.setdefault("description", f"{about[0].upper()}{about[1:]}.")
            command: Parser = commands.add_parser(name, help=about, **more)
            command.set_defaults(run=handlers.get(name))
            arguments(command)
            if model:
                _add_model(command, pixels=name != "serve")
            if output:
                _add_output(command, stream=name in ("caption", "ask"))

    more: dict[str, Any] = {"renamed": _ALIASES, "explained": _EXPLAINED}
    add("caption", "describe images and folders of them", _add_caption, output=True, description=_CAPTION, **more)
    add("ask", "answer a question about images", _add_ask, output=True, renamed=_ALIASES)
    add("match", "score how well texts describe an image", _add_match, output=True, description=_MATCH)
    add("fill", "fill a JSON Schema from images", _add_fill, description=_FILL)
    add("tag", "label pictures and folders of them", _add_tag, output=True, description=_TAG)
    for name, (about, arguments) in gallery_flags.COMMANDS.items():
        add(name, about, arguments)
    add("pool", "prepare captions that guide `caption`", _add_pool, description=_POOL)
    add("serve", "serve over HTTP, like OpenAI and Ollama", _add_serve, description=_SERVE)
    add("stdio", "answer JSON lines on standard input", _add_stdio, description=_STDIO)
    add("info", "show what a bundle holds", _add_info, model=False)
    add("verify", "check the sha256 of a bundle's files, its graphs and its tokenizers", _add_verify, model=False)
    add("pull", "download a bundle from the Hugging Face Hub", _add_pull, model=False, description=_PULL)
    add("doctor", "diagnose this machine: what is missing, and how to install it", _add_json, model=False)
    add("help", "show the help of a command", partial(_add_topic, topics=[*commands.choices, "help"]), model=False)
    return parser


def _add_match(command: Parser) -> None:
    command.add_argument("image", type=nonempty, metavar="IMAGE", help=_ONE_IMAGE)
    command.add_argument("texts", nargs="+", metavar="TEXT", help="a text, in quotes; several are ranked")


def _add_fill(command: Parser) -> None:
    command.add_argument("schema", type=path, metavar="SCHEMA", help="file with a JSON Schema")
    command.add_argument("images", nargs="+", type=nonempty, metavar="IMAGE", help=_ONE_IMAGE)
    command.add_argument("--question", metavar="TEXT", help='what a field such as "answer" asks (default: a caption)')


def _add_tag(command: Parser) -> None:
    gallery_flags.add_sources(command, _SOURCES)
    gallery_flags.add_tag(command)


def _add_pool(command: Parser) -> None:
    command.add_argument("action", choices=("build",), help="embed the captions for the model")
    command.add_argument("file", type=path, metavar="CAPTIONS", help="text file with one caption a line")
    command.add_argument("--out", type=path, required=True, metavar="FILE", help="the pool to write")


def _add_serve(command: Parser) -> None:
    from ..serve import cli

    command.set_defaults(run=cli.run)
    cli.add_options(command)


def _add_stdio(command: Parser) -> None:
    about = "requests to run at the same time"
    command.add_argument("--parallel", type=whole(1, 1024), default=4, metavar="N", help=about)


def _add_info(command: Parser) -> None:
    _add_bundle(command)
    _add_json(command)


def _add_verify(command: Parser) -> None:
    _add_bundle(command)
    _add_trusted_graphs(command)


def _add_pull(command: Parser) -> None:
    command.add_argument("bundle", type=nonempty, metavar="hf://USER/REPOSITORY[@REVISION]", help="the bundle's name")


def _add_topic(command: Parser, topics: Sequence[str]) -> None:
    command.add_argument("topic", nargs="?", choices=topics, metavar="COMMAND", help="the command")


def _add_json(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_caption(command: Parser) -> None:
    gallery_flags.add_sources(command, _SOURCES)
    decoding = command.add_argument_group("decoding")
    decoding.add_argument("--prompt", metavar="TEXT", help="text that the caption continues")
    _add_options(decoding, (("--num-captions", int, "N", "captions of each image, best first (default: 1)"),))
    _add_options(decoding, _DECODING)
    _add_options(command.add_argument_group("sampling (with --sample)"), _SAMPLING)
    gallery_flags.add_outputs(command)


def _add_ask(command: Parser) -> None:
    images = f"{_ONE_IMAGE}; several print path<TAB>answer lines"
    command.add_argument("images", nargs="+", type=nonempty, metavar="IMAGE", help=images)
    command.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    _add_options(command.add_argument_group("decoding"), _DECODING)
    _add_options(command.add_argument_group("sampling (with --sample)"), _SAMPLING)


def _add_options(group: argparse._ArgumentGroup, options: tuple[tuple[str, Any, str, str], ...]) -> None:
    """Add flags of fields of Options. A bool is a switch, a list may be repeated."""
    names = {flag: field for field, flag in FLAGS.items()}
    for flag, kind, metavar, about in options:
        how: dict[str, Any] = {"type": kind, "metavar": metavar}
        if kind is bool:
            how = {"action": "store_true"}
        elif kind is list:
            how = {"action": "append", "metavar": metavar}
        group.add_argument(flag, dest=names[flag], help=about, default=argparse.SUPPRESS, **how)


def _add_bundle(command: Parser) -> None:
    command.add_argument("bundle", nargs="?", type=nonempty, metavar="BUNDLE", help=_BUNDLE)


def _add_model(command: Parser, pixels: bool) -> None:
    """pixels: also add --max-pixels, which `serve` has among its limits."""
    group = command.add_argument_group("model")
    about = _BUNDLE
    group.add_argument("--model", type=nonempty, metavar="BUNDLE", help=about)
    about = "ONNX Runtime (ort), the core (core), the faster of both (auto), or TensorRT (trt)"
    group.add_argument("--backend", default=backends.DEFAULT, choices=backends.names(), help=about)
    group.add_argument("--device", metavar="DEVICE", help="cuda for trt, cpu for the others (default: the backend's)")
    group.add_argument("--threads", type=int, metavar="N", help="number of threads (default: every physical core)")
    about = "decode large JPEGs at a fraction of their size: faster, almost the same"
    group.add_argument("--scaled-jpeg", action="store_true", help=about)
    if pixels:
        about = "largest width times height of an image; larger JPEGs are decoded at reduced size (default: 50000000)"
        group.add_argument("--max-pixels", type=int, default=argparse.SUPPRESS, metavar="N", help=about)
    about = "seconds that one run of a graph may take (default: 60, plus 1 for each MB of its files)"
    group.add_argument("--run-timeout", type=float, metavar="SECONDS", help=about)
    _add_trusted_graphs(group)


def _add_trusted_graphs(group: argparse._ActionsContainer) -> None:
    about = "allow operators that blip2rt-export does not write, for graphs of your own"
    group.add_argument("--trusted-graphs", action="store_true", help=about)


def _add_output(command: Parser, stream: bool) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object a line")
    if stream:
        group.add_argument("--stream", action="store_true", help="print the text as it is decoded; one image")
