"""The command `blip2rt serve`: its options, and the Settings they make. Imports no HTTP package until it runs."""

import argparse
import os
import re
from typing import Any

from ..command_line import byte_size, collect_garbage, nonempty, path, positive_byte_size, whole
from ..errors import OptionError
from ..install_hints import pip_install
from .settings import MEBI, Access, Limits, QueueLimits, Settings


def seconds(value: str) -> float:
    """Argument type: a duration above 0."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or float(value) <= 0:
        raise argparse.ArgumentTypeError("give a number of seconds above 0")
    return float(value)


def origin(value: str) -> str:
    """Argument type: the origin of a site, as browsers send it, or *."""
    if value != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@*\s]+", value):
        raise argparse.ArgumentTypeError("give scheme and host without a path, as in https://example.org, or *")
    return value.lower()


def cache_size(value: str) -> int:
    """Argument type: the size of a cache, or 0 for none."""
    size = byte_size(value)
    if 0 < size < MEBI:
        digits = "".join(filter(str.isdigit, value))
        raise argparse.ArgumentTypeError(f"that is {size:,} bytes, too few for an image: give {digits}M, or 0 for none")
    return size


# Of each group: flag, the settings and their field, type, metavar, help. A field that is a tuple is repeatable.
_FLAGS: dict[str, list[tuple[str, Any, str, Any, str, str]]] = {
    "address": [
        ("--host", Settings, "host", nonempty, "ADDRESS", "address to listen on; 0.0.0.0 accepts other machines"),
        ("--port", Settings, "port", whole(0, 65535), "N", "port to listen on; 0 picks a free one"),
    ],
    "access (repeatable)": [
        ("--api-key", Access, "api_keys", nonempty, "KEY", "key that callers must send; also BLIP2RT_API_KEY"),
        ("--allow-host", Access, "hosts", nonempty, "NAME", "name of this server, for its pages and local callers"),
        ("--cors-origin", Access, "origins", origin, "URL", "site whose pages may call; * is every site"),
    ],
    "limits": [
        ("--parallel", QueueLimits, "parallel", whole(1, 1024), "N", "requests to run together (default: the model's)"),
        ("--cache", Settings, "cache_bytes", cache_size, "BYTES", "size of the cache for repeated images and prompts"),
        ("--max-queue", QueueLimits, "waiting", whole(0, 100_000), "N", "requests that may wait; more are rejected"),
        ("--deadline", QueueLimits, "deadline_seconds", seconds, "SECONDS", "time limit of a request, with its wait"),
        ("--drain", QueueLimits, "drain_seconds", seconds, "SECONDS", "time for accepted requests at shutdown"),
        ("--drain-delay", Settings, "drain_delay", whole(0, 3600), "SECONDS", "time to accept requests after SIGTERM"),
        ("--keep-alive", Settings, "keep_alive", whole(1, 3600), "SECONDS", "time that an idle connection stays open"),
        ("--max-body", Limits, "body_bytes", positive_byte_size, "BYTES", "largest request body"),
        ("--body-seconds", Limits, "body_seconds", seconds, "SECONDS", "time for a request body to arrive"),
        ("--max-pixels", Limits, "pixels", whole(1, 1 << 40), "N", "largest width times height of an image"),
        ("--max-prompt", Limits, "prompt_chars", whole(1, 10_000_000), "N", "most characters of a request's texts"),
        ("--max-tokens", Limits, "new_tokens", whole(1, 100_000), "N", "longest answer, in tokens"),
    ],
    "other": [
        ("--log-prompts", Settings, "log_prompts", bool, "", "log questions and answers"),
        ("--index", Settings, "index", path, "INDEX", "index of `blip2rt index` that /v1/search and the page search"),
        ("--blip2itm-bgr", Settings, "blip2itm_bgr", bool, "", "/blip2itm gets red and blue swapped, as VLFM sends"),
    ],
}


def add_options(command: Any) -> None:
    """Add the options of `blip2rt serve` to a parser."""
    for title, rows in _FLAGS.items():
        group = command.add_argument_group(title)
        for flag, owner, name, kind, metavar, text in rows:
            default = getattr(owner, name)
            how: dict[str, Any] = {"type": kind, "metavar": metavar, "default": default}
            if kind is bool:
                how = {"action": "store_true"}
            elif default == ():
                how |= {"action": "append", "default": []}
            elif name.endswith("_bytes"):
                how["default"] = f"{default // MEBI}M"
            group.add_argument(flag, dest=name, help=text, **how)


def settings_from(args: argparse.Namespace) -> Settings:
    """Build the settings. Raises OptionError."""
    keys = [*args.api_keys, *os.environ.get("BLIP2RT_API_KEY", "").split()]
    if not all(re.fullmatch("[!-~]+", key) for key in keys):
        raise OptionError("--api-key: use characters that a header can hold, without spaces")
    given: dict[Any, dict[str, Any]] = {owner: {} for owner in (Settings, Access, QueueLimits, Limits)}
    for _, owner, name, *_ in (row for rows in _FLAGS.values() for row in rows):
        given[owner][name] = getattr(args, name)
    limits = Limits(**given[Limits], total_body_bytes=max(Limits.total_body_bytes, args.body_bytes))
    access = Access(tuple(keys), tuple(args.origins), tuple(map(str.lower, args.hosts)))
    return Settings(**given[Settings], limits=limits, queue=QueueLimits(**given[QueueLimits]), access=access)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return the exit status. Raises Blip2rtError."""
    settings = settings_from(args)
    try:
        from ..loading import settings_in
        from .inference import open_model
        from .server import serve
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: {pip_install('serve')}") from None
    model = open_model(args.model, settings, **settings_in(args))
    collect_garbage()
    return serve(model, settings)
