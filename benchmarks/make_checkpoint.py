"""A BLIP-2 checkpoint of a real geometry with random weights, in Hugging Face's format: fp16 shards, as on the hub.

    python -m benchmarks.make_checkpoint --geometry blip2-opt-2.7b --out /tmp/opt

For measuring export and runtime where the real one cannot be had. Tensors are made and written one by one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Blip2Config, Blip2Processor, BlipImageProcessor, OPTConfig, PreTrainedTokenizerFast, T5Config

from blip2rt.modeling import hugging_face, streaming
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.llm import empty_llm
from blip2rt.modeling.vision import VisionEncoder
from export.convert import save_tensors

QUERIES, IMAGE_TOKEN = 32, 50265
_OPT = {"vocab_size": 50304, "eos_token_id": 50118, "max_position_embeddings": 2048, "dropout": 0.0}
_T5 = {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "bos_token_id": 1,
       "decoder_start_token_id": 0, "d_kv": 64}  # fmt: skip
GEOMETRIES: dict[str, Any] = {
    "blip2-opt-2.7b": lambda: OPTConfig(
        hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, **_OPT
    ),
    "blip2-opt-6.7b": lambda: OPTConfig(
        hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32, **_OPT
    ),
    "blip2-flan-t5-xl": lambda: T5Config(d_model=2048, d_ff=5120, num_layers=24, num_heads=32, **_T5),
}
_NOISE = 1 << 22  # numbers that all tensors are cut from


def tokenizer(vocabulary: int, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """Bytes, and made-up words up to the size of the real vocabulary; </s> before a text as OPT's, or after as T5's."""
    specials = ["<pad>", "</s>", "<s>", "<unk>"] if encoder_decoder else ["<s>", "<pad>", "</s>", "<unk>"]
    template = ["$A", "</s>"] if encoder_decoder else ["</s>", "$A"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*specials, *letters, *(f"w{i}" for i in range(vocabulary - len(specials) - len(letters)))]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", specials.index("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>")  # fmt: skip


def make(geometry: str, out: Path) -> None:
    text = GEOMETRIES[geometry]()
    out.mkdir(parents=True)
    theirs = Blip2Config(text_config=text.to_dict(), num_query_tokens=QUERIES, image_token_index=IMAGE_TOKEN)
    if text.is_encoder_decoder:
        theirs.image_token_index = 32100
    theirs.architectures = ["Blip2ForConditionalGeneration"]
    theirs.save_pretrained(out)
    size = theirs.vision_config.image_size
    images = BlipImageProcessor(size={"height": size, "width": size})
    Blip2Processor(images, tokenizer(theirs.image_token_index, text.is_encoder_decoder), QUERIES).save_pretrained(out)
    config = hugging_face.read_config(out)
    with streaming.empty():
        model = Blip2(config, vision=False, llm=False)
        model.vision = VisionEncoder(replace(config.vision, weights=None), streamed=True)
        model.llm = empty_llm(theirs.text_config)
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * 0.02
    parameters = dict(model.named_parameters())
    streaming.bind(model, {name: _random(noise, i, name, parameters[name].shape) for i, name in enumerate(parameters)})
    save_tensors(model, out, "float16", theirs)


def _random(noise: torch.Tensor, index: int, name: str, shape: torch.Size) -> streaming.Reader:
    """The weights of norms are 1, everything else is noise, no two tensors the same."""

    def read() -> torch.Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape)
        count = shape.numel()
        rolled = noise.roll(index * 9973)
        return rolled.repeat(-(-count // _NOISE))[:count].view(shape)

    return read


def main() -> int:
    parser = argparse.ArgumentParser(description="Random weights in the format of a real BLIP-2 checkpoint.")
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="blip2-opt-2.7b")
    parser.add_argument("--out", type=Path, help="folder to write (default: ./GEOMETRY)")
    args = parser.parse_args()
    out = args.out or Path(args.geometry)
    if out.exists():
        print(f"make_checkpoint: error: {out} exists already: choose another place", file=sys.stderr)
        return 2
    make(args.geometry, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
