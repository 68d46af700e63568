"""Captioning and filtering (CapFilt), the paper's data recipe: `python -m train.prepare capfilt`.

A captioner writes captions for every image. A scorer ranks them together with the existing ones and with the nearest
captions of a pool. All candidates are stored with their scores; the best few of each image stay. scorers.py ranks,
candidates.py captions batches of images, datasets.py reads and writes lists and shards.
"""

from .candidates import CapFilt as CapFilt
from .datasets import CANDIDATES as CANDIDATES
from .datasets import FilterOptions as FilterOptions
from .datasets import filter_list as filter_list
from .datasets import filter_shards as filter_shards
from .scorers import CaptionPool as CaptionPool
from .scorers import open_scorer as open_scorer
