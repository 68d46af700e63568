"""Makes a bundle with a real geometry and random weights, which `blip2rt-bench --geometry` measures without a download.

Graphs, files and sizes match an export of the real checkpoint. Block-wise integers are drawn as they are stored; with
other precisions one tensor at a time passes through float32. `write_config` writes only Hugging Face's config and
processor, from which transformers builds the same model.
"""

import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Blip2Config, Blip2Processor, BlipImageProcessor, OPTConfig, PreTrainedTokenizerFast, T5Config

from blip2rt.modeling import streaming
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.quantize import QuantizedWeight
from blip2rt.modeling.vision import VisionEncoder

from . import assemble
from .arguments import parse_precision
from .options import BundleInfo, ExportOptions, ExportPlan, ModelSource
from .progress import Progress
from .targets import TARGETS

PRECISION = {
    "ort": {"vision": "int8-dynamic", "qformer": "int8-dynamic", "llm": "int4"},
    "trt": {"vision": "fp16", "qformer": "fp32", "llm": "fp16"},
}
QUERIES = 32
_OPT: dict[str, Any] = {"vocab_size": 50304, "eos_token_id": 50118, "max_position_embeddings": 2048, "dropout": 0.0}
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "decoder_start_token_id": 0,
    "d_kv": 64,
}
_STD = 0.02  # of all weights
_NOISE = 1 << 22  # numbers that all float tensors are cut from


@dataclass(frozen=True)
class Geometry:
    """The language model's config; the encoder's and the Q-Former's where they are not ViT-g's and BERT-base's."""

    text: Callable[[], Any]
    image_token: int = 50265  # also the size of the tokenizer
    vision: dict[str, Any] = field(default_factory=dict)
    qformer: dict[str, Any] = field(default_factory=dict)


def _opt(width: int, layers: int, heads: int, **more: Any) -> OPTConfig:
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return OPTConfig(num_hidden_layers=layers, num_attention_heads=heads, **{**_OPT, **sizes, **more})


def _t5(width: int, ffn: int, heads: int) -> T5Config:
    return T5Config(d_model=width, d_ff=ffn, num_layers=24, num_heads=heads, **_T5)


def _tower(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}


GEOMETRIES = {
    "blip2-opt-2.7b": Geometry(lambda: _opt(2560, 32, 32)),
    "blip2-opt-6.7b": Geometry(lambda: _opt(4096, 32, 32)),
    "blip2-flan-t5-xl": Geometry(lambda: _t5(2048, 5120, 32), 32100),
    "blip2-flan-t5-xxl": Geometry(lambda: _t5(4096, 10240, 64), 32100),
    "tiny": Geometry(
        lambda: _opt(128, 2, 4, vocab_size=528, eos_token_id=2), 500, {**_tower(128), "image_size": 56}, _tower(64)
    ),
}


def write_config(geometry: str, folder: Path) -> Any:
    """Write Hugging Face's config and processor of a geometry. The tokenizer's vocabulary is invented."""
    shape = GEOMETRIES[geometry]
    text = shape.text()
    theirs: Any = Blip2Config(
        text_config=text.to_dict(),
        vision_config=shape.vision,
        qformer_config=shape.qformer,
        num_query_tokens=QUERIES,
        image_token_index=shape.image_token,
    )
    theirs.qformer_config.encoder_hidden_size = theirs.vision_config.hidden_size
    theirs.architectures = ["Blip2ForConditionalGeneration"]
    folder.mkdir(parents=True, exist_ok=True)
    theirs.save_pretrained(folder)
    size = theirs.vision_config.image_size
    images = BlipImageProcessor(size={"height": size, "width": size})
    words = tokenizer(shape.image_token, text.is_encoder_decoder)
    Blip2Processor(images, words, QUERIES).save_pretrained(folder)
    return theirs


