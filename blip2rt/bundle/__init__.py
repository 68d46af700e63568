"""The contract between export and the runtime: names of graphs and tensors, the manifest, reading and checking.

    bundle = read("models/nano")            # checks the manifest and file sizes, loads no graph
    verify("models/nano")                   # checks the sha256 of every file

    from blip2rt.bundle.writer import BundleWriter  # imported by writers only

    with BundleWriter("out/nano") as writer:
        ...write graphs and tokenizers into writer.folder...
        writer.finish(manifest)             # hashes, writes blip2rt.json, renames to out/nano

Knows files, sizes and hashes; nothing about images or text. Imports the standard library only; the core, which reads
and judges bundles, is loaded by the first call.
"""

from .manifest import Calibration as Calibration
from .manifest import Component as Component
from .manifest import Decoding as Decoding
from .manifest import FileEntry as FileEntry
from .manifest import ImageSpec as ImageSpec
from .manifest import LlmSpec as LlmSpec
from .manifest import Logistic as Logistic
from .manifest import Manifest as Manifest
from .manifest import QuestionSpec as QuestionSpec
from .manifest import RetrievalSpec as RetrievalSpec
from .manifest import Source as Source
from .manifest import TensorInfo as TensorInfo
from .manifest import Verification as Verification
from .names import *  # noqa: F403  # all names of components and tensors
from .reader import Bundle as Bundle
from .reader import embedded as embedded
from .reader import read as read
from .reader import verify as verify
