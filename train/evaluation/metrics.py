"""Caption metrics: BLEU-4, ROUGE-L and CIDEr of pycocoevalcap.

Texts are tokenized like the COCO evaluation's Penn Treebank tokenizer (lower case, clitics apart, no punctuation), but
in Python, because that tokenizer is a Java program: both agree on all of Flickr8k's 35,000 captions. METEOR and SPICE
are Java programs, too, and left out.
"""

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
    | \d+(?:[.,:/⁄]\d+)+ | \w+?(?=n't\b) | \w+(?:[-/]\w+)*
    | [#&=$%@*+<>()\[\]{}]""",
    re.VERBOSE,
)
_SIGNS = str.maketrans({"’": "'", "¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "})
_SPELLINGS = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"} | dict(
    zip("()[]{}", "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split(), strict=True)
)


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
