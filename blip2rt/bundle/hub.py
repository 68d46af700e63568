"""Bundles on the Hugging Face Hub: `hf://user/repo`, or `hf://user/repo@revision`.

    pull("hf://user/repo")  # asks the hub for the newest commit, and downloads it

A name stands for the commit that was downloaded first, until `pull` moves it: a cached bundle is opened without any
network access. Files arrive in a hidden folder, which is renamed once every file has the hash of the manifest. An
interrupted download resumes. With BLIP2RT_OFFLINE=1 nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..install_hints import pip_install
from ..system import lock_file, user_cache
from .atomic import write_file
from .names import MANIFEST
from .reader import MAX_MANIFEST_BYTES, read_manifest, verify

_NAME = re.compile(r"hf://([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?", re.ASCII)
_TIMEOUT = 60  # seconds without a byte
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository and its revision: a commit, a branch or a tag."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> HubName:
        found = _NAME.fullmatch(text)
        if found is None or ".." in text:
            raise BundleError(
                f"{text!r} is not a model on the hub: give hf://USER/REPOSITORY or hf://USER/REPOSITORY@REVISION"
            )
        return cls(found[1], found[2] or "main")

    @property
    def folder(self) -> Path:
        """Where its commits are cached: $BLIP2RT_MODELS, or a folder in the user's cache."""
        given = os.environ.get("BLIP2RT_MODELS")
        return (Path(given) if given else user_cache() / "models") / self.repository.replace("/", "--")

    @property
    def cached(self) -> Path | None:
        """The folder of the commit that the revision stands for, or None if it is not downloaded."""
        commit = self.revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = self._reference.read_text(encoding="ascii")
            except (OSError, ValueError):
                return None
        folder = self.folder / commit
        return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None

    def remember(self, commit: str) -> None:
        """Let the revision stand for `commit`."""
        if commit != self.revision:
            self._reference.parent.mkdir(exist_ok=True)
            write_file(self._reference, commit.encode())

    @property
    def _reference(self) -> Path:
        return self.folder / "refs" / self.revision.replace("/", "--")


def pull(text: str) -> Path:
    """Download the newest commit of a name unless it is cached, and return its folder. Raises BundleError."""
    name = HubName.parse(text)
    for variable in ("BLIP2RT_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "0") not in ("", "0"):
            raise BundleError(f"{text} is not in the cache, and {variable} is set: unset it, or give a folder")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise BundleError(f"{text} needs huggingface_hub: {pip_install('hub')}") from None
    try:
        commit = name.revision
        if not _COMMIT.fullmatch(commit):
            commit = str(hub.HfApi().model_info(name.repository, revision=name.revision).sha)
        folder = _download(hub, text, name, commit)
    except BundleError:
        raise
    except Exception as error:  # of HTTP libraries, which differ between releases
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BundleError(f"cannot download {text}: {reason}: run it again to resume") from None
    name.remember(commit)
    return folder


def _download(hub: Any, text: str, name: HubName, commit: str) -> Path:
    """Download a commit into the cache, file by file. Raises OSError and BundleError."""
    if not _COMMIT.fullmatch(commit):
        raise BundleError(f"the hub gives {text} the commit {commit[:60]!r}, which is not one: try again later")
    final, partial = name.folder / commit, name.folder / f".{commit}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with open(name.folder / ".lock", "w") as lock:
        lock_file(lock, wait=True)
        if final.is_dir():
            return final

        def fetch(file: str, size: int | None = None) -> None:
            url = hub.hf_hub_url(name.repository, file, revision=commit)
            with hub.utils.tqdm(desc=file, total=size, unit="B", unit_scale=True) as bar:
                _fetch(url, hub.utils.build_hf_headers(), partial / file, size, bar)

        fetch(MANIFEST)  # in every run: one bad answer must not decide about the next ones
        files = read_manifest(partial).files or {}
        _check_space(partial, sum(entry.size for entry in files.values()))
        for file, entry in sorted(files.items()):
            fetch(file, entry.size)
        try:
            verify(partial)
        except BundleError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise BundleError(f"{text} was rejected and removed: {error}") from None
        partial.rename(final)
    return final


def _check_space(partial: Path, size: int) -> None:
    """Raise BundleError if the disk has no room for what is missing of `size` bytes."""
    missing = size - sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial).free
    if missing > free:
        message = f"{partial.parent} has {free:,} bytes free, and {missing:,} are still to be downloaded"
        raise BundleError(f"{message}: free some, or set BLIP2RT_MODELS to another folder")


def _fetch(url: str, headers: dict[str, str], path: Path, size: int | None, bar: Any) -> None:
    """Download a file, or what is missing of it; huggingface_hub begins again. Raises OSError.

    size: the file's, or None for a manifest, which is always downloaded whole.
    """
    from urllib.request import Request, urlopen

    if size is not None and path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    done = part.stat().st_size if part.exists() else 0
    if size is None or done > size:
        done = 0
    request = Request(url)
    for key, value in headers.items():  # with the token, which no other host may see
        request.add_unredirected_header(key, value)
    if done:
        request.add_header("Range", f"bytes={done}-")
    if done == 0 or done != size:
        with urlopen(request, timeout=_TIMEOUT) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:
                done = 0
            sent = None if answer.length is None else done + answer.length  # None: chunked
            if size is None and sent is not None:
                size = min(sent, MAX_MANIFEST_BYTES + 1)
            elif sent not in (None, size):
                raise OSError(f"the server sends {sent:,} bytes of {path.name} instead of {size:,}")
            most = MAX_MANIFEST_BYTES + 1 if size is None else size
            with open(part, "ab" if done else "wb") as file:
                bar.update(done)
                while piece := answer.read(min(1 << 20, most - done)):
                    done += file.write(piece)
                    bar.update(len(piece))
    if size is not None and done != size:
        raise OSError(f"the connection ended after {done:,} of {size:,} bytes of {path.name}")
    part.replace(path)