def tokenizer(vocabulary: int, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, filled up with invented words to the size of the real vocabulary.

    </s> precedes a text as in OPT, or follows it as in T5.
    """
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
    ends = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ends)


class RandomCheckpoint(Checkpoint):
    """A folder of `write_config`, whose model gets random weights; each parameter is drawn when it is read."""

    def __init__(self, folder: Path, geometry: str) -> None:
        super().__init__(folder)
        self.path, self.source = folder, f"random weights of {geometry}"

    def load(self, *, vision: bool = True, llm: bool = True, streamed: bool = True) -> Blip2:
        """The whole model, streamed."""
        source = {"part": "all", "name": "random weights", "licence": "", "origin": "blip2rt_export.synthetic"}
        assert self.language_model is not None, "all geometries have a language model"
        with streaming.empty():
            encoder = VisionEncoder(replace(self.config.vision, weights=None), streamed=True)
            model = Blip2(replace(self.config, sources=(source,)), encoder, self.language_model.empty())
        noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0)) * _STD
        named = dict(model.named_parameters())
        streaming.bind(model, {name: _reader(noise, i, name, p.shape) for i, (name, p) in enumerate(named.items())})
        return model.eval()


def _reader(noise: torch.Tensor, index: int, name: str, shape: torch.Size) -> streaming.Reader:
    """A reader of random values: norms have weight 1, everything else is noise, different in each tensor."""

    def read() -> torch.Tensor:
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape)
        count = shape.numel()
        rolled = noise.roll(index * 9973)
        return rolled.repeat(-(-count // _NOISE))[:count].view(shape)

    return read


class RandomBlocks:
    """Draws block-wise integers instead of rounding weights to them (precision.quantizer.EncodeMatrix).

    tied_rows: the vocabulary's size if embedding and head share one table, which is then drawn identically.
    """

    def __init__(self, tied_rows: int | None) -> None:
        self.tied_rows = tied_rows

    def __call__(
        self, name: str, shape: tuple[int, int], read: Callable[[], torch.Tensor], bits: int, block: int
    ) -> QuantizedWeight:
        rows, width = shape
        blocks = -(-width // block)
        seed = zlib.crc32(b"table" if rows == self.tied_rows else name.encode())
        rng = np.random.Generator(np.random.SFC64(seed))
        codes = np.frombuffer(bytearray(rng.bytes(rows * blocks * block * bits // 8)), np.uint8)
        spread = (2**bits - 1) / 12**0.5  # standard deviation of the codes
        scales = rng.uniform(0.9, 1.1, (rows, blocks)).astype(np.float16) * np.float16(_STD / spread)
        zero = 0x88 if bits == 4 else 0x80
        zeros = np.full((rows, -(-blocks * bits // 8)), zero, np.uint8)
        stored, scale, zero_points = map(torch.from_numpy, (codes.reshape(rows, blocks, -1), scales, zeros))
        return QuantizedWeight(stored, scale, zero_points, bits, block, shape)


def make(geometry: str, out: Path, precision: str, target: str) -> assemble.Result:
    """Write the bundle, or nothing and raise Blip2rtError. precision: GROUP=P,... of all groups."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    chosen = _precision(precision, target)
    with tempfile.TemporaryDirectory() as name:
        theirs = write_config(geometry, Path(name))
        text = theirs.text_config
        options = ExportOptions(
            ModelSource(geometry), out, TARGETS[target], chosen, info=BundleInfo(geometry), overwrite=True, verify=False
        )
        plan = ExportPlan(RandomCheckpoint(Path(name), geometry), None, chosen, geometry)
        encode = RandomBlocks(text.vocab_size if text.tie_word_embeddings else None)
        return assemble.export(options, Progress(), plan, encode)


def _precision(given: str, target: str) -> dict[str, str]:
    """Parse GROUP=P,... Random weights cannot be calibrated, so int8 is int8-dynamic."""
    choices = {group: TARGETS[target].precisions[group] for group in PRECISION[target]}
    if target != "ort":
        choices = {group: tuple(each for each in allowed if each != "int8") for group, allowed in choices.items()}
    precision = parse_precision(given, choices)
    return PRECISION[target] | {group: "int8-dynamic" if each == "int8" else each for group, each in precision.items()}
