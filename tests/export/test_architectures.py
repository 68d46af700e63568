"""Every architecture of transformers that writes text, tiny and of random weights: equal to transformers, or refused.

`make parity` runs it, and prints what became of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from export.graphs import supported
from tests.seeds import seed_of
from tests.tiny import architectures
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.families import VOCAB

SEED = seed_of(__name__)
_TOGETHER = 12  # architectures of a process, whose memory is bounded
_QUICK = ("bart", "marian", "mamba", "hunyuan_v1_dense", "umt5", "longt5", "pegasus", "whisper", "rwkv", "blenderbot")


def swept(names: list[str]) -> dict[str, tuple[str, str]]:
    """Name -> what became of it, and why; one whose process died has failed."""
    found: dict[str, tuple[str, str]] = {}
    left = list(names)
    while left:
        part = left[:_TOGETHER]
        command = [sys.executable, "-m", "tests.tiny.architectures", str(SEED), *part]
        run = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, cwd=_ROOT)
        for line in run.stdout.splitlines():
            name, what, why = json.loads(line)
            found[name] = what, why
        done = [name for name in part if name in found]
        if len(done) < len(part):  # the next one has ended the process
            found[part[len(done)]] = "failed", run.stderr[-300:]
        left = [name for name in left if name not in found]
    return found


_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_architecture_is_equal_or_refused() -> None:
    found = swept(architectures.names())
    for what in ("equal", "refused", "unbuilt", "wrong", "failed"):
        some = {name: why for name, (kind, why) in found.items() if kind == what}
        print(f"{what}: {len(some)}")
        for name, why in some.items():
            print(f"  {name}: {why}")
    assert not [name for name, (what, _) in found.items() if what in ("wrong", "failed")]
    assert all(what == "equal" for name, (what, _) in found.items() if name in supported.COMPARED)


def test_what_is_known_not_to_work_is_said_before_tracing() -> None:
    known = [name for name in _QUICK if name in architectures.names()]
    assert len(known) > 5
    for name in known:
        config = transformers.AutoConfig.for_model(name)
        for verified in (True, False):
            wrong = supported.fault(config, "ort", verified)
            assert wrong is not None and f"type {name!r}" in wrong and "\n" not in wrong


def test_what_no_test_compares_is_not_exported_unseen() -> None:
    config = transformers.AutoConfig.for_model("stablelm")
    assert supported.fault(config, "ort", True) is None
    assert "leave out --no-verify" in str(supported.fault(config, "ort", False))
    for name in supported.COMPARED & set(architectures.names()):
        assert supported.fault(transformers.AutoConfig.for_model(name), "ort", False) is None


@pytest.mark.slow
def test_an_architecture_that_cannot_be_traced_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from export.cli import main

    text = architectures.tiny_config("mpt")
    text.vocab_size = VOCAB
    checkpoint = tiny_blip2.generative(tmp_path / "hf", text)
    arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "b"), "--precision", "llm=fp32"]
    assert main(arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blip2rt-export: error: ")]
    assert len(error) == 1 and "cannot be traced" in error[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bloom", "mt5"])
def test_architectures_of_published_checkpoints_are_equal(name: str) -> None:
    """mBLIP's."""
    assert architectures.judge(name, SEED)[0] == "equal"
