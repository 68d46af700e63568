"""Walking folders, links and patterns."""

from __future__ import annotations

import glob
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from blip2rt.gallery.sources import Sources
from blip2rt.gallery.walk import walk
from tests.gallery.helpers import POSIX
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, fill, picture

pytestmark = pytest.mark.long(1, "folders with thousands of entries")


@POSIX
def test_links_and_several_names_of_a_file(album, run):
    (album / "sub" / "loop").symlink_to("..")
    (album / "sub" / "self").symlink_to("self")
    (album / "sub" / "gone.png").symlink_to("nowhere.png")
    os.link(album / "a.png", album / "sub" / "hard.png")
    os.mkfifo(album / "sub" / "pipe.png")
    code, out, err = run("caption", "-r", "album", "album/sub", "album/*.png")
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert code == 1 and len(names) == len(set(names)) == len(GOOD) + 2
    assert "album/sub/hard.png" in names and "gone.png' is a link to a missing file" in err and "pipe" not in err


@POSIX
def test_pattern_enters_each_folder_once(tmp_path, monkeypatch):
    """As glob.glob without links; circular links terminate."""
    monkeypatch.chdir(tmp_path)
    for name in ("g/a.png", "g/a/b/c.png", "g/a/b[1]/c.png", "g/.hidden/c.png", "g/z/b/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(np.random.default_rng(new_seed())).save(name)
    patterns = "**/*.png g/**/*.png g/** ./g//**/b/*.png g/**/b/**/*.png **/b*/** */**/[cd].png g/*/*/*"
    for pattern in patterns.split():
        assert found(pattern) == sorted(filter(os.path.isfile, set(glob.glob(pattern, recursive=True)))), pattern
    for name, target in (("a/loop", ".."), ("l1", "."), ("l2", ".")):
        Path("g", name).symlink_to(target)
    assert found("g/**/*.png") == ["g/a.png", "g/a/b/c.png", "g/a/b[1]/c.png", "g/z/b/d.png"]
    assert found("g/**/b/**/*.png")[-1] == "g/z/b/d.png"


def found(*paths: str) -> list[str]:
    walked = [each.path for each in walk(Sources(paths))]
    assert len(set(walked)) == len(walked)
    return sorted(walked)


def test_walk_memory_does_not_grow_with_name_length(tmp_path):
    """A walk over 20,000 names keeps only a hash of each."""
    fill(tmp_path / "album", new_seed())
    for i in range(20_000):
        os.link(tmp_path / "album" / "a.png", tmp_path / "album" / f"{i:06d} {'name' * 20}.png")
    tracemalloc.start()
    count, walked = 0, walk(Sources((str(tmp_path / "album"),)))
    for _ in walked:
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000 + len(GOOD) + 2 and peak < 8 << 20
