"""The command `blip2rt serve`: its options, and what they make of Settings. Importing it imports nothing of HTTP."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from ..command_line import nonempty, path, whole
from ..errors import OptionError
from ..install_hints import pip_install
from .settings import Access, Limits, Media, Queue, Settings

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(value: str) -> int:
    """The type of a number of bytes: 20M, 1G, 4096."""
    found = re.fullmatch(r"([0-9]{1,12})([KMG]?)i?B?", value.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError("give a number of bytes, as in 20M")
    return int(found[1]) * _UNITS[found[2].upper()]


def some(value: str) -> int:
    """The type of a number of bytes, above 0."""
    if not (found := size(value)):
        raise argparse.ArgumentTypeError("give a number of bytes, above 0")
    return found


def seconds(value: str) -> float:
    """The type of a time."""
    found = re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value)
    if found is None or float(value) <= 0:
        raise argparse.ArgumentTypeError("give a number of seconds, above 0")
    return float(value)


def domain(value: str) -> str:
    """The type of a host, or host:port."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", value):
        raise argparse.ArgumentTypeError(
            "give a host's name without https://, as in photos.example.org or 10.0.0.5:8080"
        )
    return value.lower()


def add(command: Any) -> None:
    """Add the options to a parser."""
    group, queue, limits = Settings(), Queue(), Limits()
    where = command.add_argument_group("where")
    where.add_argument("--host", type=nonempty, default=group.host, metavar="ADDRESS",
                       help="address to listen at; 0.0.0.0 lets other machines call")  # fmt: skip
    where.add_argument("--port", type=whole(0, 65535), default=group.port, metavar="N", help="port; 0 takes a free one")
    who = command.add_argument_group("who may call")
    who.add_argument("--api-key", action="append", type=nonempty, default=[], metavar="KEY",
                     help="callers must send it; may be given several times, and in BLIP2RT_API_KEY")  # fmt: skip
    who.add_argument("--allow-host", action="append", type=nonempty, default=[], metavar="NAME",
                     help="a name that this server is called by, by its pages or on this machine alone")  # fmt: skip
    who.add_argument("--cors-origin", action="append", type=nonempty, default=[], metavar="URL",
                     help="a site whose pages may call, as in https://example.org; * is every site")  # fmt: skip
    much = command.add_argument_group("how much")
    much.add_argument("--parallel", type=whole(1, 1024), metavar="N",
                      help="requests that are computed together (default: as the model is fastest)")  # fmt: skip
    much.add_argument("--cache", type=size, default=argparse.SUPPRESS, metavar="BYTES",
                      help="what is kept of pictures and prompts that come again (default: 256M)")  # fmt: skip
    much.add_argument("--max-queue", type=whole(0, 100_000), default=queue.waiting, metavar="N",
                      help="requests that may wait; the next one is told to come again")  # fmt: skip
    much.add_argument("--deadline", type=seconds, default=queue.deadline, metavar="SECONDS",
                      help="a request's longest time, waiting and all")  # fmt: skip
    much.add_argument("--drain", type=seconds, default=queue.drain, metavar="SECONDS",
                      help="time for the requests under way, once the server is told to end")  # fmt: skip
    much.add_argument("--max-body", type=some, default=argparse.SUPPRESS, metavar="BYTES",
                      help="largest request (default: 20M)")  # fmt: skip
    much.add_argument("--body-seconds", type=seconds, default=limits.body_seconds, metavar="SECONDS",
                      help="time for a request to arrive; its head has a third of it")  # fmt: skip
    much.add_argument("--max-pixels", type=whole(1, 1 << 40), default=limits.pixels, metavar="N",
                      help="width times height of a picture, at most")  # fmt: skip
    much.add_argument("--max-prompt", type=whole(1, 10_000_000), default=limits.prompt, metavar="N",
                      help="characters of a request's texts, at most")  # fmt: skip
    much.add_argument("--max-tokens", type=whole(1, 100_000), default=limits.tokens, metavar="N",
                      help="tokens of an answer, at most")  # fmt: skip
    media = command.add_argument_group("pictures that requests name instead of sending")
    media.add_argument("--allow-media-domains", action="append", type=domain, nargs="+", default=[], metavar="HOST",
                       help="fetch pictures from these hosts; without it nothing is fetched")  # fmt: skip
    media.add_argument("--allow-media-path", action="append", type=path, default=[], metavar="FOLDER",
                       help="read file:// pictures under this folder; without it no file is read")  # fmt: skip
    more = command.add_argument_group("more")
    more.add_argument("--log-prompts", action="store_true", help="write questions and answers into the log")
    more.add_argument("--index", type=path, metavar="INDEX",
                      help="an index of `blip2rt index`, in which /v1/search and the page search")  # fmt: skip
    more.add_argument("--blip2itm-bgr", action="store_true",
                      help="pictures of /blip2itm have red and blue swapped, as VLFM's robots send them")  # fmt: skip


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that were given. Raises OptionError."""
    for folder in args.allow_media_path:
        if not Path(folder).is_dir():
            raise OptionError(f"--allow-media-path is {str(folder)!r}: name a folder")
    keys = [*args.api_key, *os.environ.get("BLIP2RT_API_KEY", "").split()]
    if not all(re.fullmatch("[!-~]+", key) for key in keys):
        raise OptionError("--api-key: give letters that a header can hold, without spaces")
    limits = Limits(
        body=getattr(args, "max_body", Limits.body), bodies=max(Limits.bodies, getattr(args, "max_body", 0)),
        body_seconds=args.body_seconds, pixels=args.max_pixels, prompt=args.max_prompt, tokens=args.max_tokens,
    )  # fmt: skip
    return Settings(
        host=args.host, port=args.port, limits=limits,
        queue=Queue(args.parallel or 0, args.max_queue, args.deadline, args.drain),
        access=Access(tuple(keys), tuple(args.cors_origin), tuple(name.lower() for name in args.allow_host)),
        media=Media(tuple(host for hosts in args.allow_media_domains for host in hosts), tuple(args.allow_media_path)),
        cache=getattr(args, "cache", Settings.cache), index=args.index,
        log_prompts=args.log_prompts, blip2itm_bgr=args.blip2itm_bgr,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until told to end; return the exit code. Raises Blip2rtError."""
    settings = settings_of(args)
    try:
        from .server import serve
        from .work import open_model
    except ModuleNotFoundError as error:
        raise OptionError(f"{error.name} is not installed: {pip_install('serve')}") from None
    model = open_model(
        args.model, parallel=settings.queue.parallel, cache=settings.cache, backend=args.backend, device=args.device,
        threads=args.threads, scaled_jpeg=args.scaled_jpeg, max_pixels=settings.limits.pixels,
    )  # fmt: skip
    return serve(model, settings)
