"""A checkpoint that reads CLIP of transformers -> the same, with that encoder as one of the paper's transformers:

    python recipes/nano/world/own_encoder.py runs/world/captions runs/world/captions-whole

The encoder's weights are then in the checkpoint, and its bundle gives them back (`blip2rt-convert BUNDLE --to ours`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blip2rt.command import Parser, run

if TYPE_CHECKING:
    import torch

NAMES = (  # ours, CLIP's in transformers
    ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("projection", "self_attn.out_proj"),
    ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"),
)  # fmt: skip


def our_names(theirs: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """A Vit's parameters, of those of transformers' CLIPVisionModel."""
    import torch

    theirs = {name.removeprefix("vision_model."): values for name, values in theirs.items()}
    found = {
        "class_embedding": theirs["embeddings.class_embedding"][None, None],
        "position_embedding": theirs["embeddings.position_embedding.weight"][None],
        "patch_embedding.weight": theirs["embeddings.patch_embedding.weight"],
        "pre_norm.weight": theirs["pre_layrnorm.weight"],
        "pre_norm.bias": theirs["pre_layrnorm.bias"],
    }
    for number in range(layers):
        own, clip = f"layers.{number}.", f"encoder.layers.{number}."
        for kind in ("weight", "bias"):
            parts = [theirs[f"{clip}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{own}qkv.{kind}"] = torch.cat(parts)
            found |= {f"{own}{ours}.{kind}": theirs[f"{clip}{name}.{kind}"] for ours, name in NAMES}
    return found


def rewrite(source: Path, out: Path) -> float:
    """Write the checkpoint. Return the largest difference of the features of one random image."""
    from dataclasses import replace

    import torch
    from transformers import AutoModel

    from blip2rt.modeling.checkpoints import load_model, save_model
    from blip2rt.modeling.vision import VisionEncoder
    from blip2rt.modeling.vit import VitConfig

    model = load_model(source, llm=False)
    vision = model.config.vision
    theirs = AutoModel.from_pretrained(vision.source.removeprefix("hf:"), trust_remote_code=False).float()
    clip = theirs.config
    geometry = VitConfig(
        width=clip.hidden_size, layers=clip.num_hidden_layers, heads=clip.num_attention_heads,
        mlp_width=clip.intermediate_size, patch=clip.patch_size, activation=clip.hidden_act,
        layer_norm_eps=clip.layer_norm_eps, patch_bias=False, pre_norm=True,
    )  # fmt: skip
    ours = VisionEncoder(replace(vision, source="vit", weights=None, vit=geometry))
    ours.body.load_state_dict(our_names(theirs.state_dict(), geometry.layers))
    pixels = torch.randn(1, 3, vision.height, vision.width)
    assert model.vision is not None
    difference = float((ours(pixels) - model.vision(pixels)).abs().max())
    model.vision, model.config = ours, replace(model.config, vision=ours.config, vision_trained=True)
    out.mkdir(parents=True)
    save_model(model, out)
    return difference


def main() -> int:
    parser = Parser(prog="own_encoder.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of ours")
    parser.add_argument("out", type=Path, help="folder to write")

    def work() -> None:
        args = parser.parse_args()
        print(f"{args.out}: features differ by {rewrite(args.checkpoint, args.out):.1e}")

    return run("own_encoder.py", work, extra="train")


if __name__ == "__main__":
    raise SystemExit(main())
