"""A tiny random model whose Q-Former also reads the question: our checkpoint and its bundle."""

from pathlib import Path
from typing import Any

import blip2rt
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint, save_model
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt_export.cli import main

from . import blip2, training

FLOAT = "vision=fp32,qformer=fp32,llm=fp32"


def export_model(folder: Path) -> tuple[Path, Any, blip2rt.Model]:
    """Write folder/ckpt and folder/bundle. Return the folder, the checkpoint in PyTorch and the bundle's model."""
    bert = str(training.bert_folder(folder / "bert"))
    vision = Checkpoint(blip2.generative(folder / "hf", blip2.TEXT_CONFIGS["opt"]())).config.vision
    qformer = QFormerConfig(**BertSource(bert).geometry, queries=4, vision_width=vision.features)
    llm = LlmConfig(str(training.llm_folder(folder / "llm")), end="<|end|>")
    text = {"max_text_length": 9, "clean_captions": True, "question_input": True, "question_prompt": "the {}"}
    config = Blip2Config(2, vision, qformer, llm=llm, qformer_init=bert, **text)
    (folder / "ckpt").mkdir()
    save_model(blip2.shake(blip2.build(config), 0.3), folder / "ckpt")
    assert main(["--ckpt", str(folder / "ckpt"), "--out", str(folder / "bundle"), "--precision", FLOAT]) == 0
    return folder, Checkpoint(folder / "ckpt").load(), blip2rt.load(folder / "bundle", threads=1)
