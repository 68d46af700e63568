"""Without a recipe, initialization, dropout and targets are the paper's and the reference's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.qformer import QFormer, QFormerConfig
from blip2rt.modeling.row_noise import RowNoise
from blip2rt_train import stage1, stage2
from blip2rt_train.data.samples import Sample
from blip2rt_train.objectives.lm import LmTexts
from blip2rt_train.recipe import parse
from tests.train.arguments import options, sizes

from ..tiny.training import NANO, bert_folder, caption_table, llm_folder

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = QFormerConfig(16, 2, 2, 24, queries=3, vision_width=12, vocab_size=20, max_positions=9, query_gain=None)


def defaults(tmp_path: Path, *more: str) -> stage1.Stage1Settings:
    """Stage 1's defaults, with only parts and data given; BERT has its masked-LM head."""
    bert, weights = bert_folder(tmp_path / "bert"), tmp_path / "bert" / "model.safetensors"
    words = len((bert / "vocab.txt").read_text().split())
    state = load_file(weights)
    shapes = {f"transform.{name}": (32,) for name in ("dense.bias", "LayerNorm.gamma", "LayerNorm.beta")}
    for name, shape in (shapes | {"transform.dense.weight": (32, 32), "bias": (words,)}).items():
        state[f"cls.predictions.{name}"] = torch.randn(shape)
    save_file(state, weights)
    given = options(train_table=caption_table(tmp_path, 2), images=tmp_path / "images", out=tmp_path / "out")
    given += options(vision_source="timm:test_efficientnet")
    given += options(vision_weights="pretrained")
    return parse(stage1.Stage1Settings, [*given, *options(qformer_init=bert), *more], "")


