"""Tells what the manifest says of a model: preprocessing, geometry, special ids, prompts. Writes the tokenizers' files.

Knows the checkpoint's config and Hugging Face tokenizers, nothing about graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip2rt.bundle import Decoding, ImageSpec, LlmSpec, QuestionSpec, RetrievalSpec, Source
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoints import qformer_tokenizer
from blip2rt.modeling.llm import LlmConfig, end_token_ids, llm_tokenizer, sees_both_ways, text_config
from blip2rt.text import LlmTokenizer

from .graphs import llm, t5

TOKENIZER, QFORMER_TOKENIZER, QUESTION_TOKENIZER = "tokenizer.json", "qformer_tokenizer.json", "question_tokenizer.json"
_TEXTS = ("a dog", "two people are walking on a beach at sunset", "red", "the man in a blue shirt rides a bike")
_CALIBRATING = (
    "how many people are there?", "what is on the table?", "is it raining?", "where was this taken?",
    "what is the man holding in his left hand?", "which animal sits beside the window?", "what does the sign say?",
    "is the woman in the red dress smiling?", "what kind of food is on the plate?", "are these cars parked or moving?",
    "what time of day could it be, and why do you think so?", "who wears a hat?", "can you see the sky?",
    "what is this made of?", "how many wheels does the truck have?", "what sport do they play?", "is this indoors?",
    "which of the two bottles is full?", "what brand is the laptop?", "whose bag lies on the chair?",
    "why are they standing in line?", "what number is on the front of the train?", "is there a bridge behind the boat?",
)  # fmt: skip
_JUDGED = (
    "what colour is the dog?", "does anybody look at the camera?", "what are the children doing near the water?",
    "how old is this building?", "why is there so much snow on the road?", "what hangs on the wall?",
    "is the cat asleep?",
    "which fruit has been cut?", "what is the person on the bike carrying on her back?", "are the lights on?",
    "how far away are the mountains?",
)  # fmt: skip


def created_by() -> str:
    """Name the package and its version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"blip2rt {version('blip2rt')}"
    except PackageNotFoundError:  # run from a checkout
        return "blip2rt (checkout)"


def image_spec(config: Any) -> ImageSpec:
    """Tell how an image becomes pixels, from the vision part of a config."""
    return ImageSpec(config.height, config.width, config.resample, tuple(config.mean), tuple(config.std))


def sources(models: Iterable[Any]) -> tuple[Source, ...]:
    """Every part once, as the checkpoints name them."""
    found = {tuple(sorted(source.items())): source for model in models for source in model.config.sources}
    keys = ("part", "name", "licence", "origin")
    return tuple(Source(*(str(source.get(key, "")) for key in keys)) for source in found.values())


def prompts(model: Any | None) -> dict[str, str]:
    """The templates of captions and questions; none without a model that generates."""
    if model is None:
        return {}
    return {"caption": model.config.llm.caption_prompt, "ask": model.config.llm.ask_prompt}


def decoding(length_penalty: float) -> dict[str, Decoding]:
    """The defaults of captions and answers: three beams, as the paper's five cost more on the edge than they give."""
    return {"caption": Decoding(3, 30, 1, length_penalty), "ask": Decoding(3, 10, 1, 1.0)}


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts to try a language model with. A caption's, or none, is in each; no question is in two.

    In place of words that a tokenizer does not know, as one of another language, stand some that it does.
    """

    plain: list[list[int]]  # three, and one of them empty
    judged: list[list[int]]  # as users have them: a caption's and questions'
    calibrating: list[list[int]]  # the same with other questions


def llm_spec(model: Any, language: Any, folder: Path, max_positions: int) -> tuple[LlmSpec, Prompts]:
    """Return the llm section, and prompts. Write the tokenizer into `folder`."""
    config = model.config.llm
    tokenizer = llm_tokenizer(config)
    _save(tokenizer, folder / TOKENIZER)
    encoder_decoder = language.config.is_encoder_decoder
    shape = t5.geometry(language, max_positions) if encoder_decoder else llm.geometry(language)
    ends = end_token_ids(tokenizer, config)
    pad = tokenizer.pad_token_id
    spec = LlmSpec(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        max_positions=min(shape.max_positions, max_positions),
        prefix_length=model.config.qformer.queries,
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
        clean_up_tokenization_spaces=_cleans(tokenizer),
        bidirectional_prompt=sees_both_ways(language.config),
    )
    ours = LlmTokenizer(folder / TOKENIZER, spec)
    texts = ("", config.caption_prompt, config.ask_prompt.replace("{}", "what colour is the dog?"))
    if config.add_special_tokens and ours.encode(texts[2]) != tokenizer(texts[2])["input_ids"]:
        raise Blip2rtError(
            f"the tokenizer of {config.source} lays prompts out in a way that its tokenizer.json does not say; save it "
            "with transformers' fast tokenizer"
        )

    others = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    rng = np.random.default_rng(0)

    def filled(questions: Iterable[str]) -> list[list[int]]:
        asked = [ours.encode(config.ask_prompt.replace("{}", question)) for question in questions]
        for ids in asked:
            ids[:] = [int(rng.choice(others)) if token == tokenizer.unk_token_id else token for token in ids]
        return [ours.encode(config.caption_prompt), *asked]

    return spec, Prompts([ours.encode(text) for text in texts], filled(_JUDGED), filled(_CALIBRATING))


def _image_token(token: int | None, vocab_size: int, encoder_decoder: bool) -> int | None:
    """What a decoder-only model counts for an image's positions; None where its logits have no such token."""
    return None if encoder_decoder or token is None or not 0 <= token < vocab_size else token


