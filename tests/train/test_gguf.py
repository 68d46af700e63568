"""transformers reads a GGUF file through our reader: the same values, far fewer numpy arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")

from blip2rt.modeling.sources import quick_gguf
from tests.seeds import new_seed

TOKENS = 3000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A header with every kind of array."""
    path, rng = tmp_path_factory.mktemp("gguf") / "tiny.gguf", np.random.default_rng(new_seed())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"wörd-{number}" for number in rng.integers(0, 10**9, TOKENS)])
    writer.add_token_scores(rng.normal(size=TOKENS).tolist())
    writer.add_token_types([1] * TOKENS)
    writer.add_array("tiny.flags", [True, False])
    writer.add_name("tiny")
    writer.add_tensor("output.weight", rng.normal(size=(2, 32)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(reader: Any) -> dict[str, Any]:
    """The header as transformers reads it, and the tensors."""
    from transformers.integrations.ggml import _gguf_parse_value

    fields = {
        name: [_gguf_parse_value(field.parts[i], field.types) for i in field.data]
        for name, field in reader.fields.items()
    }
    return fields | {tensor.name: tensor.data.tolist() for tensor in reader.tensors}


def test_gguf_headers_read_the_same_in_fewer_steps(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, slices = gguf.GGUFReader._get, 0

    def count(*arguments: Any, **more: Any) -> Any:
        nonlocal slices
        slices += 1
        return original(*arguments, **more)

    want = values(gguf.GGUFReader(file))
    monkeypatch.setattr(gguf.GGUFReader, "_get", count)
    with quick_gguf(str(file)):
        assert values(gguf.GGUFReader(file)) == want
    assert slices < 200
    assert gguf.GGUFReader.__name__ == "GGUFReader" and len(want["tokenizer.ggml.tokens"]) == TOKENS
