"""Caption metrics: BLEU-4, ROUGE-L and CIDEr of pycocoevalcap. Knows strings only.

Texts are tokenized as the Penn Treebank tokenizer of the COCO evaluation does it (lower case, clitics apart, no
punctuation), in Python, since that tokenizer is a Java program: they differ in none of Flickr8k's 35,000 captions.
METEOR and SPICE need Java too and are left out.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from blip2rt.errors import Blip2rtError
from blip2rt.install_hints import pip_install

_TOKEN = re.compile(
    r"""https?://\S+ | [\w.]+@\w+(?:\.\w+)+ | \w+(?:\.\w+)*\.(?:com|org|net|edu|gov)\b  # addresses
    | (?:[a-z]\.)+[a-z]\.? | \b(?:[a-z]|mr|mrs|ms|dr|st|jr|sr|prof|vs|ft|mt|no(?=\.\s))\.
    | n't\b | '(?:s|re|ve|ll|d|m)\b | o'clock\b | 'n'
    | \d+(?:[.,:/]\d+)+ | \w+?(?=n't\b) | \w+(?:[-/]\w+)*
    | [#&=$%@*+<>()\[\]{}]""",
    re.VERBOSE,
)
_WRITTEN = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"} | dict(
    zip("()[]{}", "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split(), strict=True)
)


def tokenize(text: str) -> str:
    """Tokens of a caption, joined by spaces."""
    return " ".join(_WRITTEN.get(token, token) for token in _TOKEN.findall(text.lower().replace("’", "'")))


def coco_scorers() -> tuple[Any, Any, Any]:
    """pycocoevalcap's BLEU, ROUGE-L and CIDEr. Raise Blip2rtError where it is not installed."""
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
    """BLEU-1 to 4, ROUGE-L and CIDEr, all times 100, of one caption an image against its references; and each image's
    CIDEr."""
    bleu_scorer, rouge_scorer, cider_scorer = coco_scorers()
    truth = {i: [tokenize(text) for text in texts] for i, texts in enumerate(references)}
    made = {i: [tokenize(text)] for i, text in enumerate(captions)}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print as they go
        bleu = bleu_scorer.compute_score(truth, made)[0]
        rouge = rouge_scorer.compute_score(truth, made)[0]
        cider, each = cider_scorer.compute_score(truth, made)
    scores = {f"bleu{n}": value for n, value in enumerate(bleu, 1)} | {"rouge_l": rouge, "cider": cider}
    return {name: 100 * float(value) for name, value in scores.items()}, [100 * float(value) for value in each]
