"""The manifest of a bundle, `blip2rt.json`: its fields, and dataclass <-> JSON. Touches no files.

The core judges manifests (engines/bundle). Unknown fields are ignored, so bundles of the same format version may have
more.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, cast, get_args, get_origin

from .checksum import EMPTY, KEY, insert_checksum
from .names import FORMAT, FORMAT_VERSION


@dataclass(frozen=True)
class TensorInfo:
    """A graph's input or output."""

    name: str
    dtype: str  # numpy's name: "float32", "int64", "int32"
    shape: tuple[int | str, ...]  # a size, or the letter of a free axis as in docs/inside/bundle.md


@dataclass(frozen=True)
class Component:
    """One ONNX graph."""

    graph: str  # file name inside the bundle
    precision: str  # "fp32", "fp16", "int8-static", "int8-dynamic", "int8w", "int4"; see docs/inside/bundle.md
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class ImageSpec:
    """How an RGB image becomes pixels: resize to (width, height), / 255, - mean, / std."""

    height: int  # pixels
    width: int  # pixels
    resample: str  # Pillow's filter: "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"
    mean: tuple[float, ...]  # per channel, in units of [0, 1]
    std: tuple[float, ...]  # per channel, in units of [0, 1]


@dataclass(frozen=True)
class LlmSpec:
    """Geometry and special ids of the language model."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int  # D
    vocab_size: int  # V
    max_positions: int  # prefix, prompt and new tokens together
    prefix_length: int  # Q, positions of the image
    bos_token_id: int | None
    prepend_bos: bool  # put bos between the prefix and the prompt
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    tokenizer: str  # file name inside the bundle
    add_special_tokens: bool = False  # use the tokenizer's own template; then prepend_bos is false
    empty_prompt_ids: tuple[int, ...] | None = None  # token ids of an empty prompt; None: encode it
    encoder_decoder: bool = False  # image and prompt are read by an encoder, the text starts in a decoder
    decoder_start_token_id: int | None = None  # first token of the decoder; required if encoder_decoder
    image_token_id: int | None = None  # the image's positions for repetition rules; None: none
    clean_up_tokenization_spaces: bool = False  # remove spaces before punctuation, like its tokenizer


@dataclass(frozen=True)
class RetrievalSpec:
    """How text enters the Q-Former."""

    tokenizer: str  # file name inside the bundle
    max_text_length: int  # tokens, [CLS] and [SEP] included
    pad_token_id: int
    temperature: float = 0.07  # of the contrastive loss: cosine / temperature is its logit
    itm_weight: float = 1.0  # of the matching head's log-odds, in Match.score
    likelihood_weight: float = 0.0  # of Match.likelihood, in Match.score; 0: not computed
    mean_prefix: str | None = None  # file of prefix_embeds (Q, D), the mean of photographs; required with a weight
    clean_captions: bool = False  # normalise texts by the core's clean_caption, as in training
    pool: str | None = None  # file of captions of other pictures, whose nearest ones guide captions


@dataclass(frozen=True)
class Logistic:
    """A logistic regression: P = 1 / (1 + exp(-bias - the sum of weight * signal))."""

    bias: float
    weights: dict[str, float]  # by the name of the signal; see engines/runtime/signals.h


@dataclass(frozen=True)
class Calibration:
    """How signals become probabilities, fitted by `blip2rt-train calibrate`. None: not fitted."""

    phrase: Logistic | None = None  # that a short phrase, as "a cat", is true of an image
    sentence: Logistic | None = None  # the same of a longer text
    label: Logistic | None = None  # that people name a label, of the candidates of Model.tag
    caption: Logistic | None = None  # that a generated caption is right
    nearness: Logistic | None = None  # of all labels: by cosines, which ones to look at
    label_text: tuple[float, ...] = ()  # (E): weights of a label's own embedding in its nearness
    mean_text: tuple[float, ...] = ()  # (E): mean embedding of labels; how near an image is to texts in general
    numbers: tuple[str, ...] = ()  # answers to "how many ...?", chosen by likelihood; none: answers are generated
    statement: Logistic | None = None  # that what a question states of its subject is true


@dataclass(frozen=True)
class QuestionSpec:
    """How a question enters the Q-Former of a generative bundle, in addition to the LLM's prompt."""

    tokenizer: str  # file name inside the bundle
    max_text_length: int  # tokens, [CLS] and [SEP] included
    pad_token_id: int
    clean_captions: bool = False  # as in RetrievalSpec
    prompt: str = "{}"  # the Q-Former's template; {} is the question


@dataclass(frozen=True)
class Decoding:
    """Decoding defaults of a task, with the meaning of Hugging Face's `generate`."""

    num_beams: int = 1
    max_new_tokens: int = 30
    min_new_tokens: int = 1
    length_penalty: float = 1.0
    no_repeat_words: bool = False  # ours: no content word twice


@dataclass(frozen=True)
class Source:
    """A third-party part and its licence."""

    part: str
    name: str
    licence: str
    origin: str


@dataclass(frozen=True)
class Verification:
    """How far an exported graph is from PyTorch, measured during export."""

    component: str  # or "all": vision, qformer and llm together, from pixels to tokens
    precision: str  # of all: of these three
    max_abs_error: float
    cosine: float | None = None
    agreement: float | None = None  # share of greedy tokens equal to PyTorch's; for llm and all


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    size: int  # bytes
    sha256: str  # lower-case hexadecimal


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader needs to know about a bundle. The writer fills in `files`."""

    name: str
    created_by: str
    components: dict[str, Component]
    image: ImageSpec
    llm: LlmSpec | None  # None: not generative
    retrieval: RetrievalSpec | None  # None: cannot match or embed
    prompts: dict[str, str]  # task -> template; "ask" holds one {}
    decoding: dict[str, Decoding]  # task -> defaults
    question: QuestionSpec | None = None  # None: the Q-Former reads no text when it generates
    sources: tuple[Source, ...] = ()
    verification: tuple[Verification, ...] = ()
    files: dict[str, FileEntry] | None = None
    calibration: Calibration | None = None  # None: match's probability is the matching head's
    target: str = "ort"  # what the graphs are made for: "ort" or "trt"


def to_json(manifest: Manifest) -> bytes:
    """Manifest -> the bytes of blip2rt.json, with their checksum."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, KEY: EMPTY, **asdict(manifest)}
    return insert_checksum((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def from_json(manifest: bytes) -> Manifest:
    """The bytes of a manifest that the core has accepted -> Manifest."""
    built: Manifest = _converter(Manifest)(json.loads(manifest))
    return built


@functools.cache
def _converter(hint: Any) -> Callable[[Any], Any]:
    """The function from a JSON value to an annotated type."""
    args, origin = get_args(hint), get_origin(hint)
    if is_dataclass(hint):
        make: Any = hint
        parts = {field.name: _converter(cast(Any, field.type)) for field in fields(make)}
        return lambda value: make(**{name: part(value[name]) for name, part in parts.items() if name in value})
    if origin is tuple:
        item = _converter(args[0])
        return lambda value: tuple(map(item, value))
    if origin is dict:
        item = _converter(args[1])
        return lambda value: {key: item(each) for key, each in value.items()}
    if type(None) in args:
        item = _converter(args[0])
        return lambda value: None if value is None else item(value)
    return float if hint is float else lambda value: value
