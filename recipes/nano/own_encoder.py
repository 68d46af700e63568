"""Replace a checkpoint's CLIP encoder of transformers by the same encoder as one of the paper's vision transformers:

    python recipes/nano/own_encoder.py runs/nano/captions runs/nano/nano-captions

The encoder's weights are then saved in the checkpoint, and its bundle can be converted back to it (`blip2rt-convert
BUNDLE --to ours`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blip2rt.command_line import Parser, run_script

if TYPE_CHECKING:
    import torch


def our_weights(theirs: dict[str, torch.Tensor], ours: list[str]) -> dict[str, torch.Tensor]:
    """Convert the weights of transformers' CLIPVisionModel to the parameters of a Vit with these names."""
    import torch

    from blip2rt.modeling.names import STYLES

    theirs = {name.removeprefix("vision_model."): values for name, values in theirs.items()}

    def read(name: str) -> torch.Tensor:
        if name.startswith("pre_norm."):
            return theirs[name.replace("pre_norm", "pre_layrnorm")]
        blip2 = STYLES["hf"].name(name)  # Hugging Face's BLIP-2 fuses queries, keys and values
        assert blip2 is not None
        if ".qkv." in blip2:
            return torch.cat([theirs[blip2.replace("qkv", f"{part}_proj")] for part in "qkv"])
        if blip2 == "embeddings.class_embedding":
            return theirs[blip2][None, None]
        if blip2 == "embeddings.position_embedding":
            return theirs[f"{blip2}.weight"][None]
        return theirs[blip2.replace("self_attn.projection", "self_attn.out_proj")]

    return {name: read(name) for name in ours}


def rewrite(source: Path, out: Path) -> float:
    """Write the checkpoint. Return the largest difference of the features of one random image."""
    from dataclasses import replace

    import torch
    from transformers import AutoModel

    from blip2rt.bundle.atomic import AtomicFolder
    from blip2rt.modeling.checkpoint import Checkpoint, save_model
    from blip2rt.modeling.vision import VisionEncoder
    from blip2rt.modeling.vit import VitConfig

    model = Checkpoint(source).load(llm=False)
    vision = model.config.vision
    theirs = AutoModel.from_pretrained(vision.source.removeprefix("hf:"), trust_remote_code=False).float()
    clip = theirs.config
    size = {"width": clip.hidden_size, "layers": clip.num_hidden_layers, "heads": clip.num_attention_heads}
    size |= {"mlp_width": clip.intermediate_size, "patch": clip.patch_size}
    kind = {"activation": clip.hidden_act, "layer_norm_eps": clip.layer_norm_eps, "patch_bias": False, "pre_norm": True}
    geometry = VitConfig(**size, **kind)
    ours = VisionEncoder(replace(vision, source="vit", weights=None, vit=geometry))
    ours.body.load_state_dict(our_weights(theirs.state_dict(), list(ours.body.state_dict())))
    pixels = torch.randn(1, 3, vision.height, vision.width)
    assert model.vision is not None
    difference = float((ours(pixels) - model.vision(pixels)).abs().max())
    model.vision, model.config = ours, replace(model.config, vision=ours.config, vision_trained=True)
    with AtomicFolder(out) as atomic:
        save_model(model, atomic.folder)
        atomic.finish()
    return difference


if __name__ == "__main__":
    parser = Parser(prog="own_encoder.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint of this project")
    parser.add_argument("out", type=Path, help="folder to write")
    run_script(parser, lambda args: [f"{args.out}: features differ by {rewrite(args.checkpoint, args.out):.1e}"])
