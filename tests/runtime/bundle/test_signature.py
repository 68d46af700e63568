"""Signed manifests: only valid signatures of minisign are accepted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from blip2rt.bundle import embedded
from blip2rt.bundle.signature import verify_signature
from blip2rt.cli import main
from blip2rt.errors import BundleError, OptionError
from tests.runtime.bundle.signing import Maker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "blip2rt.json").write_text('{"name": "nano"}')
    return tmp_path / "blip2rt.json"


@pytest.mark.parametrize("hashed", [True, False])
def test_valid_signature_returns_its_comment(file: Path, hashed: bool) -> None:
    maker = Maker(file.parent)
    maker.sign(file, "made by us", hashed)
    assert verify_signature(file, maker.key) == "made by us"


def test_changed_manifests_comments_and_keys_are_rejected(file: Path) -> None:
    mismatch = "does not match the signature of key 3837363534333231: do not use it"
    for name, old, new in (("blip2rt.json", "nano", "nanO"), ("blip2rt.json.minisig", "2026", "2027")):
        maker, changed = Maker(file.parent), file.with_name(name)
        maker.sign(file)
        changed.write_text(changed.read_text().replace(old, new))
        with pytest.raises(BundleError, match=mismatch):
            verify_signature(file, maker.key)
    maker.sign(file)
    with pytest.raises(BundleError, match=mismatch):
        verify_signature(file, Maker(file.parent).key)  # another key with the same id
    Maker(file.parent, b"87654321").sign(file)
    with pytest.raises(BundleError, match="is signed with key 3132333435363738"):
        verify_signature(file, maker.key)


@pytest.mark.parametrize(
    "text", ["", "x\ny\nz\n", "a\n!!\ntrusted comment: b\n!!\n", "a\nAAAA\ntrusted comment: \nAA==\n"]
)
def test_invalid_signatures_are_reported(file: Path, text: str) -> None:
    maker = Maker(file.parent)
    file.with_name("blip2rt.json.minisig").write_text(text)
    with pytest.raises(BundleError, match="is not a signature of minisign"):
        verify_signature(file, maker.key)


def test_missing_signature_and_key_are_reported(file: Path) -> None:
    with pytest.raises(BundleError, match=r"is not signed: there is no blip2rt\.json\.minisig"):
        verify_signature(file, Maker(file.parent).key)
    for key, word in ((file, "is not a public key"), (file.with_name("none"), "No such file")):
        with pytest.raises(OptionError, match=word):
            verify_signature(file, key)


def test_verify_checks_the_signature_and_the_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "nano"
    shutil.copytree(embedded(), bundle)
    maker = Maker(tmp_path)
    assert main(["verify", str(bundle), "--key", str(maker.key)]) == 2
    assert "is not signed" in capsys.readouterr().err
    maker.sign(bundle / "blip2rt.json", "made by us")
    assert main(["verify", str(bundle), "--key", str(maker.key)]) == 0
    assert capsys.readouterr().out.endswith("all as exported, signed: made by us\n")
    (bundle / "MODEL_CARD.md").write_bytes((bundle / "MODEL_CARD.md").read_bytes()[::-1])
    assert main(["verify", str(bundle), "--key", str(maker.key)]) == 2
    assert "the sha256 of MODEL_CARD.md differs" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_minisign_files_are_accepted(file: Path) -> None:
    key, secret = file.parent / "maker.pub", file.parent / "maker.key"
    subprocess.run(["minisign", "-G", "-W", "-p", key, "-s", secret], check=True, capture_output=True)
    subprocess.run(["minisign", "-S", "-s", secret, "-m", file, "-t", "hello"], check=True, capture_output=True)
    assert verify_signature(file, key) == "hello"
