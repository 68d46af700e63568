"""LAVIS checkpoints of tiny random transformers models, with the tensor names that LAVIS' conversion documents."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers

from blip2rt.modeling.sources import ExternalParts

from . import blip2

RENAMED = [
    (r"^vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.post_layernorm", "ln_vision"),
    (r"^vision_model\.encoder\.layers", "visual_encoder.blocks"),
    (r"layer_norm([12])", r"norm\1"),
    (r"self_attn\.", "attn."),
    (r"attn\.projection", "attn.proj"),
    (r"^qformer\.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    (r"^embeddings\.", "Qformer.bert.embeddings."),
    (r"^qformer\.", "Qformer.bert."),
    (r"attention\.attention\.", "attention.self."),
    (r"^vision_projection", "vision_proj"),
    (r"^text_projection", "text_proj"),
]
CLIP_NAMES = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
CLIP_NAMES |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
QFORMER = {"num_attention_heads": 2}


def state_of(model: Any, projection: str) -> dict[str, Any]:
    state = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in [*RENAMED, (r"^language_projection", projection)]:
            name = re.sub(pattern, replacement, name)
        if name.endswith("attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            key.zero_()  # LAVIS has none
            state[name.replace("qkv.bias", "q_bias")], state[name.replace("qkv.bias", "v_bias")] = query, value
        elif not name.startswith("language_model."):
            state[name] = tensor.clone()
    return state


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split into trained tensors and the frozen encoder, whose own file has no prefix and one more block."""
    encoder = {n.removeprefix("visual_encoder."): t for n, t in state.items() if n.startswith("visual_encoder.")}
    last = max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks."))
    encoder |= {
        name.replace(f"blocks.{last}.", f"blocks.{last + 1}."): torch.randn_like(tensor)
        for name, tensor in encoder.items()
        if name.startswith(f"blocks.{last}.")
    }
    return {n: t for n, t in state.items() if not n.startswith("visual_encoder.")}, encoder


def stage2(folder: Path) -> tuple[Any, Path, Path, ExternalParts]:
    """Return a transformers model, its .pth files (trained tensors only; all tensors), and its frozen parts."""
    hf = blip2.generative(folder / "hf", blip2.TEXT_CONFIGS["opt"](), qformer=QFORMER)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(hf).eval()
    state = state_of(model, "opt_proj")
    trained, encoder = split(state)
    torch.save({"model": trained, "epoch": 3, "config": {"run": {"seed": 42}}}, folder / "trained.pth")
    torch.save({"model": state}, folder / "finetuned.pth")
    torch.save(encoder, folder / "eva.pth")
    model.language_model.save_pretrained(folder / "llm")
    blip2.llm_tokenizer().save_pretrained(folder / "llm")
    model.vision_model.post_layernorm.eps = 1e-5
    parts = ExternalParts(str(folder / "eva.pth"), str(folder / "llm"), vision_heads=4, qformer_heads=2)
    return model, folder / "trained.pth", folder / "finetuned.pth", parts
