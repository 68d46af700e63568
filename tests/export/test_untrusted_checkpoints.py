"""Checkpoints from a stranger: no code of theirs runs, whichever file names it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import blip2rt
from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import LlmConfig, load_llm, load_tokenizer, text_config
from blip2rt.modeling.sources import resolve
from blip2rt.modeling.vision import VisionConfig, VisionEncoder
from blip2rt.modeling.weights import Weights

ROOT = Path(blip2rt.__file__).parents[1]
EVIL = "open({path!r}, 'w').close()\nfrom transformers import OPTConfig, OPTForCausalLM\n" + (
    "class Evil(OPTConfig): pass\nclass EvilModel(OPTForCausalLM): config_class = Evil\n"
)


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A folder whose config names code of its own, and the file that this code would make."""
    folder, touched = tmp_path / "evil", tmp_path / "touched"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(path=str(touched)))
    config = {
        "model_type": "evil", "architectures": ["EvilModel"],
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.EvilModel", "AutoModelForCausalLM": "evil.EvilModel",
                     "AutoTokenizer": ["evil.Evil", None]},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": config["auto_map"]}))
    return folder, touched


def test_no_code_of_a_checkpoint_runs(evil: tuple[Path, Path]) -> None:
    folder, touched = evil
    encoder = VisionConfig(source=f"hf:{folder}", positions=4, features=8)
    loads = (lambda: text_config(str(folder)), lambda: load_llm(LlmConfig(source=str(folder))),
             lambda: load_tokenizer(str(folder)), lambda: VisionEncoder(encoder))  # fmt: skip
    for load in loads:
        with pytest.raises(Blip2rtError):
            load()
    assert not touched.exists()


@pytest.mark.parametrize(
    "overrides",
    [{"trust_remote_code": True}, {"auto_map": {"AutoConfig": "evil.Evil"}}, {"dense_act_fn": "__import__"},
     {"dense_act_fn": ["gelu"]}, {"device_map": "auto"}, {"code_revision": "main"}],
)  # fmt: skip
def test_overrides_are_a_list_of_what_is_allowed(overrides: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="llm.overrides: .* is not allowed: dense_act_fn may be relu, gelu"):
        LlmConfig.from_json({"overrides": overrides})


def test_the_override_of_lavis_is_allowed() -> None:
    assert LlmConfig.from_json({"overrides": {"dense_act_fn": "gelu"}}).overrides == {"dense_act_fn": "gelu"}


def test_every_call_that_could_run_code_says_that_it_does_not() -> None:
    """A new from_pretrained or from_config without trust_remote_code=False fails here."""
    for folder in ("blip2rt", "train", "export", "benchmarks", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
                if called in ("from_pretrained", "from_config"):
                    said = {word.arg: ast.unparse(word.value) for word in node.keywords}  # type: ignore[attr-defined]
                    assert said.get("trust_remote_code") == "False", f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_a_package_is_named_and_never_imported() -> None:
    with pytest.raises(Blip2rtError, match="is not the name of a package"):
        resolve("pkg:os.path/config.json")


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors"])
def test_shards_lie_beside_their_index(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(Blip2rtError, match="not a file beside it"):
        Weights(tmp_path)
