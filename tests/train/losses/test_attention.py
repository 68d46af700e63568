"""The fused attention of GPUs against the written-out one, and the memory of a step against a dry run's estimate."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blip2rt.modeling import qformer, vit
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.modeling.vision import VisionConfig
from blip2rt.modeling.vit import Vit, VitConfig, attention
from blip2rt_train.model import StartingPoint
from blip2rt_train.objectives import stage1, stage1_batch
from blip2rt_train.objectives.stage1_batch import WholeBatch
from blip2rt_train.plan import Plan, memory
from blip2rt_train.settings import BatchSettings, DataSettings, LoopSettings, MachineSettings
from tests.seeds import new_seed


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_equals_the_written_one(masked: bool) -> None:
    torch.manual_seed(new_seed())
    query, key, value = (torch.randn(3, 4, length, 8, requires_grad=True) for length in (5, 9, 9))
    mask = torch.rand(3, 1, 5, 9) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True
    upstream = torch.randn(3, 4, 5, 8)
    found = []
    for fused in (False, True):
        mixed = attention(query, key, value, mask, fused=fused)
        found.append((mixed, *torch.autograd.grad(mixed, (query, key, value), upstream)))
    for written, kernel in zip(*found, strict=True):
        torch.testing.assert_close(kernel, written, rtol=1e-5, atol=1e-6)


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors at the same time, at most."""

    def __init__(self, *before: torch.Tensor) -> None:
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.now = self.peak = 0
        self.count(before)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.count(made)
        return made

    def count(self, made: Any) -> None:
        for storage in (each.untyped_storage() for each in tree_leaves(made) if isinstance(each, torch.Tensor)):
            reference = StorageWeakRef(storage)
            known, size = self.live.get(reference.cdata, (None, 0))
            if known is None or known.expired():
                self.live[reference.cdata] = reference, storage.nbytes()
                self.now += storage.nbytes() - size
        if self.now > self.peak:
            for key in [key for key, (reference, _) in self.live.items() if reference.expired()]:
                self.now -= self.live.pop(key)[1]
            self.peak = max(self.peak, self.now)


def give_storage(*modules: torch.nn.Module) -> None:
    """Replace tensors on the device meta by fake ones."""
    for module in (each for whole in modules for each in whole.modules()):
        for name, values in module.named_parameters(recurse=False):
            empty = torch.empty(values.shape, dtype=values.dtype)
            module._parameters[name] = torch.nn.Parameter(empty, values.requires_grad)
        for name, values in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(values.shape, dtype=values.dtype)


ROWS, TOKENS, LAYERS = 105, 32, 3  # the paper's rows per GPU; fewer layers, for time


@pytest.mark.long(8, "the peak memory of a step")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_step_takes_the_memory_that_a_dry_run_estimates(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of stage 1 with ViT-g's and the Q-Former's widths on tensors without storage."""
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    for module in (vit, qformer):
        monkeypatch.setattr(module, "attention", partial(attention, fused=True))
    # What depends on values: negatives, and which tokens are learned.
    monkeypatch.setattr(stage1_batch, "hard_negatives", lambda sim, temperature, ids, *_: (ids.roll(1), ids.roll(1)))
    monkeypatch.setattr(
        stage1, "next_tokens", lambda hidden, ids, _: (hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )
    width = VitConfig(layers=LAYERS)
    geometry = QFormerConfig(768, LAYERS, 12, 3072, 32, width.width, query_dropout=0.1)
    vision = VisionConfig(positions=257, features=width.width, vit=width)
    config = Blip2Config(vision=vision, qformer=geometry, embed_dim=256)
    with torch.device("meta"):
        encoder, model = Vit(width, 224, 224).requires_grad_(False).to(dtype), Blip2(config).train()
    with FakeTensorMode():
        give_storage(encoder, model)
        moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        pixels, ids = torch.empty(ROWS, 3, 224, 224, dtype=dtype), torch.ones(ROWS, TOKENS, dtype=torch.long)
        with PeakMemory(*encoder.parameters(), *model.parameters(), *moments, pixels) as used:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                with torch.no_grad():
                    features = encoder(pixels)
                text = stage1.TextBatch(ids, ids, torch.arange(ROWS))
                noise = RowNoise.of_rows(0, text.image_ids)
                losses = stage1.stage1_losses(model, features, text, stage1.LossSettings(5), WholeBatch(), noise=noise)
                loss = losses["loss"]
            loss.backward()
    loop = LoopSettings(batch=BatchSettings(batch_size=ROWS), machine=MachineSettings(precision=precision))
    plan = Plan(StartingPoint(config, None), loop, DataSettings(cache_features=False), False, None, 1, TOKENS)  # type: ignore
    counts = {
        "qformer": sum(p.numel() for p in model.parameters()),
        "vision": sum(p.numel() for p in encoder.parameters()),
    }
    need = memory(plan, counts, 1)
    assert sum(need.values()) == pytest.approx(used.peak, rel=0.1)
