"""Stage 2's loss is that of the LLM's own logits, of whole texts and of cut ones; LLMs that take no packed texts."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from blip2rt.errors import OptionError
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt_train.data.samples import Sample
from blip2rt_train.objectives import lm
from blip2rt_train.objectives.lm import LmTexts, check_llm, lm_loss, next_logits, truncation_report
from blip2rt_train.objectives.packing import Tokens, pack
from blip2rt_train.objectives.prefix_lm import PrefixLmTexts, open_texts
from tests.seeds import new_seed
from tests.tiny.training import LLM_WORDS, llm_folder, t5_folder
from tests.train.arguments import sizes

WORDS, HIDDEN, QUERIES = 61, 64, 4
SMALL = sizes("intermediate_size=128 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2")
SMALL |= sizes("max_position_embeddings=96 bos_token_id=2 eos_token_id=1 pad_token_id=0")
SMALL |= {"vocab_size": WORDS, "hidden_size": HIDDEN}
SCALED: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "granite": lambda: transformers.GraniteConfig(logits_scaling=4.0, **SMALL),
    "cohere": lambda: transformers.CohereConfig(logit_scale=0.25, **SMALL),
    "cohere2": lambda: transformers.Cohere2Config(logit_scale=0.25, **SMALL),
    "gemma2": lambda: transformers.Gemma2Config(final_logit_softcapping=1.5, head_dim=16, **SMALL),
}


def random_llm(config: Any, attention: str = "eager") -> Any:
    llm = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return llm.requires_grad_(False)


def random_texts(count: int) -> list[Tokens]:
    return [
        Tokens([random.randrange(WORDS) for _ in range(random.randint(2, 7))], random.randint(0, 1))
        for _ in range(count)
    ]


@pytest.mark.parametrize(("name", "attention"), [*((name, "eager") for name in SCALED), ("llama", "sdpa")])
def test_loss_equals_cross_entropy_of_the_llms_logits(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed texts get the hidden states that each would get alone behind its prefix."""
    seed = new_seed()
    torch.manual_seed(seed)
    random.seed(seed)
    llm = random_llm(SCALED[name](), attention)
    prefix = torch.randn(2, QUERIES, HIDDEN)
    monkeypatch.setattr(lm, "query_output", lambda *given: prefix)
    groups = [random_texts(1 + row) for row in range(2)]
    model: Any = SimpleNamespace(llm=llm, prefix_embeds=lambda query_output: query_output)
    found = lm_loss(model, prefix, pack(groups, QUERIES, 1))["loss"]

    losses = []
    for row, group in enumerate(groups):
        for text in group:
            ids = torch.tensor([text.ids])
            embeds = torch.cat((prefix[row : row + 1], llm.get_input_embeddings()(ids)), 1)
            logits = llm(inputs_embeds=embeds, use_cache=False).logits[0, QUERIES - 1 : -1]
            losses.append(F.cross_entropy(logits, ids[0], reduction="none")[text.prompt :])
            hidden = llm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, QUERIES - 1 : -1]
            torch.testing.assert_close(next_logits(llm, hidden), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, torch.cat(losses).mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (transformers.BloomConfig, "bypasses transformers' interface"),
        (lambda: transformers.Gemma3TextConfig(use_bidirectional_attention=True), "see later ones"),
        (lambda: transformers.LlamaConfig(is_causal=False), "see later ones"),
    ],
)
def test_unsupported_llm_is_rejected(config: Any, why: str, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=rf"llm_source is '.*', whose .*{why}: give another"):
        check_llm(LanguageModelSource(LlmConfig(source=str(tmp_path))))


def test_truncated_text_has_no_end_token(tmp_path: Path) -> None:
    language = LanguageModelSource(LlmConfig(source=str(llm_folder(tmp_path)), end="<|end|>"))
    texts = LmTexts(language, QUERIES, 5)
    assert texts.tokens(Sample(0, "a dog runs on")).ids == [LLM_WORDS.index(w) for w in "a dog runs on <|end|>".split()]
    for text in ("a dog runs on grass", "a dog runs on grass with a man"):
        assert texts.tokens(Sample(0, text)).ids == [LLM_WORDS.index(word) for word in "a dog runs on grass".split()]


