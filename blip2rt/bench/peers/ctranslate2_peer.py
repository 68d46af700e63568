"""CTranslate2's int8 at the language model's share of the work: prefill and steps.

    python -m blip2rt.bench.peers.ctranslate2_peer JSON

The model is converted from random weights through a temporary folder of two bytes a weight. Decoder-only models alone.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
from tokenizers import Tokenizer, models

from ..machine import peak_rss
from ..stages import repeat, summary
from .common import language_model, main, positions


def convert(folder: str, work: Path) -> tuple[str, int]:
    """The converted model's folder, and its vocabulary's size."""
    model = language_model(folder, torch.float16)
    if model.config.is_encoder_decoder:
        raise ValueError("only decoder-only language models are compared")
    vocabulary = model.config.vocab_size
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w3"))
    special = {"unk_token": "w3", "bos_token": "w2", "eos_token": "w2", "pad_token": "w1"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(work / "hf")
    model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(work / "hf")
    del model
    gc.collect()
    converter = ctranslate2.converters.TransformersConverter(str(work / "hf"), low_cpu_mem_usage=True)
    converter.convert(str(work / "ct2"), quantization="int8")
    return str(work / "ct2"), vocabulary


def measure(given: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        converted, _ = convert(given["config"], Path(name))
        gc.collect()
        generator = ctranslate2.Generator(converted, device="cpu", intra_threads=given["threads"], inter_threads=1)
        prompt = [[f"w{i}" for i in range(10, 10 + positions(given["config"]))]] * given["batch"]

        def generate(tokens: int) -> None:
            generator.generate_batch(
                prompt, max_length=tokens, min_length=tokens, beam_size=given["beams"], include_prompt_in_result=False
            )

        first = repeat(lambda: generate(1), given["repeat"])
        whole = repeat(lambda: generate(given["new_tokens"]), given["repeat"])
    found = {"prefill": summary(first)}
    if given["new_tokens"] > 1:
        step = (summary(whole)["median"] - found["prefill"]["median"]) / (given["new_tokens"] - 1)
        found["decode step"] = {"median": step, "p10": step, "p90": step, "runs": len(whole)}
    return {
        "stages": found,
        "peak_rss": peak_rss(),  # of the conversion too
        "version": f"ctranslate2 {ctranslate2.__version__}",
    }


if __name__ == "__main__":
    sys.exit(main(measure))
