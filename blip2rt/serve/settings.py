"""What a server may be told, in small groups. Knows nothing of HTTP libraries, so that --help needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MEBI = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    body: int = 20 * MEBI  # bytes of one request
    bodies: int = 512 * MEBI  # bytes of all requests that are held at the same time
    body_seconds: float = 30.0  # a body has come after so long, and a request's head after a third of it
    connections: int = 1000
    images: int = 64  # of one request
    pixels: int = 50_000_000  # of an image
    prompt: int = 32_000  # characters of all texts of a request
    tokens: int = 256  # of an answer
    texts: int = 8  # answers of a request, and beams
    embeddings: int = 256  # inputs of a request


@dataclass(frozen=True)
class Queue:
    """How many requests are worked on, how many wait, and how long."""

    parallel: int = 0  # 0: as many as the model takes together
    waiting: int = 64
    deadline: float = 120.0  # seconds of a request, waiting and all
    drain: float = 30.0  # seconds for the requests under way, once the server is told to end


@dataclass(frozen=True)
class Access:
    """Who may call."""

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # of pages of others, that a browser may call from
    hosts: tuple[str, ...] = ()  # names of this server, besides localhost and addresses


@dataclass(frozen=True)
class Media:
    """What images a request may name instead of sending them."""

    domains: tuple[str, ...] = ()  # host or host:port
    folders: tuple[Path, ...] = ()
    seconds: float = 10.0  # for one image


@dataclass(frozen=True)
class Settings:
    """Everything that a server is told, besides which model it serves."""

    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    queue: Queue = field(default_factory=Queue)
    access: Access = field(default_factory=Access)
    media: Media = field(default_factory=Media)
    cache: int = 256 * MEBI  # bytes of what is kept of pictures and prompts
    index: Path | None = None  # of the gallery, that is searched in
    log_prompts: bool = False
    blip2itm_bgr: bool = False  # /blip2itm's pictures have red and blue swapped, as OpenCV writes an RGB array

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can reach the server."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")
