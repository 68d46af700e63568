"""Self-critical training: `python -m train.extras.self_critical --recipe recipes/nano/rewarded.yaml`.

A finetune of stage 2 (Rennie et al. 2017): captions are sampled, and weighted by how much their CIDEr exceeds that of
the image's other samples. Everything but the loss is stage 2's; questions are trained by likelihood in the same step.
"""

from ..cli import run_command, run_main

if __name__ == "__main__":  # before the imports, so that a missing package is reported in one line
    raise SystemExit(run_command("self-critical"))


import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.row_noise import RowNoise

from ..data.loaders import StreamingLoader, batch_features
from ..data.samples import Sample
from ..dry_run import dry_run
from ..early_checks import open_settings
from ..evaluation.metrics import tokenize
from ..loop.run_folder import lock_folder
from ..objectives.lm import LmTexts, lm_loss, next_logits
from ..objectives.packing import Tokens
from ..recipe import flat
from ..stage2 import Dev, MicroBatch, Stage2, plan
from ..stage_settings import SelfCriticalSettings as SelfCriticalSettings

_MAX_NEW_TOKENS = 20
_TEMPERATURE = 0.6  # of sampling; a low one is close to what a search finds
_END = "</s>"  # counts as a word, or captions learn to break off
_ORDERS = 4  # of CIDEr's n-grams
_SIGMA = 6.0  # of CIDEr's length penalty

Grams = Counter[tuple[str, ...]]


class SelfCriticalTraining:
    """Stage 2 with another loss."""

    def __init__(self, settings: SelfCriticalSettings) -> None:
        self.stage = stage = Stage2(settings.stage2, flat(settings))
        if not isinstance(stage.texts, LmTexts) or isinstance(stage.loader, StreamingLoader) or stage.questions:
            raise OptionError(
                "captions cannot be sampled here: give a decoder-only LLM, a Q-Former that reads no questions, and "
                " a train_table with cached features, whose captions are the references"
            )
        groups = stage.loader.groups
        lacking = sum(all(sample.prompt for sample in group) for group in groups)
        if lacking:
            raise OptionError(f"{lacking} images of the tables have no caption as a reference: leave them out")
        self.sampled = SelfCritical(stage.model, stage.texts, groups, settings.cider.cider_samples)

    def run(self) -> Path:
        """Train. Return the last checkpoint's folder."""
        stage, dev = self.stage, self.stage.dev
        return stage.trainer.run(stage.batches(), self.loss, (lambda: self.evaluate(dev)) if dev else None)

    def loss(self, micro: MicroBatch) -> dict[str, torch.Tensor]:
        """Return the loss of the samples, and their mean CIDEr."""
        images = micro.images
        features = batch_features(self.stage.model, images)
        return self.sampled.loss(images.image_ids.tolist(), features, images.groups, micro.noise)

    def evaluate(self, dev: Dev) -> dict[str, float]:
        """Return stage 2's measures, and the CIDEr of greedy captions."""
        metrics = dev.evaluate()
        captions = [caption for _, features in dev.parts() for caption in self.sampled.greedy(features)]
        return metrics | {"cider": mean_cider(dev.groups, captions)}


