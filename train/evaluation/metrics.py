"""Metrics of captions, answers and retrieval.

Captions: BLEU-4, ROUGE-L and CIDEr of pycocoevalcap. Texts are tokenized like the COCO evaluation's Penn Treebank
tokenizer (lower case, clitics apart, no punctuation), but in Python, because that tokenizer is a Java program: both
agree on all of Flickr8k's 35,000 captions. METEOR and SPICE are Java programs, too, and left out.

Answers: the accuracy of VQAv2 and OK-VQA (Antol et al. 2015; visualqa.org/evaluation), and GQA's exact match.

Retrieval: recall. `t2i_r@k`: share of texts whose image is among their k best; `i2t_r@k`: share of images with one of
their texts there.
"""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from blip2rt.errors import Blip2rtError
from blip2rt.install_hints import pip_install

_TOKEN = re.compile(
    r"""https?://\S+ | [\w.]+@\w+(?:\.\w+)+ | \w+(?:\.\w+)*\.(?:com|org|net|edu|gov)\b  # addresses
    | (?:[a-z]\.)+[a-z]\.? | \b(?:[a-z]|mr|mrs|ms|dr|st|jr|sr|prof|vs|ft|mt|no(?=\.\s))\.
    | n't\b | '(?:s|re|ve|ll|d|m)\b | o'clock\b | 'n'
    | \d+(?:[.,:/⁄]\d+)+ | \w+?(?=n't\b) | \w+(?:[-/]\w+)*
    | [#&=$%@*+<>()\[\]{}]""",
    re.VERBOSE,
)
_SIGNS = str.maketrans({"’": "'", "¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "})
_SPELLINGS = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"} | dict(
    zip("()[]{}", "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split(), strict=True)
)
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # apostrophes and colons stay
_NUMBERS = {"none": "0"} | {
    word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
).split()
# Spelled with one apostrophe missing; the last entry is the official script's own.
_APOSTROPHES = {word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, c in enumerate(word) if c == "'"} | {
    "somebody'd": "somebodyd"
}
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
RANKS = (1, 5, 10)  # of recall


def tokenize(text: str) -> str:
    """Return the tokens of a caption, joined by spaces."""
    return " ".join(_SPELLINGS.get(token, token) for token in _TOKEN.findall(text.lower().translate(_SIGNS)))


def coco_scorers() -> tuple[Any, Any, Any]:
    """Return pycocoevalcap's BLEU, ROUGE-L and CIDEr. Raise Blip2rtError if it is not installed."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise Blip2rtError(f"pycocoevalcap is not installed: {pip_install('eval')}") from error
    return Bleu(4), Rouge(), Cider()


def caption_metrics(
    references: Sequence[Sequence[str]], captions: Sequence[str]
) -> tuple[dict[str, float], list[float]]:
    """Return BLEU-1 to 4, ROUGE-L and CIDEr, all times 100, of one caption per image against its references; and each
    image's CIDEr.
    """
    bleu_scorer, rouge_scorer, cider_scorer = coco_scorers()
    truth = {i: [tokenize(text) for text in texts] for i, texts in enumerate(references)}
    candidates = {i: [tokenize(text)] for i, text in enumerate(captions)}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print as they go
        bleu = bleu_scorer.compute_score(truth, candidates)[0]
        rouge = rouge_scorer.compute_score(truth, candidates)[0]
        cider, each = cider_scorer.compute_score(truth, candidates)
    scores = {f"bleu{n}": value for n, value in enumerate(bleu, 1)} | {"rouge_l": rouge, "cider": cider}
    return {name: 100 * float(value) for name, value in scores.items()}, [100 * float(value) for value in each]


def normalize_answer(text: str) -> str:
    """Normalize an answer as the official evaluation does: lower case, digits for number words, no articles, no
    punctuation but apostrophes, colons and decimal points, and apostrophes in contractions.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(_COMMA_IN_NUMBER.search(text))
    plain = text
    for mark in _PUNCTUATION:  # becomes a space between words; is removed beside a space or in a number like 1,000
        removed = joined or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if removed else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """Return agreement with human answers, 0 to 1: min(n / 3, 1) of the n other annotators with the same answer,
    averaged over leaving out each annotator (the ten subsets of nine).

    Both sides are always normalized; the official script skips that if all annotators agree.
    """
    given = normalize_answer(answer)
    same = [normalize_answer(truth) == given for truth in truths]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """Return 1 if the normalized answer is one of the normalized truths, otherwise 0."""
    return float(normalize_answer(answer) in {normalize_answer(truth) for truth in truths})


def recall(sim: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Return recall in per cent from sim (images, texts); owner (texts) is each text's image.

    Ties rank in order, as in a sorted list, so a constant model scores by chance. NaN ranks last.
    """
    sim = np.where(np.isnan(sim), -np.inf, sim)
    texts, images = np.arange(len(owner)), np.arange(len(sim))
    own = sim[owner, texts]
    image_rank = ((sim > own) | ((sim == own) & (images[:, None] < owner))).sum(0)
    text_rank = np.array([best_rank(row, owner == image) for image, row in enumerate(sim)])
    return recall_at("t2i", image_rank) | recall_at("i2t", text_rank)


def best_rank(scores: np.ndarray, own: np.ndarray) -> int:
    """Return how many of scores (N) are above the best of the `own` ones (N, bool); N without any."""
    order = np.argsort(-scores, kind="stable")
    found = np.flatnonzero(own[order])
    return int(found[0]) if len(found) else len(scores)


def recall_at(name: str, ranks: np.ndarray) -> dict[str, float]:
    """Return the shares of ranks, counted from 0, below 1, 5 and 10, in per cent."""
    return {f"{name}_r@{k}": 100.0 * float((ranks < k).mean()) for k in RANKS}


def reranked(sim: np.ndarray, best: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return scores (N) of one query: `sums` (K) for `best` (K), and the rest below them in the order of sim (N)."""
    scores = sim.astype(np.float64) - 1e6
    scores[best] = sums
    return scores