@pytest.mark.parametrize("cleans", [False, True])
@pytest.mark.parametrize("make", [llm_folder, t5_folder])
def test_answers_keep_their_spelling_unless_cleaned(make: Any, cleans: bool, tmp_path: Path) -> None:
    language = LanguageModelSource(LlmConfig(source=str(make(tmp_path)), end="<|end|>"))
    texts = open_texts(language, QUERIES, 20, learn_bos=False, clean_answers=cleans)
    asked: list[str] = []
    encode = texts.tokenizer.encode
    texts.tokenizer.encode = lambda text, **more: asked.append(text) or encode(text, **more)
    for sample in (Sample(0, " Half past 2:30 p.m. ", "when?"), Sample(0, 'A "dog".')):
        texts.tokens(sample) if isinstance(texts, LmTexts) else texts.split(sample, None)
    answer = "half past 2 30 p m" if cleans else "Half past 2:30 p.m."
    assert [text.strip() for text in asked if "Question" not in text and text] == [answer, "a dog"]


def test_empty_batch_has_zero_loss() -> None:
    llm = random_llm(SCALED["llama"]())
    prefix = torch.randn(1, QUERIES, HIDDEN, requires_grad=True)
    model: Any = SimpleNamespace(llm=llm, prefix_embeds=lambda query_output: query_output)
    packed = pack([[Tokens([5, 6], prompt=2)]], QUERIES, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "query_output", lambda *given: prefix)
        loss = lm_loss(model, prefix, packed)["loss"]
    loss.backward()
    assert loss.item() == 0 and prefix.grad is not None and not prefix.grad.any()


CPU = torch.device("cpu")


def ids(text: str) -> list[int]:
    return [LLM_WORDS.index(word) for word in text.split()]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_folder(tmp_path_factory.mktemp("t5"))


def texts(llm: Path, **fields: object) -> PrefixLmTexts:
    config = LlmConfig(source=str(llm), add_special_tokens=True, end="<|end|>", **fields)  # type: ignore[arg-type]
    return PrefixLmTexts(LanguageModelSource(config), max_tokens=12)


def test_caption_is_split_at_every_word(llm: Path) -> None:
    sample = Sample(0, "A dog runs in the snow.")
    whole, rng = ids("a dog runs in the snow"), np.random.default_rng(new_seed())
    cuts = set()
    for _ in range(200):
        given, learned = texts(llm).split(sample, rng)
        assert given[-1] == 1 and learned[-1] == 1, "the encoder's text and the decoder's end"
        assert given[:-1] + learned[:-1] == whole
        cuts.add(len(given) - 1)
    assert cuts == set(range(6)), "the decoder always has a word to say, the encoder may have none"


def test_questions_and_evaluation_are_not_split(llm: Path) -> None:
    made = texts(llm, ask_prompt="Question : {} Answer :")
    rng = np.random.default_rng(new_seed())
    assert made.split(Sample(0, "red", "what ?"), rng) == (
        ids("Question : what ? Answer : <|end|>"),
        ids("red <|end|>"),
    )
    assert made.split(Sample(0, "a dog"), None) == ([1], ids("a dog <|end|>"))
    prompted = texts(llm, caption_prompt="a")
    for draws in (None, rng):
        assert prompted.split(Sample(0, "dog runs"), draws) == (ids("a <|end|>"), ids("dog runs <|end|>"))


def test_truncated_texts_have_no_end_token(llm: Path) -> None:
    long = "a dog " * 40
    made = texts(llm, caption_prompt=long.strip())
    given, learned = made.split(Sample(0, long), None)
    assert len(given) == 12 and given[-1] == 1, "the encoder's text is whole to it"
    assert learned == ids("a dog " * 6)
    assert made.split(Sample(0, "a dog"), None)[1] == ids("a dog <|end|>")
    assert truncation_report(texts(llm), [Sample(0, long), Sample(0, "a dog"), Sample(0, "red", long)]) == (
        "max_text_tokens 12 cuts 2 of 3 texts, and leaves nothing of 0 to learn"
    )
