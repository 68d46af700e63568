"""Hugging Face `generate` as the reference of the native loop: the same tiny random model in both worlds.

Tokens may only differ if Hugging Face itself is undecided: if noise of ROUNDING in its logits changes its answer.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

for package in ("torch", "transformers", "onnxscript"):
    pytest.importorskip(package)

import torch
import transformers

from blip2rt._native import Vocabulary
from blip2rt_export.graphs import llm, t5, trace
from tests.engines.native import Generator, Session, runtime
from tests.seeds import seed_of
from tests.tiny.logit_noise import is_tie

HIDDEN, POSITIONS = 32, 64
ROUNDING = 3e-5  # of a logit in float32
SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": POSITIONS}
SMALL |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_LLAMA = {"vocab_size": 83, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16}
_GEMMA = _LLAMA | {"query_pre_attn_scalar": 16, "sliding_window": 6}
_OPT = {"vocab_size": 83, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "dropout": 0.0}
_T5: dict[str, Any] = {"vocab_size": 83, "d_model": HIDDEN, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
_T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.0}
_T5 |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
_LAYERS = ["sliding_attention", "full_attention"]
CONFIGS = {
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA, layer_types=_LAYERS, **SMALL),
    "llama": lambda: transformers.LlamaConfig(**_LLAMA, **SMALL),
    "opt": lambda: transformers.OPTConfig(**_OPT, **SMALL),
    "t5": lambda: transformers.T5Config(**_T5, eos_token_id=None, pad_token_id=0),
    "wide": lambda: transformers.OPTConfig(**_OPT | {"vocab_size": 1111}, **SMALL),  # selection skips most words
}
# The text of each token: so few letters that stop strings come up by chance.
TEXTS = ["".join(letters) for length in range(1, 8) for letters in product("abc", repeat=length)]


@dataclass
class Case:
    """A model in both worlds, and a batch of images with unequal prompts."""

    model: Any
    generator: Any
    prefix: np.ndarray
    prompts: list[list[int]]
    seed: int
    said: list[int] = field(default_factory=list)  # tokens which the model likes to say, the likeliest first

    @property
    def texts(self) -> list[str]:
        """The text of each token."""
        return TEXTS[: self.model.config.vocab_size]


def make_case(name: str, folder: Path, seed: int | None = None, images: int = 3) -> Case:
    """Export a tiny model. seed: None is the same in every file of tests, so that a model's graphs are traced once."""
    seed = seed_of(__name__, name) if seed is None else seed
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the models are too small to share
    config = CONFIGS[name]()
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1: hide nothing behind that
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.get_output_embeddings().weight.data.mul_(3)  # decided opinions: few near ties
    return case_of(model, export(model, folder), seed, images)


def case_of(model: Any, generator: Generator, seed: int, images: int) -> Case:
    """Make a batch of random images and prompts for a model and its graphs."""
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = transformers.GenerationConfig(decoder_start_token_id=start)
    rng, width = np.random.default_rng(seed), model.get_input_embeddings().weight.shape[1]
    prefix = rng.normal(size=(images, 3, width)).astype(np.float32)
    prompts = [rng.integers(0, model.config.vocab_size, length).tolist() for length in (2, 0, 5, 1, 3)[:images]]
    case = Case(model, generator, prefix, prompts, seed)
    free = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 8, "eos_token_ids": []}
    said = Counter(token for image in range(images) for row in hugging_face(case, image, free)[0] for token in row[2:])
    case.said = [token for token, _ in said.most_common()]
    return case


def export(model: Any, folder: Path) -> Generator:
    """The model's graphs in the native loop."""
    parts = {"embed": trace.trace(llm.embed_graph(model))}
    if model.config.is_encoder_decoder:
        parts |= {"llm": t5.trace_decoder(model), "encoder": t5.trace_encoder(model)}
    else:
        parts["llm"] = llm.trace_llm(model)
    for name, graph in parts.items():
        trace.save(graph, folder / f"{name}.onnx", None)
    return open_graphs(model, folder)


def open_graphs(model: Any, folder: Path, custom_attention: bool = True, core: bool = False) -> Generator:
    """Open a folder's exported graphs. core: with the executor, not ONNX Runtime."""
    shape = t5.geometry(model, POSITIONS) if model.config.is_encoder_decoder else llm.geometry(model)
    sessions = {
        path.stem: Session(None if core else runtime(), str(path), 1, custom_attention=custom_attention)
        for path in folder.glob("*.onnx")
    }
    sizes = (shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size, shape.vocab_size)
    encoder = sessions.get("encoder")
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return Generator(sessions["embed"], sessions["llm"], *sizes, encoder, start)


@cache
def vocabulary(size: int) -> Vocabulary:
    return Vocabulary([text.encode() for text in TEXTS[:size]])


@cache
def tokenizer(size: int) -> Any:
    """What Hugging Face reads the tokens' texts from."""
    texts = {text: i for i, text in enumerate(TEXTS[:size])}
    texts["abcdef"] = size  # transformers before release 5 puts it before every token, to see what the token adds
    texts["?"] = size + 1  # a special token: text is cut where it stands, so it is none of the letters
    backend = Tokenizer(models.WordLevel(texts, unk_token="?"))
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")