class SelfCritical:
    """Samples captions and computes the loss of one step."""

    def __init__(self, model: Blip2, texts: LmTexts, groups: list[list[Sample]], samples: int) -> None:
        """groups: the samples of every training image; their captions are the references."""
        assert samples > 1, "each sample is compared with the others"
        self.reward = CiderReward(_references(groups))
        self.model, self.texts, self.samples = model, texts, samples
        self.prompt = texts.given(texts.config.caption_prompt)

    def loss(
        self, images: list[int], features: torch.Tensor, groups: list[list[Sample]], noise: RowNoise
    ) -> dict[str, torch.Tensor]:
        """Return the loss on features (B, N, C) of `images`: a sample is weighted by its reward minus the mean of the
        others.
        """
        rows = self._generate(features, self.samples, lambda logits: draw(logits / _TEMPERATURE))
        sampled = [rows[i : i + self.samples] for i in range(0, len(rows), self.samples)]
        rewards = torch.tensor(
            [
                [self.reward(image, self._reward_text(ids)) for ids in of]
                for image, of in zip(images, sampled, strict=True)
            ]
        )
        advantages = (rewards - rewards.mean(1, keepdim=True)) * self.samples / (self.samples - 1)
        prompt_length = len(self.prompt)
        tokens = [
            [
                Tokens(self.prompt + ids, prompt_length, weight, _TEMPERATURE)
                for ids, weight in zip(row, weights, strict=True)
            ]
            + [self.texts.tokens(sample) for sample in group if sample.prompt]
            for row, weights, group in zip(sampled, advantages.tolist(), groups, strict=True)
        ]
        losses = lm_loss(self.model, features, self.texts.packed(tokens, features.device), noise=noise)
        return losses | {"cider": 100 * rewards.mean()}

    def greedy(self, features: torch.Tensor) -> list[str]:
        """Return the greedy caption of each of features (B, N, C), tokenized for CIDEr."""
        return [self._reward_text(ids) for ids in self._generate(features, 1, lambda logits: logits.argmax(1))]

    def _reward_text(self, ids: list[int]) -> str:
        text = tokenize(self.texts.tokenizer.decode(ids, skip_special_tokens=True))
        return f"{text} {_END}" if ids[-1] == self.texts.end else text

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # the cache would recompile compiled blocks
    def _generate(
        self, features: torch.Tensor, count: int, choose: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[list[int]]:
        """Return token ids of `count` captions per image, grouped by image, including the end token."""
        llm = self.model.llm
        assert llm is not None
        embed = llm.get_input_embeddings()  # type: ignore[operator]
        prefix = self.model.prefix_embeds(self.model.query_output(features)).to(embed.weight.dtype)
        if self.prompt:
            prompt = embed(torch.tensor([self.prompt], device=features.device)).expand(len(prefix), -1, -1)
            prefix = torch.cat((prefix, prompt), 1)
        cache = DynamicCache(config=llm.config)  # type: ignore[arg-type]
        hidden = llm.base_model(inputs_embeds=prefix, past_key_values=cache).last_hidden_state[:, -1]  # type: ignore[operator]
        cache.batch_repeat_interleave(count)
        hidden = hidden.repeat_interleave(count, 0)
        ids: list[list[int]] = [[] for _ in range(len(hidden))]
        running = torch.arange(len(ids), device=hidden.device)
        for _ in range(_MAX_NEW_TOKENS):
            chosen = choose(next_logits(llm, hidden))
            for row, token in zip(running.tolist(), chosen.tolist(), strict=True):
                ids[row].append(token)
            unfinished = (chosen != self.texts.end).nonzero().squeeze(1)
            if not len(unfinished):
                break
            if len(unfinished) < len(running):  # drop finished captions
                running, chosen = running[unfinished], chosen[unfinished]
                cache.batch_select_indices(unfinished)
            embeds = embed(chosen[:, None])
            hidden = llm.base_model(inputs_embeds=embeds, past_key_values=cache).last_hidden_state[:, -1]  # type: ignore[operator]
        return ids


def draw(logits: torch.Tensor) -> torch.Tensor:
    """Draw a token (B) from the softmax of each row of (B, V).

    Inverts the cumulative distribution, first over blocks of the vocabulary, then within one: torch.multinomial over
    50,000 tokens takes longer than the model's step.
    """
    rows, block = torch.arange(len(logits), device=logits.device), math.isqrt(logits.shape[1])
    weights = (logits - logits.amax(1, keepdim=True)).exp_()
    weights = F.pad(weights, (0, -logits.shape[1] % block)).unflatten(1, (-1, block))
    block_weights = weights.sum(2)
    chosen = _invert(block_weights)
    return chosen * block + _invert(weights[rows, chosen])


def _invert(weights: torch.Tensor) -> torch.Tensor:
    """Draw an index of each row of weights (B, N) in proportion to them."""
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, torch.rand_like(total) * total, right=True).squeeze(1)
    return drawn.clamp_(max=weights.shape[1] - 1)


def mean_cider(groups: list[list[Sample]], captions: list[str]) -> float:
    """Return CIDEr, times 100, of one tokenized caption per image against the captions among its samples."""
    reward = CiderReward(_references(groups))
    return 100 * sum(reward(image, caption) for image, caption in enumerate(captions)) / len(captions)


def _references(groups: list[list[Sample]]) -> list[list[str]]:
    return [[f"{tokenize(sample.text)} {_END}" for sample in group if not sample.prompt] for group in groups]


class CiderReward:
    """CIDEr-D of a caption against the references of its image, as a training reward (Vedantam et al. 2015).

    Document frequencies come from all references given at the start, so that captions can be scored one at a time.
    references[image]: the token strings (tokens joined by single spaces) of each image.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counts = [[_grams(text) for text in texts] for texts in references]
        self._frequency = Counter(gram for texts in counts for gram in set().union(*texts))
        self._log_images = math.log(len(counts))
        self._references = [[self._vector(grams) for grams in texts] for texts in counts]

    def __call__(self, image: int, text: str) -> float:
        """Return CIDEr-D of token string `text`: 0 to 10, pycocoevalcap's value for this image."""
        vector, norms, length = self._vector(_grams(text))
        total = 0.0
        for reference, reference_norms, reference_length in self._references[image]:
            products = [0.0] * _ORDERS
            for gram, value in vector.items():
                other = reference.get(gram, 0.0)
                products[len(gram) - 1] += min(value, other) * other
            closeness = math.exp(-((length - reference_length) ** 2) / (2 * _SIGMA**2))
            total += closeness * sum(
                product / (norm * other) if norm and other else 0.0
                for product, norm, other in zip(products, norms, reference_norms, strict=True)
            )
        return 10.0 * total / _ORDERS / len(self._references[image])

    def _vector(self, grams: Grams) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """Return tf-idf of each n-gram, the norm of each order, and the number of bigrams (CIDEr's length)."""
        vector = {
            gram: count * (self._log_images - math.log(max(1, self._frequency[gram]))) for gram, count in grams.items()
        }
        squares = [0.0] * _ORDERS
        for gram, value in vector.items():
            squares[len(gram) - 1] += value**2
        length = sum(count for gram, count in grams.items() if len(gram) == 2)
        return vector, [math.sqrt(square) for square in squares], length


def _grams(text: str) -> Grams:
    words = text.split()
    return Counter(
        tuple(words[i : i + order]) for order in range(1, _ORDERS + 1) for i in range(len(words) - order + 1)
    )


def main(argv: list[str] | None = None) -> int:
    def work() -> object:
        settings = open_settings("self-critical", argv)
        stage2 = settings.stage2
        if stage2.loop.run.dry_run:
            return dry_run(stage2, plan)
        with lock_folder(stage2.loop.run.out, flat(settings)):
            return SelfCriticalTraining(settings).run()

    return run_main(lambda: print(work()), argv=argv)
