"""Round the matrices of an image encoder of transformers to int4 so that its features change least:

    python recipes/nano/round_encoder.py runs/nano/clip --images PHOTOGRAPHS --out runs/nano/clip-int4

This is GPTQ (Frantar et al. 2022, arXiv 2210.17323): a matrix is rounded column by column, and the remaining columns
compensate for the error, as weighted by photographs. The grid is the exporter's, so `--precision vision=int4` keeps
these weights, and a training on their features trains on what ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blip2rt.command_line import Parser, run_script, whole

if TYPE_CHECKING:
    import torch

DAMPING = 0.01  # relative to the mean of the Hessian's diagonal


def round_matrix(weight: torch.Tensor, gram: torch.Tensor, block: int) -> torch.Tensor:
    """Round weight (N, K) to 4 bits in blocks; gram (K, K) is X'X of its inputs."""
    import torch

    from blip2rt.modeling.quantize import quantize_blockwise

    remaining, result = weight.double(), torch.empty_like(weight)
    gram = gram.double() + DAMPING * gram.diagonal().mean().double() * torch.eye(len(gram), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    for start in range(0, weight.shape[1], block):
        end = start + block
        codes = quantize_blockwise(remaining[:, start:end].float().contiguous(), 4, block)
        scale = codes.scales.double()[:, 0]
        zero = (codes.zero_points[:, 0] & 15).double()
        error = torch.empty(len(weight), block, dtype=torch.float64)
        for column in range(block):
            at = start + column
            values = remaining[:, at]
            near = scale * (((values / scale).round() + zero).clamp(0, 15) - zero)
            result[:, at] = near.float()
            error[:, column] = (values - near) / inverse[at, at]
            remaining[:, at + 1 : end] -= error[:, column : column + 1] * inverse[at, at + 1 : end]
        remaining[:, end:] -= error @ inverse[start:end, end:]
    return result


def images_of(folders: list[Path], count: int) -> list[Path]:
    """Return `count` images, equally many per folder, spread over the file names."""
    from blip2rt.untrusted.image_format import has_image_name

    each = [sorted(path for path in folder.iterdir() if has_image_name(path.name)) for folder in folders]
    share = -(-count // len(each))
    return [files[i * len(files) // share] for files in each for i in range(share)][:count]


def round_encoder(source: str, folders: list[Path], count: int, block: int, out: Path) -> Iterator[str]:
    """Write the folder; yield a line per layer."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoModel

    from blip2rt.bundle.atomic import AtomicFolder
    from blip2rt.bundle.manifest import ImageSpec
    from blip2rt.image import to_pixels

    torch.set_grad_enabled(False)
    model = AutoModel.from_pretrained(source, trust_remote_code=False).float().eval()
    size = model.config.image_size
    spec = ImageSpec(size, size, "bicubic", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    pixels = torch.from_numpy(to_pixels([str(path) for path in images_of(folders, count)], spec))
    exact = model(pixel_values=pixels).last_hidden_state
    vision = getattr(model, "vision_model", model)
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    for number, layer in enumerate(vision.encoder.layers, 1):
        inputs_of: dict[torch.nn.Linear, torch.Tensor] = {}

        def record(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], inputs_of=inputs_of) -> None:  # type: ignore[no-untyped-def]
            inputs_of[module] = inputs[0].flatten(0, 1)

        hooks = [m.register_forward_pre_hook(record) for m in layer.modules() if isinstance(m, torch.nn.Linear)]
        layer(hidden, None)
        for hook in hooks:
            hook.remove()
        for module, values in inputs_of.items():
            module.weight.copy_(round_matrix(module.weight, values.T @ values, block))
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        yield f"layer {number}: rounded"
    found = model(pixel_values=pixels).last_hidden_state
    found, exact = (F.layer_norm(values, values.shape[-1:]) for values in (found, exact))
    error = (found - exact).square().sum() / (exact - exact.mean((0, 1))).square().sum()
    with AtomicFolder(out) as atomic:
        model.save_pretrained(atomic.folder)
        atomic.finish()
    yield f"{out}: {float(error):.3f} of the features' variance is lost"


if __name__ == "__main__":
    parser = Parser(prog="round_encoder.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="folder that transformers loads")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of photographs"
    )
    parser.add_argument("--count", type=whole(1), default=48, metavar="N", help="photographs to use")
    parser.add_argument("--block", type=whole(16), default=64, metavar="N", help="weights per scale")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    run_script(parser, lambda args: round_encoder(args.source, args.images, args.count, args.block, args.out))
