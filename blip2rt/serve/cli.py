"""The command `blip2rt serve`: its options, and the Settings they make. Imports no HTTP package until it runs."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from ..command_line import byte_size, collect_garbage, nonempty, path, positive_byte_size, whole
from ..errors import OptionError
from ..install_hints import pip_install
from .settings import MEBI, Access, Limits, MediaAccess, QueueLimits, Settings


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


def domain(value: str) -> str:
    """Argument type: host or host:port."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", value):
        raise argparse.ArgumentTypeError("give a host without https://, as in photos.example.org or 10.0.0.5:8080")
    return value.lower()


def cache_size(value: str) -> int:
    """Argument type: the size of a cache, or 0 for none."""
    size = byte_size(value)
    if 0 < size < MEBI:
        digits = "".join(filter(str.isdigit, value))
        raise argparse.ArgumentTypeError(f"that is {size:,} bytes, too few for an image: give {digits}M, or 0 for none")
    return size


def add_options(command: Any) -> None:
    """Add the options of `blip2rt serve` to a parser."""
    defaults, queue, limits = Settings(), QueueLimits(), Limits()

    def option(group: Any, flag: str, kind: Any, metavar: str, text: str, default: Any = argparse.SUPPRESS) -> None:
        group.add_argument(flag, type=kind, metavar=metavar, help=text, default=default)

    def repeatable(group: Any, flag: str, kind: Any, metavar: str, text: str, **more: Any) -> None:
        group.add_argument(flag, action="append", type=kind, default=[], metavar=metavar, help=text, **more)

    group = command.add_argument_group("address")
    option(group, "--host", nonempty, "ADDRESS", "address to listen on; 0.0.0.0 accepts other machines", defaults.host)
    option(group, "--port", whole(0, 65535), "N", "port to listen on; 0 picks a free one", defaults.port)

    group = command.add_argument_group("access")
    repeatable(group, "--api-key", nonempty, "KEY", "key that callers must send; repeatable, also BLIP2RT_API_KEY")
    text = "name of this server, for its own pages and for callers on this machine; repeatable"
    repeatable(group, "--allow-host", nonempty, "NAME", text)
    text = "site whose pages may call, as in https://example.org; * is every site; repeatable"
    repeatable(group, "--cors-origin", origin, "URL", text)

    group = command.add_argument_group("limits")
    option(group, "--parallel", whole(1, 1024), "N", "requests to run together (default: chosen for the model)", None)
    cache = f"{defaults.cache_bytes // MEBI}M"
    option(group, "--cache", cache_size, "BYTES", "size of the cache for repeated images and prompt prefixes", cache)
    option(group, "--max-queue", whole(0, 100_000), "N", "requests that may wait; more are rejected", queue.waiting)
    text = "time limit of a request, including its wait"
    option(group, "--deadline", seconds, "SECONDS", text, queue.deadline_seconds)
    text = "longest wait that a request may expect; beyond it, 429 (default: the deadline)"
    option(group, "--max-wait", seconds, "SECONDS", text, None)
    option(group, "--drain", seconds, "SECONDS", "time for accepted requests at shutdown", queue.drain_seconds)
    text = "time from SIGTERM to the drain, while /ready fails and requests are accepted"
    option(group, "--drain-delay", whole(0, 3600), "SECONDS", text, int(defaults.drain_delay))
    text = "time that an idle connection stays open"
    option(group, "--keep-alive", whole(1, 3600), "SECONDS", text, defaults.keep_alive)
    body = f"{limits.body_bytes // MEBI}M"
    option(group, "--max-body", positive_byte_size, "BYTES", "largest request body", body)
    option(group, "--body-seconds", seconds, "SECONDS", "time for a request body to arrive", limits.body_seconds)
    option(group, "--max-pixels", whole(1, 1 << 40), "N", "largest width times height of an image", limits.pixels)
    text = "longest total text of a request, in characters"
    option(group, "--max-prompt", whole(1, 10_000_000), "N", text, limits.prompt_chars)
    option(group, "--max-tokens", whole(1, 100_000), "N", "longest answer, in tokens", limits.new_tokens)

    group = command.add_argument_group("images that requests name instead of sending")
    text = "fetch images from these hosts (default: none)"
    repeatable(group, "--allow-media-domains", domain, "HOST", text, nargs="+")
    text = "read file:// images under this folder (default: none)"
    repeatable(group, "--allow-media-path", path, "FOLDER", text)

    group = command.add_argument_group("other")
    group.add_argument("--log-prompts", action="store_true", help="log questions and answers")
    option(group, "--index", path, "INDEX", "index of `blip2rt index` that /v1/search and the page search", None)
    text = "images sent to /blip2itm have red and blue swapped, as VLFM sends them"
    group.add_argument("--blip2itm-bgr", action="store_true", help=text)


def settings_from(args: argparse.Namespace) -> Settings:
    """Build the settings. Raises OptionError."""
    for folder in args.allow_media_path:
        if not Path(folder).is_dir():
            raise OptionError(f"--allow-media-path is {str(folder)!r}: name a folder")
    keys = [*args.api_key, *os.environ.get("BLIP2RT_API_KEY", "").split()]
    if not all(re.fullmatch("[!-~]+", key) for key in keys):
        raise OptionError("--api-key: use characters that a header can hold, without spaces")
    limits = Limits(
        body_bytes=args.max_body,
        total_body_bytes=max(Limits.total_body_bytes, args.max_body),
        body_seconds=args.body_seconds,
        pixels=args.max_pixels,
        prompt_chars=args.max_prompt,
        new_tokens=args.max_tokens,
    )
    domains = tuple(host for hosts in args.allow_media_domains for host in hosts)
    return Settings(
        host=args.host,
        port=args.port,
        limits=limits,
        queue=QueueLimits(args.parallel or 0, args.max_queue, args.deadline, args.drain, args.max_wait),
        access=Access(tuple(keys), tuple(args.cors_origin), tuple(name.lower() for name in args.allow_host)),
        media=MediaAccess(domains, tuple(args.allow_media_path)),
        cache_bytes=args.cache,
        drain_delay=args.drain_delay,
        keep_alive=args.keep_alive,
        index=args.index,
        log_prompts=args.log_prompts,
        blip2itm_bgr=args.blip2itm_bgr,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return the exit status. Raises Blip2rtError."""
    settings = settings_from(args)
    try:
        from .inference import open_model
        from .server import serve
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: {pip_install('serve')}") from None
    names = ("backend", "device", "threads", "scaled_jpeg", "trusted_graphs")
    keywords = {name: getattr(args, name) for name in names}
    model = open_model(args.model, settings, **keywords)
    collect_garbage()
    return serve(model, settings)