def inputs(case: Case, image: int, forced: list[int]) -> dict[str, torch.Tensor]:
    """One image's prefix, prompt and what is given of the answer, as `generate` wants them."""
    prefix = torch.from_numpy(case.prefix[image : image + 1])

    def embeds(ids: list[int]) -> torch.Tensor:
        return torch.cat((prefix, case.model.get_input_embeddings()(torch.tensor([ids], dtype=torch.int64))), dim=1)

    if case.model.config.is_encoder_decoder:
        start = [case.model.config.decoder_start_token_id]
        return {"inputs_embeds": embeds(case.prompts[image]), "decoder_input_ids": torch.tensor([start + forced])}
    read = embeds(case.prompts[image] + forced)
    given = torch.tensor([forced], dtype=torch.int64)
    # Without a mask generate takes the length of input_ids for that of inputs_embeds.
    return {"inputs_embeds": read, "attention_mask": torch.ones(read.shape[:2], dtype=torch.int64), "input_ids": given}


def hugging_face(
    case: Case, image: int, options: dict[str, Any], processors: transformers.LogitsProcessorList | None = None
) -> tuple[list[list[int]], list[float] | None]:
    """What `generate` says about one image: new tokens without the stop token and padding, and scores of beams."""
    given = dict(options)
    stops, forced = given.pop("eos_token_ids", []), given.pop("forced_prefix", [])
    given["early_stopping"] = {"true": True, "false": False, "never": "never"}[given.pop("early_stopping", "false")]
    if given.get("num_beams", 1) == 1:
        given = {key: value for key, value in given.items() if key not in ("early_stopping", "length_penalty")}
    criteria = transformers.StoppingCriteriaList()
    if given.pop("vocabulary", None) is not None:  # not as stop_strings: release 4.57 hands the tokenizer on to T5
        texts = [text.decode() for text in given.pop("stop_strings")]
        criteria.append(transformers.StopStringCriteria(tokenizer(len(case.texts)), texts))
    told = inputs(case, image, forced)
    before = (told["decoder_input_ids"] if "decoder_input_ids" in told else told["input_ids"]).shape[1]
    with torch.no_grad():
        output = case.model.generate(
            **told,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=processors,
            stopping_criteria=criteria,
            **given,
        )
    scores = output.get("sequences_scores")
    beams = output.get("beam_indices")
    sequences = []
    for number, row in enumerate(output.sequences.tolist()):
        new = row[before:]
        if beams is not None:  # where a hypothesis ends, padding begins
            new = new[: int((beams[number] >= 0).sum())]
        end = next((i for i, token in enumerate(new) if token in stops), len(new))
        sequences.append(new[:end])
    return sequences, None if scores is None else scores.tolist()


def undecided(case: Case, image: int, options: dict[str, Any], want: list[list[int]]) -> bool:
    return is_tie(lambda processors: hugging_face(case, image, options, processors)[0], want, ROUNDING)


def random_options(rng: random.Random, case: Case) -> dict[str, Any]:
    """Options such as a user may combine, about tokens that the model is likely to say."""
    likely = case.said[:12]
    longest = rng.randint(1, 10)
    options: dict[str, Any] = {
        "num_beams": rng.choice([1, 1, 2, 3, 5]),
        "max_new_tokens": longest,
        "eos_token_ids": rng.sample(likely, min(rng.choice([0, 1, 1, 2, 3]), len(likely))),  # some say little
    }
    if rng.random() < 0.3:
        options["min_new_tokens"] = rng.randint(0, longest)
    if options["num_beams"] > 1:
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        options["early_stopping"] = rng.choice(["true", "false", "never"])
        options["length_penalty"] = rng.choice([-1.5, 0.0, 0.6, 1.0, 2.0])
    if rng.random() < 0.4:
        options["repetition_penalty"] = rng.choice([0.7, 1.3, 2.0, 5.0])
    if rng.random() < 0.3:
        options["no_repeat_ngram_size"] = rng.randint(1, 3)
    if rng.random() < 0.4:
        words = [[rng.choice(likely) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 4))]
        words = [word for word in words if len(word) > 1 or word[0] not in options["eos_token_ids"]]
        if words:  # Hugging Face takes no list that holds nothing but stop tokens
            stops = [[token] for token in options["eos_token_ids"]]
            options["bad_words_ids"] = words + stops[: rng.randint(0, 1)]
    if rng.random() < 0.3:
        options["forced_prefix"] = [
            rng.choice([*likely, rng.randrange(len(case.texts))]) for _ in range(rng.randint(1, 3))
        ]
    if rng.random() < 0.3:
        texts = [case.texts[rng.choice(likely)] for _ in range(2)] + ["".join(rng.choices("abc", k=rng.randint(2, 6)))]
        options["stop_strings"] = [text.encode() for text in rng.sample(texts, rng.randint(1, 3))]
        options["vocabulary"] = vocabulary(len(case.texts))
    return options


def compare(case: Case, options: dict[str, Any]) -> bool:
    """Assert that the loop gives the texts of Hugging Face for every image, unless that is undecided. Return whether
    all are equal."""
    equal = True
    got = case.generator.generate(case.prefix, case.prompts, options)
    for image in range(len(case.prompts)):
        want, scores = hugging_face(case, image, options)
        tokens = [sequence for sequence, _ in got[image]]
        if tokens != want and undecided(case, image, options, want):
            equal = False
            continue
        assert tokens == want, f"seed {case.seed}, image {image}, {options}"
        if scores is not None:
            np.testing.assert_allclose([score for _, score in got[image]], scores, rtol=1e-4, atol=1e-4)
    return equal
