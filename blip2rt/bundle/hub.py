"""Bundles on the Hugging Face Hub: `hf://user/repo`, or `hf://user/repo@revision`.

    pull("hf://user/repo")  # asks the hub for the newest commit, and downloads it

A name stands for the commit that was downloaded first, until `pull` moves it: a cached bundle is opened without any
network access. Files arrive in a hidden folder, which is renamed once every file has the hash of the manifest. An
interrupted download keeps the files that are complete. With BLIP2RT_OFFLINE=1 nothing is downloaded.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..install_hints import pip_install
from ..system import lock_file, user_cache
from .atomic import write_file
from .names import MANIFEST
from .reader import read_manifest, verify

_NAME = re.compile(r"hf://([\w][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?", re.ASCII)
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
    """Download a commit into the cache. Raises OSError and BundleError."""
    if not _COMMIT.fullmatch(commit):
        raise BundleError(f"the hub gives {text} the commit {commit[:60]!r}, which is not one: try again later")
    final, partial = name.folder / commit, name.folder / f".{commit}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with open(name.folder / ".lock", "w") as lock:
        lock_file(lock, wait=True)
        if final.is_dir():
            return final
        fetch = functools.partial(hub.snapshot_download, name.repository, revision=commit, local_dir=partial)
        fetch(allow_patterns=MANIFEST)  # in every run: one bad answer must not decide about the next ones
        files = read_manifest(partial).files or {}
        _check_space(partial, sum(entry.size for entry in files.values()))
        fetch(allow_patterns=list(files))
        try:
            verify(partial)
        except BundleError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise BundleError(f"{text} was rejected and removed: {error}") from None
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's notes
        partial.rename(final)
    return final


def _check_space(partial: Path, size: int) -> None:
    """Raise BundleError if the disk has no room for what is missing of `size` bytes."""
    missing = size - sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial).free
    if missing > free:
        message = f"{partial.parent} has {free:,} bytes free, and {missing:,} are still to be downloaded"
        raise BundleError(f"{message}: free some, or set BLIP2RT_MODELS to another folder")
