"""`blip2rt-convert --to hf`: in its folders, Hugging Face's files decide."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import CONFIG, Checkpoint
from tests.export.commands_in_process import convert
from tests.tiny import blip2 as tiny_blip2

OWN, PROCESSOR = "blip2rt_config.json", "processor_config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder, with one field that Hugging Face's format cannot store."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("converted")
    source = tiny_blip2.generative(path / "source", tiny_blip2.TEXT_CONFIGS["opt"]())
    (source / OWN).write_text(json.dumps({"llm": {"caption_prompt": "a photo of"}}))
    return convert(source, path / "hf", "--to", "hf")


def edited(folder: Path, out: Path, file: str, keys: tuple[str, ...], value: Any) -> Path:
    shutil.copytree(folder, out)
    data = inner = json.loads((out / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    assert inner[keys[-1]] != value
    inner[keys[-1]] = value
    (out / file).write_text(json.dumps(data))
    return out


def test_only_fields_that_config_json_lacks_are_stored(folder: Path) -> None:
    own = json.loads((folder / OWN).read_text())
    assert own.keys() == {"llm.caption_prompt", "qformer_init", "sources"}
    assert Checkpoint(folder).config.llm.caption_prompt == "a photo of"


EDITS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "mean": (PROCESSOR, ("image_processor", "image_mean"), [0.1, 0.2, 0.3]),
    "filter": (PROCESSOR, ("image_processor", "resample"), 2),
    "end": (CONFIG, ("text_config", "eos_token_id"), 7),
    "empty prompt": (CONFIG, ("text_config", "bos_token_id"), 5),
    "epsilon": (CONFIG, ("vision_config", "layer_norm_eps"), 1e-3),
    "image token": (CONFIG, ("image_token_index",), 3),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_their_files_take_effect(name: str, folder: Path, tmp_path: Path) -> None:
    copy = edited(folder, tmp_path / "copy", *EDITS[name])
    got = Checkpoint(copy).config
    assert got.llm.caption_prompt == "a photo of"
    (copy / OWN).unlink()
    want = Checkpoint(copy).config
    llm = replace(want.llm, caption_prompt="a photo of")
    assert got == replace(want, llm=llm, qformer_init=got.qformer_init, sources=got.sources)
    assert replace(got, vision=replace(got.vision, weights=str(folder))) != Checkpoint(folder).config


def whole(folder: Path) -> dict[str, Any]:
    """The whole config, as release 0.1 stored it."""
    return asdict(Checkpoint(folder).config)


def test_folders_of_release_0_1_are_read_unless_they_contradict(folder: Path, tmp_path: Path) -> None:
    before = Checkpoint(folder).config
    copy = edited(folder, tmp_path / "copy", OWN, ("llm.caption_prompt",), "x")
    (copy / OWN).write_text(json.dumps(whole(folder) | {"itm_weight": 0.5}))
    moved = replace(before.llm, source=str(copy))
    got = Checkpoint(copy).config
    assert got == replace(before, itm_weight=0.5, llm=moved, vision=replace(before.vision, weights=str(copy)))
    again = edited(copy, tmp_path / "again", *EDITS["mean"])
    with pytest.raises(
        Blip2rtError, match=r"blip2rt_config.json: vision.mean is \[0.48.*, but \[0.1, 0.2, 0.3\] by the"
    ):
        Checkpoint(again).config  # noqa: B018
