"""The manifest's description of a model: preprocessing, geometry, special ids, prompts. Also writes tokenizer files.

Does not know about graphs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip2rt.bundle import Decoding, ImageSpec, LlmSpec, QuestionSpec, RetrievalSpec, Source, Verification
from blip2rt.errors import Blip2rtError
from blip2rt.language import open_llm_tokenizer
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.vision import VisionConfig
from blip2rt.native import native

from .checks import verify
from .graphs import llm, t5
from .options import ExportOptions, LlmOptions

Arrays = dict[str, np.ndarray]

TOKENIZER, QFORMER_TOKENIZER, QUESTION_TOKENIZER = "tokenizer.json", "qformer_tokenizer.json", "question_tokenizer.json"
_TEXTS = ("a dog", "two people are walking on a beach at sunset", "red")  # to verify graphs with
_QUESTIONS = (  # to calibrate int8 with
    "how many people are there? / what is on the table? / is it raining? / where was this taken? / what is the man "
    "holding in his left hand? / which animal sits beside the window? / what does the sign say? / is the woman in the "
    "red dress smiling? / what kind of food is on the plate? / are these cars parked or moving? / what time of day "
    "could it be, and why do you think so? / who wears a hat?"
).split(" / ")


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its description."""

    model: Any  # Hugging Face's
    config: LlmConfig
    spec: LlmSpec
    prompts: list[list[int]]  # token ids of three prompts to test it with, one of them empty
    questions: list[list[int]]  # token ids of a caption's prompt and of questions, to calibrate it with

    @property
    def start(self) -> int | None:
        """The token that an encoder-decoder's decoder starts from."""
        return self.spec.decoder_start_token_id

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


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


def size_notes(vision: VisionConfig, llm: LlmSpec | None, options: ExportOptions) -> list[str]:
    """Notes if the model does not support the requested image size or positions."""
    notes, positions = [], options.llm.max_positions
    if llm is not None and llm.max_positions < positions != LlmOptions().max_positions:  # the default is no request
        limit = f"{llm.max_positions:,}"
        notes.append(f"--max-positions is {positions:,}, but the language model and the bundle have {limit}")
    if options.source.image_size is not None and vision.vit is not None and vision.height % vision.vit.patch:
        patch, rest = vision.vit.patch, vision.height % vision.vit.patch
        notes.append(
            f"--image-size {vision.height} is not a multiple of the patch size {patch}: the last {rest} rows and "
            f"columns are ignored; give {vision.height - rest} or {vision.height - rest + patch}"
        )
    return notes


def language_model(checkpoint: Checkpoint, model: Any, folder: Path, max_positions: int) -> LanguageModel:
    """Describe `model`, the loaded language model of a checkpoint. Write its tokenizer into `folder`."""
    source = checkpoint.language_model
    assert source is not None, "only stage 2 has a language model"
    config, tokenizer, ends = source.config, source.tokenizer, source.end_token_ids
    _save(tokenizer, folder / TOKENIZER)
    encoder_decoder = model.config.is_encoder_decoder
    shape = t5.geometry(model, max_positions) if encoder_decoder else llm.geometry(model)
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
        decoder_start_token_id=t5.start_token(model) if encoder_decoder else None,
        image_token_id=_image_token(config.image_token_id, shape.vocab_size, encoder_decoder),
        clean_up_tokenization_spaces=_cleans_up(tokenizer),
    )
    ours = open_llm_tokenizer(folder / TOKENIZER, spec)
    asked = [config.ask_prompt.replace("{}", question) for question in ("what colour is the dog?", *_QUESTIONS)]
    if config.add_special_tokens and ours.encode(asked[0]) != tokenizer(asked[0])["input_ids"]:
        raise Blip2rtError(
            f"the tokenizer of {config.source} lays prompts out differently from its tokenizer.json; save it with "
            "transformers' fast tokenizer"
        )
    empty, caption, question, *others = map(ours.encode, ("", config.caption_prompt, *asked))
    return LanguageModel(model, config, spec, [empty, caption, question], [caption, *others])


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


def verification(rows: Iterable[verify.Comparison]) -> tuple[Verification, ...]:
    """The comparisons with PyTorch."""
    return tuple(
        Verification(row.component, row.precision, row.max_abs_error, row.cosine, row.agreement)
        for row in rows
        if row.against == verify.PYTORCH
    )


def retrieval_spec(checkpoint: Checkpoint, temperature: float, folder: Path) -> RetrievalSpec:
    """How a text enters the Q-Former, and how scores are computed. Writes the tokenizer into `folder`."""
    fields = _text_fields(checkpoint, folder, QFORMER_TOKENIZER)
    return RetrievalSpec(**fields, temperature=temperature, itm_weight=checkpoint.config.itm_weight)


def question_spec(checkpoint: Checkpoint, folder: Path) -> QuestionSpec | None:
    """How a question enters the Q-Former, if it does. Writes the tokenizer into `folder`."""
    if not checkpoint.config.question_input:
        return None
    fields = _text_fields(checkpoint, folder, QUESTION_TOKENIZER)
    return QuestionSpec(**fields, prompt=checkpoint.config.question_prompt)


def _text_fields(checkpoint: Checkpoint, folder: Path, file: str) -> dict[str, Any]:
    """The fields of either, whose tokenizer is saved as `file`."""
    config, tokenizer = checkpoint.config, checkpoint.bert.tokenizer
    _save(tokenizer, folder / file)
    padding = {"max_text_length": config.max_text_length, "pad_token_id": tokenizer.pad_token_id}
    return {"tokenizer": file, "clean_captions": config.clean_captions, **padding}


def qformer_texts(checkpoint: Checkpoint) -> tuple[Arrays, list[Arrays]]:
    """token_ids and text_mask (3,L) of texts of unequal length that a Q-Former reads, to verify it with, and of
    questions, to calibrate it with; empty if it reads none."""
    config = checkpoint.config
    if config.stage == 2 and not config.question_input:
        return {}, [{}]
    asked = [config.question_prompt.replace("{}", question) for question in _QUESTIONS]
    parts = [asked[start : start + 3] for start in range(0, len(asked), 3)]
    return _tokenize(checkpoint, _TEXTS), [_tokenize(checkpoint, part) for part in parts]


def _tokenize(checkpoint: Checkpoint, texts: Sequence[str]) -> Arrays:
    """token_ids and text_mask (B,L) of texts that the Q-Former reads."""
    length, tokenizer = checkpoint.config.max_text_length, checkpoint.bert.tokenizer
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="np")
    return {"token_ids": encoded["input_ids"].astype(np.int64), "text_mask": encoded["attention_mask"].astype(np.int64)}
