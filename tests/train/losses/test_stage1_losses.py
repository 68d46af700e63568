"""Stage 1's negatives, and the gradients of micro-batches; test_reference_losses.py compares losses and masks."""

import random

import pytest
import torch

from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.row_noise import RowNoise
from blip2rt.modeling.vision import VisionConfig
from blip2rt_train.objectives.frozen_head import frozen_head_loss
from blip2rt_train.objectives.stage1 import LossSettings, TextBatch, hard_negatives, stage1_losses
from blip2rt_train.objectives.stage1_batch import BatchPart, WholeBatch, contrast_batch, contrast_embeds, join_texts
from tests.seeds import new_seed, seed_of
from tests.train.arguments import sizes

QUERIES, POSITIONS, FEATURES = 4, 9, 24


@pytest.fixture
def model() -> Blip2:
    seed = new_seed()
    torch.manual_seed(seed)
    qformer = QFormerConfig(
        **sizes("hidden_size=32 layers=3 heads=4 intermediate_size=48 vocab_size=61 max_positions=20"),
        queries=QUERIES,
        vision_width=FEATURES,
    )
    config = Blip2Config(vision=VisionConfig(positions=POSITIONS, features=FEATURES), qformer=qformer, embed_dim=16)
    return Blip2(config).eval()


def text_batch(rows: int = 5, length: int = 7) -> TextBatch:
    ids = torch.randint(1, 60, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, random.randint(3, length) :] = 0
    return TextBatch(ids * mask, mask, torch.tensor([0, 1, 0, 2, 3, 4, 5, 6][:rows]))


def test_negatives_are_other_images_and_prefer_similar_ones() -> None:
    ids = torch.tensor([0, 1, 0, 2, 3])
    sim = torch.zeros(5, 5)
    sim[1, 4] = 2.0  # image 1 resembles text 4
    for _ in range(20):
        images, texts = hard_negatives(sim, torch.tensor(0.1), ids)
        assert (ids[images] != ids).all() and (ids[texts] != ids).all()
        assert texts[1] == 4 and images[4] == 1


def test_zero_itm_weight_skips_itm(model: Blip2) -> None:
    image, text = torch.randn(5, POSITIONS, FEATURES), text_batch()
    all_three = stage1_losses(model, image, text, LossSettings(60), WholeBatch())
    two = stage1_losses(model, image, text, LossSettings(60, itm_weight=0), WholeBatch())
    torch.testing.assert_close(two["loss"].detach(), all_three["itc"] + all_three["itg"])
    assert set(all_three) - set(two) == {"itm", "itm_accuracy"}
    model.train()
    stage1_losses(model, image, text, LossSettings(60, itm_weight=0), WholeBatch())["loss"].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == [], "DDP waits for them"
    assert not any(parameter.grad.any() for parameter in model.itm_head.parameters())


@pytest.mark.parametrize("micros", [2, 4])
def test_gradients_of_micro_batches_are_those_of_the_batch(model: Blip2, micros: int) -> None:
    """Dropout included."""
    image, text, size, settings = torch.randn(8, POSITIONS, FEATURES), text_batch(8), 8 // micros, LossSettings(60)
    seed = new_seed()
    torch.manual_seed(seed)
    whole = stage1_losses(model, image, text, settings, WholeBatch(), noise=RowNoise.of_rows(seed, torch.arange(8)))
    expected = torch.autograd.grad(whole["loss"], list(model.parameters()))
    rows = [slice(start, start + size) for start in range(0, 8, size)]
    widths = [int(text.text_mask[own].sum(1).max()) for own in rows]  # each is padded to its own longest
    texts = [
        TextBatch(text.token_ids[own, :width], text.text_mask[own, :width], text.image_ids[own])
        for own, width in zip(rows, widths, strict=True)
    ]
    noises = [RowNoise.of_rows(seed, torch.arange(8)[own]) for own in rows]
    embeds = [
        contrast_embeds(model, image[own], text, settings, noise)
        for own, text, noise in zip(rows, texts, noises, strict=True)
    ]
    images_texts = torch.cat([each[0] for each in embeds]), torch.cat([each[1] for each in embeds])
    torch.manual_seed(seed)
    contrast = contrast_batch(model, images_texts, join_texts(texts), settings, WholeBatch())
    total = 0.0
    tokens = [int(each.text_mask[:, 1:].sum()) for each in texts]
    for own, each, noise, count in zip(rows, texts, noises, tokens, strict=True):
        part = BatchPart(contrast, own, torch.arange(8)[own], micros, lambda own=own: image[contrast.wrong_image[own]])
        share = count * micros / sum(tokens)
        losses = stage1_losses(model, image[own], each, settings, part, share, noise)
        loss = losses["loss"] / micros
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(whole["loss"].detach()), rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_frozen_head_loss_is_cross_entropy_with_its_gradient(bias: bool, softcap: float) -> None:
    seed = new_seed()
    torch.manual_seed(seed)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden = torch.randn(300, 16, requires_grad=True)  # more rows than are computed at once
    targets = torch.randint(0, 50, (300,))
    weights, temperatures = torch.randn(300), 0.5 + torch.rand(300)
    loss = frozen_head_loss(hidden, head, targets, weights, temperatures, softcap)
    (gradient,) = torch.autograd.grad(3 * loss, hidden)
    logits = head(hidden)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits / temperatures[:, None]
    expected = (weights * torch.nn.functional.cross_entropy(logits, targets, reduction="none")).mean()
    (expected_gradient,) = torch.autograd.grad(3 * expected, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


SEED = seed_of(__name__)


def test_rows_drop_the_same_numbers_in_any_batch_and_padding() -> None:
    whole = RowNoise.of_rows(SEED, torch.arange(8)).at(3)
    part = RowNoise.of_rows(SEED, torch.arange(4, 8)).at(3)
    x = torch.randn(8, 4, 9, 7)
    torch.testing.assert_close(part.drop(x[4:, :, :5, :6], 0.3), whole.drop(x, 0.3)[4:, :, :5, :6], rtol=0, atol=0)
    rows, numbers = torch.tensor([1, 3, 3]), torch.tensor([0, 0, 1])
    copies = whole.copies(rows + 4, numbers).drop(x[:3], 0.3)
    torch.testing.assert_close(part.copies(rows, numbers).drop(x[:3], 0.3), copies, rtol=0, atol=0)
    assert torch.equal(part.order(50), whole.order(50)) and sorted(part.order(50).tolist()) == list(range(50))


def test_dropped_numbers_are_independent() -> None:
    """Of other rows, places, passes and steps; the mean stays."""
    noise, ones = RowNoise.of_rows(SEED, torch.arange(64)), torch.ones(64, 32, 48)
    others = [noise.at(1), noise.at(1).at(0), RowNoise.of_rows(SEED + 1, torch.arange(64))]
    others.append(noise.copies(torch.arange(64), torch.zeros(64)))
    for share in (0.1, 0.5):
        found = [each.drop(ones, share) for each in (noise, *others)]
        for mine in found:
            assert abs(float(mine.mean()) - 1) < 0.02
            assert torch.unique(mine).tolist() == [0, torch.tensor(1 / (1 - share))]
        masks = torch.cat([(each > 0).float().flatten(1) for each in found])  # of 5 x 64 rows
        apart = masks.corrcoef() - torch.eye(len(masks))
        assert apart.abs().max() < 0.15  # 5.9 standard deviations
        along = masks[:, 1:] - masks.mean(), masks[:, :-1] - masks.mean()
        assert abs(float((along[0] * along[1]).mean())) < 0.002
