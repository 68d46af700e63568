"""The manifest's description of a model: preprocessing, geometry, special ids, prompts. Also writes tokenizer files.

Does not know about graphs.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt.bundle import Decoding, ImageSpec, LlmSpec, QuestionSpec, RetrievalSpec, Source
from blip2rt.errors import Blip2rtError
from blip2rt.language import open_llm_tokenizer
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LanguageModelSource
from blip2rt.native import native

from .graphs import llm, t5

TOKENIZER, QFORMER_TOKENIZER, QUESTION_TOKENIZER = "tokenizer.json", "qformer_tokenizer.json", "question_tokenizer.json"
_TEXTS = ("a dog", "two people are walking on a beach at sunset", "red")  # to verify graphs with
_QUESTIONS = (  # to calibrate int8 with
    "how many people are there? / what is on the table? / is it raining? / where was this taken? / what is the man "
    "holding in his left hand? / which animal sits beside the window? / what does the sign say? / is the woman in the "
    "red dress smiling? / what kind of food is on the plate? / are these cars parked or moving? / what time of day "
    "could it be, and why do you think so? / who wears a hat?"
).split(" / ")


def image_spec(config: Any) -> ImageSpec:
    """How an image becomes pixels, from the vision part of a config."""
    return ImageSpec(config.height, config.width, config.resample, tuple(config.mean), tuple(config.std))


def sources(configs: Iterable[Blip2Config]) -> tuple[Source, ...]:
    """Every part once, as the checkpoints name them."""
    found = {tuple(sorted(source.items())): source for config in configs for source in config.sources}
    keys = ("part", "name", "licence", "origin")
    return tuple(Source(*(str(source.get(key, "")) for key in keys)) for source in found.values())


def prompts(config: Blip2Config) -> dict[str, str]:
    """The templates of captions and questions; none without a model that generates."""
    return {} if config.llm is None else {"caption": config.llm.caption_prompt, "ask": config.llm.ask_prompt}


def decoding(config: Blip2Config, length_penalty: float) -> dict[str, Decoding]:
    """The defaults of captions and answers: three beams, since the paper's five cost too much on the edge."""
    if config.llm is None:
        return {}
    return {"caption": Decoding(3, 30, 1, length_penalty, config.llm.no_repeat_words), "ask": Decoding(3, 10, 1, 1.0)}


def size_notes(image: ImageSpec, llm: LlmSpec | None, patch: int, size: int | None, positions: int | None) -> list[str]:
    """Notes if the model does not support the requested image size or positions. patch: of a ViT, or 0."""
    notes = []
    if llm is not None and positions is not None and llm.max_positions < positions:
        limit = f"{llm.max_positions:,}"
        notes.append(f"--max-positions is {positions:,}, but the language model and the bundle have {limit}")
    if size is not None and patch and image.height % patch:
        multiple = image.height - image.height % patch
        notes.append(
            f"--image-size {image.height} is not a multiple of the patch size {patch}: the last "
            f"{image.height - multiple} rows and columns are ignored; give {multiple} or {multiple + patch}"
        )
    return notes


def llm_spec(
    checkpoint: Checkpoint, language: Any, folder: Path, max_positions: int
) -> tuple[LlmSpec, list[list[int]]]:
    """Return the llm section, and token ids of three prompts to test it with, one of them empty. Write the tokenizer
    into `folder`. language: the loaded language model.
    """
    source = checkpoint.language_model
    assert source is not None, "only stage 2 has a language model"
    config, tokenizer, ends = source.config, source.tokenizer, source.end_token_ids
    _save(tokenizer, folder / TOKENIZER)
    encoder_decoder = language.config.is_encoder_decoder
    shape = t5.geometry(language, max_positions) if encoder_decoder else llm.geometry(language)
    pad = tokenizer.pad_token_id
    spec = LlmSpec(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        max_positions=min(shape.max_positions, max_positions),
        prefix_length=checkpoint.config.qformer.queries,
        bos_token_id=tokenizer.bos_token_id,
        prepend_bos=config.prepend_bos,
        eos_token_ids=ends,
        pad_token_id=ends[0] if pad is None else pad,
        tokenizer=TOKENIZER,
        add_special_tokens=config.add_special_tokens,
        empty_prompt_ids=config.empty_prompt_ids,
        encoder_decoder=encoder_decoder,
        decoder_start_token_id=t5.start_token(language) if encoder_decoder else None,
        image_token_id=_image_token(config.image_token_id, shape.vocab_size, encoder_decoder),
        clean_up_tokenization_spaces=_cleans_up(tokenizer),
    )
    ours = open_llm_tokenizer(folder / TOKENIZER, spec)
    texts = ("", config.caption_prompt, config.ask_prompt.replace("{}", "what colour is the dog?"))
    if config.add_special_tokens and ours.encode(texts[2]) != tokenizer(texts[2])["input_ids"]:
        raise Blip2rtError(
            f"the tokenizer of {config.source} lays prompts out differently from its tokenizer.json; save it with "
            "transformers' fast tokenizer"
        )
    return spec, [ours.encode(text) for text in texts]


