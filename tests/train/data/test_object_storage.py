"""Shards in object storage: the samples of local ones, indexed once; faults are one line."""

import json
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blip2rt.errors import Blip2rtError
from blip2rt_train import prepare
from blip2rt_train.data.samples import BadSamples
from blip2rt_train.data.shards import Shards
from tests.object_store import get, put
from tests.object_store import s3 as s3
from tests.tiny.bundle import tiny_bundle
from tests.tiny.image_folders import GOOD, fill
from tests.train.arguments import options

# prepare, killed at its fourth caption.
KILLED = """
import os, signal, sys
from blip2rt_train import prepare
from blip2rt_train.evaluation.predictions import Predictions
add, calls = Predictions.add, []
def add_or_die(*given):
    calls.append(1)
    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 4 else add(*given)
Predictions.add = add_or_die
prepare.main(sys.argv[1:])
"""


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Three shards, the last with a sample that lacks a caption."""
    fill(tmp_path / "album", 1)
    (tmp_path / "shards").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / "shards" / f"{number:05d}.tar", "w") as tar:
            for name in ("a.png", "b.jpg"):
                assert name in GOOD
                tar.add(tmp_path / "album" / name, f"{number}{name}")
                text = tmp_path / f"{number}{name}.json"
                text.write_text(json.dumps({"caption": f"{number} {name}"}))
                if (number, name) != (2, "b.jpg"):
                    tar.add(text, f"{number}{name[0]}.json")
    return tmp_path / "shards"


def test_samples_are_those_of_local_shards(local: Path, tmp_path: Path) -> None:
    bad, expected_bad = BadSamples(10), BadSamples(10)
    expected = Shards(str(local), tmp_path / "unused", expected_bad)
    found = Shards(f"file://{local}/*.tar", tmp_path / "features", bad)
    assert found.counts == expected.counts == [2, 2, 1] and found.digests == expected.digests
    assert len(bad.found) == len(expected_bad.found) == 1
    copied = pickle.loads(pickle.dumps(found))
    for number in range(5):
        assert found.read(number) == expected.read(number) == copied.read(number)
    braces = Shards(f"file://{local}/{{00000..00002}}.tar", tmp_path / "features")
    assert braces.digests == found.digests


def test_faults_are_one_line(local: Path, tmp_path: Path) -> None:
    for pattern, words in {
        f"file://{local}/none*.tar": "there are no shards",
        f"file://{local}/{{00002..00003}}.tar": "a shard is missing",
        f"file://{tmp_path}/none/*.tar": "cannot read .*none.*: check the URL",
        "abcd://bucket/*.tar": "cannot read 'abcd://bucket/.*: check the URL",
    }.items():
        with pytest.raises(Blip2rtError, match=words):
            Shards(pattern, tmp_path / "features")
    (local / "00001.tar").write_bytes(b"words" * 1000)
    with pytest.raises(Blip2rtError, match="is not a .tar file"):
        Shards(f"file://{local}", tmp_path / "features")


@pytest.mark.long(9, "moto's server, and CapFilt")
def test_shards_of_a_bucket_are_indexed_and_filtered(local: Path, s3: Any, tmp_path: Path) -> None:
    """CapFilt writes what it writes of local shards, also if killed."""
    put(s3, {f"{copy}/{path.name}": path for copy in range(4) for path in local.glob("*.tar")})
    shards = Shards("s3://bucket/*/*.tar", tmp_path / "features")
    expected = Shards(str(local), tmp_path / "unused")
    assert shards.digests == expected.digests * 4
    assert [shards.read(number) for number in range(5)] == [expected.read(number) for number in range(5)]
    tiny_bundle(tmp_path / "model", 3)
    common = ["capfilt", *options(captioner=tmp_path / "model", own=2, keep=1), "--batch-size", "1", "--data"]
    assert prepare.main([*common, str(local), "--out", str(tmp_path / "local")]) == 0
    remote = [*common, "s3://bucket/0/*.tar", "--out", "s3://bucket/out"]
    assert subprocess.run([sys.executable, "-c", KILLED, *remote]).returncode == -signal.SIGKILL
    assert {*get(s3 / "out")} == {"00000.tar", "00000.tar.candidates.jsonl"} and prepare.main(remote) == 0
    found = get(s3 / "out")
    assert len(found) == 2 * len(expected.paths)
    for path in local.glob("*.tar"):
        assert found[path.name] == (tmp_path / "local" / path.name).read_bytes() != path.read_bytes()
    assert prepare.main(remote) == 0 and get(s3 / "out") == found, "what is finished stays"
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a dog"}))
    listed = [*common, str(tmp_path / "list.jsonl"), "--images", str(tmp_path / "album")]
    assert prepare.main([*listed, "--out", "s3://bucket/list/best.tsv"]) == 0
    assert {*get(s3 / "list")} == {"best.tsv", "best.tsv.candidates.jsonl"}
    assert prepare.main([*common, str(local), "--out", "s3://none/out"]) == 2