def _cleans(tokenizer: Any) -> bool:
    """Whether Hugging Face's tokenizer takes spaces before punctuation out of a decoded text: never of BPE's."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(type(tokenizer.backend_tokenizer.model).__name__ != "BPE" or forced)


@torch.no_grad()
def llm_inputs(language: Any, token_ids: list[list[int]], prefixes: np.ndarray) -> list[np.ndarray]:
    """token ids of prompts, prefixes (n,Q,D) -> [prefix | prompt] embeddings (S_b,D), one row a prompt, of unequal
    length."""
    table = language.get_input_embeddings()
    rows = []
    for number, ids in enumerate(token_ids):
        prompt = table(torch.tensor(ids, dtype=torch.int64)).numpy()
        rows.append(np.concatenate((prefixes[number % len(prefixes)], prompt)).astype(np.float32))
    return rows


def require_tokenizers(config: Any) -> None:
    """Raise Blip2rtError where a tokenizer of the model cannot be read."""
    faults = []
    if config.stage == 2:
        faults.append(_fault(lambda: llm_tokenizer(config.llm), "--tokenizer") or _foreign(config.llm))
    if config.stage == 1 or config.question_input:
        flag = "--qformer-tokenizer" if config.stage == 2 else "--tokenizer (beside another: --qformer-tokenizer)"
        faults.append(_fault(lambda: qformer_tokenizer(config), flag))
    if any(faults):
        raise Blip2rtError("; ".join(filter(None, faults)))


def _foreign(config: LlmConfig) -> str:
    """What is wrong with a tokenizer that was named, beside the language model; "" where they fit."""
    if config.tokenizer is None:
        return ""
    words = llm_tokenizer(config).backend_tokenizer.get_vocab_size(with_added_tokens=False)
    room = text_config(config.source).vocab_size
    if words <= room:
        return ""
    return f"the tokenizer {config.tokenizer!r} has {words:,} words and the language model {room:,}: give its own"


def _fault(load: Callable[[], Any], flag: str) -> str:
    """What is wrong with a tokenizer, and the flag that names another; "" where it can be loaded."""
    try:
        load()
    except Blip2rtError as error:
        return f"{error}, or give {flag} FOLDER"
    return ""


def _save(tokenizer: Any, path: Path) -> None:
    """Write the fast tokenizer alone, as small as JSON gets. How it pads and cuts is the reader's affair."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    path.write_text(backend.to_str(), encoding="utf-8")  # backend.save reports a full disk as a plain Exception


def retrieval_spec(model: Any, folder: Path) -> RetrievalSpec:
    """Tell how a text enters the Q-Former, and what scores are made of. Write the tokenizer into `folder`."""
    tokenizer = qformer_tokenizer(model.config)
    _save(tokenizer, folder / QFORMER_TOKENIZER)
    config = model.config
    return RetrievalSpec(
        tokenizer=QFORMER_TOKENIZER,
        max_text_length=config.max_text_length,
        pad_token_id=tokenizer.pad_token_id,
        temperature=model.temperature.item(),
        itm_weight=config.itm_weight,
        clean_captions=config.clean_captions,
    )


def question_spec(model: Any, folder: Path) -> QuestionSpec | None:
    """Tell how a question enters the Q-Former; None where it does not."""
    if not model.config.question_input:
        return None
    config, tokenizer = model.config, qformer_tokenizer(model.config)
    _save(tokenizer, folder / QUESTION_TOKENIZER)
    return QuestionSpec(
        QUESTION_TOKENIZER,
        config.max_text_length,
        tokenizer.pad_token_id,
        config.clean_captions,
        config.question_prompt,
    )


def example_texts(model: Any) -> dict[str, np.ndarray]:
    """Make token_ids and text_mask (3,L) of captions of unequal length."""
    return _read(model, _TEXTS[:3])


def example_questions(model: Any, calibrating: bool) -> list[dict[str, np.ndarray]]:
    """Make token_ids and text_mask (3,L) of questions as the Q-Former reads them: those to judge with, or others."""
    questions = _CALIBRATING if calibrating else _JUDGED[:3]
    texts = [model.config.question_prompt.replace("{}", question) for question in questions]
    return [_read(model, texts[start : start + 3]) for start in range(0, len(texts), 3)]


def _read(model: Any, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """token_ids and text_mask (B,L) of texts that the Q-Former reads."""
    tokenizer = qformer_tokenizer(model.config)
    length = model.config.max_text_length
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="np")
    return {
        "token_ids": encoded["input_ids"].astype(np.int64),
        "text_mask": encoded["attention_mask"].astype(np.int64),
    }
