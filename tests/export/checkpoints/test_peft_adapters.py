"""Adapters that peft saved for BLIP-2 or its language model equal peft's own outputs; other kinds are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.llm_configs import IMAGE, VOCAB

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.long(12, "adapters as peft writes them, exported and compared")

SEED = seed_of(__name__)
ALL = r".*(q_proj|fc1|qkv|patch_embedding|attention\.query|\.dense|language_projection)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(SEED)
    return tiny_blip2.generative(tmp_path_factory.mktemp("peft") / "base", tiny_blip2.TEXT_CONFIGS["opt"]())


def adapt(model: Any, folder: Path, **options: Any) -> Any:
    """Wrap a model in random LoRA adapters and save these. Returns the wrapped model."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, **options)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def compare(folder: Path, reference: Any) -> float:
    """Largest difference of logits between a checkpoint of ours and a BLIP-2 of transformers."""
    pixels = torch.randn(2, 3, 28, 28)
    ids = torch.tensor([[IMAGE] * tiny_blip2.QUERIES + [2, 7, 9, 8]] * 2)
    want = reference(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    ours = Checkpoint(folder).load()
    prefix = ours.prefix_embeds(ours.query_output(ours.vision_features(pixels)))
    words = ours.llm.get_input_embeddings()(ids[:, tiny_blip2.QUERIES :])
    got = ours.llm(inputs_embeds=torch.cat((prefix, words), 1)).logits
    assert want.abs().max() > 1
    return float((got - want).abs().max())


OPTIONS: dict[str, dict[str, Any]] = {
    "all layers": {"target_modules": ALL},
    "patterns": {
        "target_modules": ["q_proj", "fc1", "language_projection"],
        "rank_pattern": {r"layers\.\d+\.fc.": 5},
        "alpha_pattern": {
            "layers.1.self.attn.q_proj": 31,
            r"decoder\.layers\.(0|2).self_attn\.(q|k)_proj": 23,
            "fc": 99,  # matches no whole name
            "^language_projection": 17,
        },
        "use_rslora": True,
    },
    "whole tensors": {"target_modules": ["v_proj"], "bias": "all", "modules_to_save": ["language_projection"]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_merged_adapters_equal_peft(name: str, base: Path, tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    plain = transformers.Blip2ForConditionalGeneration.from_pretrained(base).eval()
    adapted = adapt(plain, tmp_path / "adapter", **OPTIONS[name])
    assert compare(tmp_path / "adapter", adapted) < 1e-4
    beside = tmp_path / "beside"  # the model that an adapter lies beside is its base, whatever it names
    shutil.copytree(base, beside)
    shutil.copytree(tmp_path / "adapter", beside, dirs_exist_ok=True)
    file = beside / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/has-this"}))
    assert compare(beside, adapted) < 1e-4
    file.unlink()
    assert compare(beside, adapted) > 1e-2


@torch.no_grad()
def test_adapters_of_a_language_model_equal_peft(tmp_path: Path) -> None:
    """GPT-2 stores its matrices transposed, square ones too."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_inner=32)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "base")
    tiny_blip2.llm_tokenizer().save_pretrained(tmp_path / "base")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    adapted = adapt(model, tmp_path / "lora", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    source = LanguageModelSource(LlmConfig(source=str(tmp_path / "lora")))
    ids = torch.randint(0, VOCAB, (2, 9))
    assert (source.load()(ids).logits - adapted(ids).logits).abs().max() < 1e-4
    assert source.tokenizer.vocab_size == len(tiny_blip2.llm_tokenizer())


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, "holds an adapter of kind 'IA3', supported is 'LORA': merge it with peft"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which is not supported"),
    "no base": ({"base_model_name_or_path": None}, "holds only an adapter of peft (LoRA) for None: set base_model_"),
    "expression": ({"alpha_pattern": {"(a": 1}}, "alpha_pattern has '(a', which is no regular expression"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_unsupported_adapters_are_rejected(name: str, base: Path, tmp_path: Path) -> None:
    changes, message = CONFIGS[name]
    plain = transformers.Blip2ForConditionalGeneration.from_pretrained(base)
    adapt(plain, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(Blip2rtError) as caught:
        Checkpoint(tmp_path).load()
    assert message in str(caught.value) and "\n" not in str(caught.value)