def calibration_prompts(checkpoint: Checkpoint, spec: LlmSpec, folder: Path) -> list[list[int]]:
    """Token ids of a caption's prompt and of questions, by the tokenizer in `folder`."""
    assert checkpoint.language_model is not None
    config, ours = checkpoint.language_model.config, open_llm_tokenizer(folder / TOKENIZER, spec)
    asked = [config.ask_prompt.replace("{}", question) for question in _QUESTIONS]
    return [ours.encode(text) for text in (config.caption_prompt, *asked)]


def _image_token(token: int | None, vocab_size: int, encoder_decoder: bool) -> int | None:
    """The token that a decoder-only model counts for an image's positions; None if its logits have no such token."""
    return None if encoder_decoder or token is None or not 0 <= token < vocab_size else token


def _cleans_up(tokenizer: Any) -> bool:
    """Whether Hugging Face's tokenizer removes spaces before punctuation from a decoded text; BPE's do not."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(type(tokenizer.backend_tokenizer.model).__name__ != "BPE" or forced)


def require_tokenizers(checkpoint: Checkpoint) -> None:
    """Raise Blip2rtError if a tokenizer of the model cannot be read."""
    faults, source = [], checkpoint.language_model
    if source is not None:
        faults.append(_fault(lambda: source.tokenizer, "--tokenizer") or _foreign(source))
    if source is None or checkpoint.config.question_input:
        flag = "--tokenizer (beside another: --qformer-tokenizer)" if source is None else "--qformer-tokenizer"
        faults.append(_fault(lambda: checkpoint.bert.tokenizer, flag))
    if any(faults):
        raise Blip2rtError("; ".join(filter(None, faults)))


def _foreign(source: LanguageModelSource) -> str:
    """A fault if a tokenizer that was named has more words than the language model; else ""."""
    if source.config.tokenizer is None:
        return ""
    words = source.tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    room = source.text_config.vocab_size
    if words <= room:
        return ""
    return (
        f"the tokenizer {source.config.tokenizer!r} has {words:,} words and the language model {room:,}: give its own"
    )


def _fault(load: Callable[[], Any], flag: str) -> str:
    """The fault of a tokenizer that cannot be loaded, here or in a bundle, and the flag to name another; else ""."""
    try:
        native.Tokenizer(load().backend_tokenizer.to_str().encode())
    except Blip2rtError as error:
        return f"{error}, or give {flag} FOLDER"
    except RuntimeError as error:
        return f"a bundle cannot have this tokenizer ({error}): give {flag} FOLDER"
    return ""


def _save(tokenizer: Any, path: Path) -> None:
    """Write the fast tokenizer, without padding and truncation, as compact JSON."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")  # backend.save reports a full disk as a plain Exception


def retrieval_spec(checkpoint: Checkpoint, temperature: float, folder: Path) -> RetrievalSpec:
    """How a text enters the Q-Former, and how scores are computed. Writes the tokenizer into `folder`."""
    config, tokenizer = checkpoint.config, checkpoint.bert.tokenizer
    _save(tokenizer, folder / QFORMER_TOKENIZER)
    return RetrievalSpec(
        tokenizer=QFORMER_TOKENIZER,
        max_text_length=config.max_text_length,
        pad_token_id=tokenizer.pad_token_id,
        temperature=temperature,
        itm_weight=config.itm_weight,
        clean_captions=config.clean_captions,
    )


def question_spec(checkpoint: Checkpoint, folder: Path) -> QuestionSpec | None:
    """How a question enters the Q-Former, if it does. Writes the tokenizer into `folder`."""
    if not checkpoint.config.question_input:
        return None
    config, tokenizer = checkpoint.config, checkpoint.bert.tokenizer
    _save(tokenizer, folder / QUESTION_TOKENIZER)
    return QuestionSpec(
        QUESTION_TOKENIZER,
        config.max_text_length,
        tokenizer.pad_token_id,
        config.clean_captions,
        config.question_prompt,
    )


def qformer_texts(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """token_ids and text_mask (3,L) of texts that a Q-Former reads, of unequal length; empty if it reads none."""
    config = checkpoint.config
    return {} if config.stage == 2 and not config.question_input else _tokenize(checkpoint, _TEXTS)


def calibration_texts(checkpoint: Checkpoint) -> list[dict[str, np.ndarray]]:
    """token_ids and text_mask (3,L) of questions that a Q-Former of stage 2 reads; an empty one if it reads none."""
    config = checkpoint.config
    if not config.question_input:
        return [{}]
    texts = [config.question_prompt.replace("{}", question) for question in _QUESTIONS]
    return [_tokenize(checkpoint, texts[start : start + 3]) for start in range(0, len(texts), 3)]


def _tokenize(checkpoint: Checkpoint, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """token_ids and text_mask (B,L) of texts that the Q-Former reads."""
    length, tokenizer = checkpoint.config.max_text_length, checkpoint.bert.tokenizer
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="np")
    return {"token_ids": encoded["input_ids"].astype(np.int64), "text_mask": encoded["attention_mask"].astype(np.int64)}
