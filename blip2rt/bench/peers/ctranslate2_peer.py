"""CTranslate2 in int8, language model only: prefill and steps.

    python -m blip2rt.bench.peers.ctranslate2_peer JSON

The model of random weights is converted through a temporary folder with two bytes a weight. Decoder-only models only.
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
from .common import language_model, positions
from .timing import generation_stages, main


def convert(config: str, work: Path) -> str:
    """Convert a model of random weights and return its folder."""
    model = language_model(config, torch.float16)
    words = {f"w{i}": i for i in range(model.config.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    special = {"unk_token": "w3", "bos_token": "w2", "eos_token": "w2", "pad_token": "w1"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(work / "hf")
    model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(work / "hf")
    del model
    gc.collect()
    converter = ctranslate2.converters.TransformersConverter(str(work / "hf"), low_cpu_mem_usage=True)
    converter.convert(str(work / "ct2"), quantization="int8")
    return str(work / "ct2")


def measure(given: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        converted = convert(given["config"], Path(name))
        gc.collect()
        generator = ctranslate2.Generator(converted, device="cpu", intra_threads=given["threads"], inter_threads=1)
        prompt = [[f"w{i}" for i in range(10, 10 + positions(given["config"]))]] * given["batch"]
        options = {"beam_size": given["beams"], "include_prompt_in_result": False}

        def generate(tokens: int) -> None:
            generator.generate_batch(prompt, max_length=tokens, min_length=tokens, **options)

        stages = generation_stages(generate, given)
    # The peak includes the conversion.
    return {"stages": stages, "peak_rss": peak_rss(), "version": f"ctranslate2 {ctranslate2.__version__}"}


if __name__ == "__main__":
    sys.exit(main(measure))
