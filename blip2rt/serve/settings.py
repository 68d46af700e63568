"""The server's settings, in small groups. Imports no HTTP package."""

from dataclasses import dataclass, field
from pathlib import Path

MEBI = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    body_bytes: int = 20 * MEBI
    total_body_bytes: int = 512 * MEBI  # held at the same time, for all requests together
    body_seconds: float = 30.0
    connections: int = 1000
    images: int = 64
    pixels: int = 50_000_000  # per image
    prompt_chars: int = 32_000  # of all texts in a request
    new_tokens: int = 256  # per answer
    sequences: int = 8  # answers and beams
    inputs: int = 256  # texts to match, or answers and choices of a form


@dataclass(frozen=True)
class QueueLimits:
    """How many requests run, how many wait, and for how long."""

    parallel: int = 0  # 0: chosen for the model
    waiting: int = 64
    deadline_seconds: float = 120.0  # for a request, including its wait
    drain_seconds: float = 30.0  # for accepted requests at shutdown


@dataclass(frozen=True)
class Access:
    """Who may call."""

    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # other sites whose pages may call from a browser; "*" is every site
    hosts: tuple[str, ...] = ()  # names of this server besides localhost and IP addresses


@dataclass(frozen=True)
class Settings:
    """All settings of a server except its model."""

    host: str = "127.0.0.1"
    port: int = 8000
    limits: Limits = field(default_factory=Limits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    access: Access = field(default_factory=Access)
    cache_bytes: int = 256 * MEBI  # cache for repeated images and prompt prefixes
    drain_delay: int = 5  # seconds between SIGTERM and the drain: /ready fails, and requests are still accepted
    keep_alive: int = 75  # seconds that an idle connection stays open: longer than a proxy keeps it
    index: Path | None = None  # gallery index for /v1/search
    log_prompts: bool = False
    blip2itm_bgr: bool = False  # images sent to /blip2itm have red and blue swapped, as OpenCV writes RGB arrays

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")