def test_new_stage1_is_initialized_like_the_reference(tmp_path: Path) -> None:
    settings = defaults(tmp_path)
    model = stage1.build_model(settings, stage1.starting_point(settings))
    assert model.qformer.query_tokens.shape[1] == 32 and not hasattr(model, "vision_positions")
    assert not hasattr(model.qformer, "text_norm"), "queries share the text's LayerNorm"
    assert float(model.qformer.query_tokens.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(model.itm_head.weight.detach().abs().max()) <= 32**-0.5, "as PyTorch draws a layer"
    state = load_file(tmp_path / "bert" / "model.safetensors")
    head = {name: model.lm_head.state_dict()[name] for name in ("transform.weight", "norm.bias", "bias")}
    assert torch.equal(head["transform.weight"], state["cls.predictions.transform.dense.weight"])
    assert torch.equal(head["norm.bias"], state["cls.predictions.transform.LayerNorm.beta"])
    assert torch.equal(head["bias"], F.pad(state["cls.predictions.bias"], (0, 1)))
    words = model.qformer.word_embeddings.weight.detach()
    assert not torch.allclose(words[-1], words[:-1].mean(0))
    nano = defaults(tmp_path, *NANO, "--itm_std", "0.3")
    drawn = stage1.build_model(nano, stage1.starting_point(nano))
    torch.manual_seed(0)
    assert torch.equal(drawn.qformer.query_tokens, Blip2(drawn.config).qformer.query_tokens)
    words = drawn.qformer.word_embeddings.weight.detach()
    assert torch.allclose(words[-1], words[:-1].mean(0)), "[DEC] is the mean of BERT's words"
    assert float(drawn.itm_head.weight.detach().std()) == pytest.approx(0.3, rel=0.4)


def test_new_stage2_follows_the_paper(tmp_path: Path) -> None:
    settings: Any = defaults(tmp_path)
    arguments = options(
        out="o", train_table=tmp_path, vision_source="timm:test_efficientnet", vision_weights="pretrained"
    )
    bert, llm = settings.qformer.qformer_init, llm_folder(tmp_path / "llm")
    arguments += options(qformer_init=bert, llm_source=llm)
    config = stage2.starting_point(parse(stage2.Stage2Settings, arguments, "")).config
    assert not (config.normalize_prefix or config.learned_positions or config.qformer_bits)
    assert (config.qformer.dropout, config.qformer.query_dropout, config.qformer.attention_dropout) == (0.1, 0.1, 0.1)
    assert config.llm is not None and (config.llm.end, config.llm.prepend_bos) == ("\n", True)


@pytest.mark.parametrize("reference", [True, False])
def test_dropout_matches_the_reference(reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' Q-Former in training is the list: embeddings, and of a layer what attention, cross-attention and
    both feed-forwards give, and the shares of both attentions. Its queries and text are one tensor in attention."""
    import transformers

    shares = {"query_dropout": 0.2, "attention_dropout": 0.3} if reference else {}
    model = QFormer(QFormerConfig(**{**vars(TINY), "dropout": 0.2, **shares}))
    size = sizes("vocab_size=20 hidden_size=16 num_hidden_layers=2 num_attention_heads=2 intermediate_size=24")
    rates: dict[str, Any] = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    theirs_has: dict[str, Any] = {"use_qformer_text_input": True, "attn_implementation": "eager"}
    config = transformers.Blip2QFormerConfig(**size, encoder_hidden_size=12, **rates, **theirs_has)
    theirs = transformers.Blip2QFormerModel(config).train()
    dropped: list[tuple[float, tuple[int, ...]]] = []

    def record(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if training and p:
            dropped.append((p, tuple(x.shape)))
        return x

    monkeypatch.setattr(F, "dropout", record)
    monkeypatch.setattr(RowNoise, "drop", lambda _, x, share: record(x, share))
    image, ids = torch.randn(2, 5, 12), torch.ones(2, 4, dtype=torch.long)
    model.encode_pair(ids, ids, model.vision_kv(image), RowNoise.of_rows(0, torch.arange(2)))
    mine, dropped[:] = numbers(dropped), []
    if not reference:
        assert mine == {0.2: 2 * 4 * 16 * 5}, "the text's embeddings, and twice in each of two layers"
        return
    embeds = torch.randn(2, 7, 16)
    theirs(query_embeds=embeds, query_length=3, attention_mask=torch.ones(2, 7), encoder_hidden_states=image)
    want = numbers(dropped)
    if numbers([(p, s) for p, s in dropped if s == (2, 7, 16)])[0.2] == 2 * 7 * 16 * 2:
        want[0.2] += 2 * 7 * 16  # some releases drop the embeddings outside of the model
    assert mine == want


def numbers(dropped: list[tuple[float, tuple[int, ...]]]) -> dict[float, int]:
    """Count the numbers that pass through each rate of dropout."""
    found: dict[float, int] = {}
    for share, shape in dropped:
        found[share] = found.get(share, 0) + int(np.prod(shape))
    return found


def test_bos_is_learned_without_a_prompt(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = llm_folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|end|>"
    tokenizer.save_pretrained(folder)
    config = LlmConfig(source=str(folder), prepend_bos=True, end="<|end|>", caption_prompt="")
    language = LanguageModelSource(config)
    learned, given = (LmTexts(language, 4, 9, learn).tokens(Sample(0, "a dog")) for learn in (True, False))
    assert learned.ids == given.ids and (learned.prompt, given.prompt) == (0, 1)
    assert LmTexts(language, 4, 9, True).tokens(Sample(0, "dog", "what?")).prompt > 1, "behind a question it is given"


def test_lr_sets_the_rates_of_heads_unless_they_are_given() -> None:
    """The defaults of the two equal lr's, so that a larger lr alone would leave the heads behind."""
    data = ["--train_table", "t", "--out", "o"]
    heads: list[tuple[Any, Any, str]] = [(stage1, stage1.Stage1Settings, "head_lr")]
    heads += [(stage2, stage2.Stage2Settings, "projection_lr")]
    for module, kind, name in heads:
        follows = module.peak_rates(parse(kind, [*data, "--lr", "1e-3"], ""), None)
        given = module.peak_rates(parse(kind, [*data, "--lr", "1e-3", f"--{name}", "2e-3"], ""), None)
        assert set(follows.values()) <= {1e-4} and 2e-3 in given.values(), "only the adapters have a rate of their own"
        assert not {"vision_proj", "itm_head", "projection"} & follows.keys()


def test_old_checkpoints_have_no_query_dropout_and_no_query_offsets() -> None:
    data = Blip2Config(qformer=TINY).to_json()
    for name in ("query_dropout", "attention_dropout"):
        data["qformer"].pop(name)
    qformer = Blip2Config.from_json({**data, "query_offsets": False}).qformer
    assert (qformer.query_dropout, qformer.attention_dropout) == (0, 0)
    with pytest.raises(Blip2rtError, match="query_offsets are no longer read"):
        Blip2Config.from_json({**data, "query_offsets": True})
