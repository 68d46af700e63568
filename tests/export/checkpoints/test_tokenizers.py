"""A checkpoint without a tokenizer is rejected unless one is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import normalizers

from blip2rt import bundle
from tests.export.commands_in_process import convert, export
from tests.tiny import blip2 as tiny_blip2

pytestmark = pytest.mark.long(12, "whole exports with each kind of tokenizer")


def bare(folder: Path, tmp_path: Path) -> Path:
    """Copy a checkpoint without its tokenizer files."""
    copy = Path(shutil.copytree(folder, tmp_path / "bare"))
    for file in (*copy.glob("tokenizer*"), *copy.glob("special_tokens*")):
        file.unlink()
    return copy


def test_checkpoint_without_a_tokenizer_is_rejected(
    llama_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], export_error: Callable[..., str]
) -> None:
    copy = bare(llama_checkpoint, tmp_path)
    exporting = export_error(copy)
    assert not convert(copy, tmp_path / "out", "--to", "hf", status=2).exists()
    for error in (exporting, capsys.readouterr().err):
        assert "has no tokenizer" in error and "--tokenizer FOLDER" in error


def test_named_tokenizer_gives_the_same_bundle(llama_checkpoint: Path, tmp_path: Path) -> None:
    copy = bare(llama_checkpoint, tmp_path)
    outs = tmp_path / "whole", tmp_path / "named"
    export(llama_checkpoint, outs[0], "--name", "n")
    export(copy, outs[1], "--name", "n", "--tokenizer", llama_checkpoint)
    whole, named = map(bundle.read, outs)
    assert whole.manifest.llm == named.manifest.llm and whole.manifest.prompts == named.manifest.prompts
    assert whole.file("tokenizer.json").read_bytes() == named.file("tokenizer.json").read_bytes()


def test_retrieval_checkpoint_takes_a_named_tokenizer(tmp_path: Path, export_error: Callable[..., str]) -> None:
    retrieval = tiny_blip2.retrieval(tmp_path / "retrieval")
    copy = bare(retrieval, tmp_path)
    assert "has no tokenizer" in export_error(copy)
    out = export(copy, tmp_path / "named", "--tokenizer", retrieval)
    assert bundle.read(out).file("qformer_tokenizer.json").stat().st_size > 100


def test_tokenizer_that_does_not_fit_is_rejected(
    llama_checkpoint: Path, tmp_path: Path, export_error: Callable[..., str]
) -> None:
    """It has more words than the model, or a part that the core does not know."""
    larger = tmp_path / "larger"
    words = {word: i for i, word in enumerate([*tiny_blip2.SPECIAL, *(f"w{i}" for i in range(500))])}
    backend = tiny_blip2.Tokenizer(tiny_blip2.models.WordLevel(words, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(larger)
    assert "has 504 words and the language model" in export_error(llama_checkpoint, "--tokenizer", str(larger))
    backend.normalizer = normalizers.NFKC()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(larger)
    assert "a bundle cannot have this tokenizer (the normalizer 'NFKC')" in export_error(
        llama_checkpoint, "--tokenizer", str(larger)
    )
