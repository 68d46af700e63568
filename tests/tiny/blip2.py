"""Tiny random BLIP-2 models in Hugging Face's format, saved by transformers with their processors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from blip2rt.modeling import blip2 as ours
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.modeling.vision import VisionEncoder

from . import training as tiny_training
from .llm_configs import CONFIGS, IMAGE, SLOW_CONFIGS, SPECIAL, WORDS

# transformers resizes with torchvision by default, which differs from Pillow by a level of 255 here and there
PILLOW: Any = getattr(transformers, "BlipImageProcessorPil", transformers.BlipImageProcessor)
TEXT_CONFIGS = CONFIGS | SLOW_CONFIGS
VISION = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 72}
VISION |= {"image_size": 28, "patch_size": 7}
QFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
QFORMER |= {"max_position_embeddings": 40}  # as tests/tiny/training.py's BERT
QUERIES = 5


def build(config: ours.Blip2Config, *, vision: bool = True, llm: bool = True) -> ours.Blip2:
    """Build a new model, with the frozen parts that its config names unless they are disabled."""
    language = None if config.llm is None else LanguageModelSource(config.llm)
    return ours.Blip2(
        config,
        VisionEncoder(config.vision) if vision else None,
        None if language is None or not llm else language.load(),
        llm_width=None if language is None else language.hidden_size,
    )


def shake(model: torch.nn.Module, by: float = 0.08) -> torch.nn.Module:
    """Add noise to all parameters: biases and norms start at 0 and 1, which would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return model.eval()


def llm_tokenizer(bos: bool = True, eos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of words that puts <s> first (bos) and </s> last (eos)."""
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.WordPiece(prefix="##")
    template = ["<s>"] * bos + ["$A"] + ["</s>"] * eos
    specials = [("<s>", 2), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def image_processor(size: int = VISION["image_size"]) -> Any:
    return transformers.BlipImageProcessor(size={"height": size, "width": size})


def generative(folder: Path, text: Any, *, vision: Any = None, qformer: Any = None, **saving: Any) -> Path:
    """Save a Blip2ForConditionalGeneration with the language model of config `text`, and its processor."""
    config = _config(transformers.Blip2Config, vision, qformer, text_config=text.to_dict(), image_token_index=IMAGE)
    tokenizer = _save(transformers.Blip2ForConditionalGeneration(config), folder, text, **saving)
    images = image_processor(config.vision_config.image_size)
    transformers.Blip2Processor(images, tokenizer, QUERIES).save_pretrained(folder)
    return folder


def _config(kind: Any, vision: Any, qformer: Any, **more: Any) -> Any:
    parts = {"vision_config": {**VISION, **(vision or {})}, "qformer_config": {**QFORMER, **(qformer or {})}}
    return kind(**parts, num_query_tokens=QUERIES, **more)


def _save(model: Any, folder: Path, text: Any, **saving: Any) -> transformers.PreTrainedTokenizerFast:
    """Save a model with noise; return a tokenizer for its language model."""
    shake(model)
    if not text.is_encoder_decoder:  # T5's are large enough
        shake(model.language_model, 0.15)  # otherwise it repeats one token
    model.to(saving.pop("dtype", torch.float32)).save_pretrained(folder, **saving)
    return llm_tokenizer(bos=not text.is_encoder_decoder, eos=text.is_encoder_decoder)


def retrieval(folder: Path, *, vision: Any = None, qformer: Any = None, **saving: Any) -> Path:
    """Save a Blip2ForImageTextRetrieval and its processor."""
    tiny_training.bert_folder(folder / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "bert")
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    reads_text = {"vocab_size": len(tokenizer), "use_qformer_text_input": True, **(qformer or {})}
    config = _config(transformers.Blip2Config, vision, reads_text, image_text_hidden_size=12)
    shake(transformers.Blip2ForImageTextRetrieval(config)).save_pretrained(folder, **saving)
    image_processor(config.vision_config.image_size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def instruct(folder: Path, text: Any) -> Path:
    """Save an InstructBlipForConditionalGeneration with the language model of config `text`, and its processor."""
    qformer_tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_training.bert_folder(folder / "bert"))
    qformer_tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    reads_text, generates = {"vocab_size": len(qformer_tokenizer)}, {"text_config": text.to_dict()}
    config = _config(transformers.InstructBlipConfig, None, reads_text, **generates, image_token_index=IMAGE)
    tokenizer = _save(transformers.InstructBlipForConditionalGeneration(config), folder, text)
    transformers.InstructBlipProcessor(image_processor(), tokenizer, qformer_tokenizer, QUERIES).save_pretrained(folder)
    return folder


def photographs(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Make random images of different sizes."""
    sizes = rng.integers(20, 90, (count, 2))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
