"""A hash that identifies what a bundle's embeddings depend on, so that stored ones are used with the same model."""

import json
from dataclasses import asdict

from .names import IMAGE_EMBED, TEXT_EMBED, VISION
from .reader import Bundle

_EMBEDDING_GRAPHS = (VISION, IMAGE_EMBED, TEXT_EMBED)


def fingerprint(bundle: Bundle) -> str:
    """Return a hash that identifies a bundle's embeddings, or "" if it makes none.

    It covers the embedding graphs, the files they refer to, and the preparation of pictures and texts. Captioning and
    matching parts are not covered.
    """
    manifest, spec = bundle.manifest, bundle.manifest.retrieval
    if spec is None or not bundle.has(*_EMBEDDING_GRAPHS):
        return ""
    hashes = {name: entry.sha256 for name, entry in (manifest.files or {}).items()}
    graphs = [bundle.graph(component) for component in _EMBEDDING_GRAPHS]
    contents = [graph.read_bytes() for graph in graphs]
    referenced = {name for name in hashes if any(name.encode() in content for content in contents)}
    covered = {name: hashes[name] for name in {*referenced, spec.tokenizer, *(graph.name for graph in graphs)}}
    preparation = (asdict(manifest.image), spec.max_text_length, spec.pad_token_id, spec.clean_captions)
    import hashlib  # takes 3 ms and 4 MB

    return hashlib.sha256(json.dumps([preparation, covered], sort_keys=True).encode()).hexdigest()
