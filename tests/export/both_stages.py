"""Tiny random checkpoints of both stages, and the bundles exported from them."""

from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import save_model
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig
from blip2rt_export.cli import main
from tests.export.commands_in_process import FLOAT
from tests.seeds import new_seed
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import training as tiny_training

SOURCES = ({"part": "all", "name": "random numbers", "licence": "CC0-1.0", "origin": "the tests"},)


@dataclass
class Made:
    """Two checkpoints, photographs, and the bundles exported from them."""

    stage1: Path
    stage2: Path
    images: Path
    exact: Path  # everything in float32
    small: Path  # int8 and int4

    def arguments(self, out: Path, *more: str) -> list[str]:
        return ["--ckpt", str(self.stage2), "--retrieval-ckpt", str(self.stage1), "--out", str(out), *more]


def export_stages(folder: Path) -> Made:
    """Save the checkpoints and export both bundles."""
    torch.manual_seed(new_seed())
    tiny_training.caption_table(folder, images=12)
    torch.save(timm.create_model("test_efficientnet").state_dict(), folder / "vision.pth")
    vision = VisionConfig("timm:test_efficientnet", str(folder / "vision.pth"), 64, 64, positions=4, features=256)
    bert = str(tiny_training.bert_folder(folder / "bert"))
    qformer = QFormerConfig(**BertSource(bert).geometry, queries=4, vision_width=256)
    first = Blip2Config(1, vision, qformer, qformer_init=bert, embed_dim=16, max_text_length=12, sources=SOURCES)
    llm = LlmConfig(str(tiny_training.llm_folder(folder / "llm")), bits=4, block=32, end="<|end|>")
    second = replace(first, stage=2, llm=llm, qformer=replace(qformer, text_branch=False))
    paths = [save(config, folder / f"stage{config.stage}") for config in (first, second)]
    made = Made(*paths, folder / "images", folder / "exact", folder / "small")
    assert main(made.arguments(made.exact, "--precision", FLOAT)) == 0
    precision = "vision=fp16,qformer=int8w"
    assert main(made.arguments(made.small, "--precision", precision)) == 0
    return made


def save(config: Blip2Config, folder: Path) -> Path:
    model = tiny_blip2.build(config)
    for name, parameter in model.named_parameters():  # add noise: biases and norms start at 0 and 1
        if not name.startswith(("vision.", "llm.", "temperature")):  # a temperature must stay positive
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    if config.stage == 1:  # int4's rounding, coarse in such a narrow model, must stay within the limit of its log-odds
        model.itm_head.weight.data.mul_(0.5)
    folder.mkdir()
    save_model(model, folder)
    return folder
