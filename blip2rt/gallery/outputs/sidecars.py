"""Captions in files next to the pictures."""

import os
from pathlib import Path

from ...bundle.atomic import write_file
from ..output_files import normalized_extension, sidecar_problem
from ..sources import Failure, Picture
from . import Description, Sink


class Sidecar(Sink):
    """A file next to each picture, with the picture's name and another extension. Subclasses give the content."""

    option = "--write"  # names the file

    def __init__(self, extension: str, overwrite: bool, replace_extension: bool = True) -> None:
        """replace_extension: photo.txt next to photo.jpg, and not photo.jpg.txt."""
        self._replace = replace_extension
        self._extension = normalized_extension(extension)
        self._overwrite = overwrite
        self._claimed: dict[int, int] = {}  # hash of each target of this run -> hash of its picture

    def needs(self, picture: Picture) -> bool | Failure:
        target = self._target(picture)
        if not picture.in_file:
            return Failure(picture.name, f"{picture.name!r} cannot have a sidecar file: give --out")
        fix = f"rename it, or give --out or another {self.option}"
        if target == picture.path:
            return Failure(picture.name, f"{target!r} would overwrite itself: {fix}")
        key, owner = hash(os.path.abspath(target)), hash(os.path.abspath(picture.path))
        if key in self._claimed:
            same = self._claimed[key] == owner
            return False if same else Failure(picture.name, f"{target!r} already belongs to another picture: {fix}")
        self._claimed[key] = owner
        problem = sidecar_problem(target, picture.folder)
        if problem:
            return Failure(picture.name, f"{problem}: {fix}")
        if not self._overwrite and self._is_done(target):
            return False
        if not os.access(os.path.dirname(target) or ".", os.W_OK):
            return Failure(picture.name, f"cannot write {target!r}: its folder is read-only; give --out")
        return True

    def write(self, picture: Picture, description: Description) -> None:
        target = self._target(picture)
        write_file(Path(target), self._content(target, description).encode("utf-8", "surrogateescape"), follow=False)

    def _target(self, picture: Picture) -> str:
        return (os.path.splitext(picture.path)[0] if self._replace else picture.path) + self._extension

    def _is_done(self, target: str) -> bool:
        """Whether the file has content. An empty file was left by a program that failed."""
        try:
            return os.stat(target).st_size > 0
        except OSError:
            return False

    def _content(self, target: str, description: Description) -> str:
        raise NotImplementedError


class TextSidecar(Sidecar):
    """photo.txt next to photo.jpg, with one caption a line."""

    def _content(self, target: str, description: Description) -> str:
        return "".join(f"{caption}\n" for caption in description.captions)
