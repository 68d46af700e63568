"""Untrusted checkpoints: their code never runs, and damaged files are one-line errors."""

import ast
import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.sources import resolve
from blip2rt.modeling.vision import VisionConfig, VisionEncoder
from blip2rt.modeling.weights import Weights
from blip2rt_export.cli import main as export
from blip2rt_export.convert import main as convert
from blip2rt_train import stage2
from tests.seeds import seed_of
from tests.tiny import training as tiny_training
from tests.tiny.bundle import Tiny

ROOT = Path(__file__).parents[3]
EVIL = "open({path!r}, 'w').close()\nfrom transformers import OPTConfig, OPTForCausalLM\n" + (
    "class Evil(OPTConfig): pass\nclass EvilModel(OPTForCausalLM): config_class = Evil\n"
)


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A folder whose config names its own code, and the file that this code would create."""
    folder, touched = tmp_path / "evil", tmp_path / "touched"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(path=str(touched)))
    auto_map = dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "evil.EvilModel")
    auto_map |= {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    config = {"model_type": "evil", "architectures": ["EvilModel"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    return folder, touched


def test_code_of_a_checkpoint_never_runs(evil: tuple[Path, Path]) -> None:
    folder, touched = evil
    encoder = VisionConfig(source=f"hf:{folder}", positions=4, features=8)
    llm = LanguageModelSource(LlmConfig(source=str(folder)))
    loads = (lambda: llm.text_config, llm.load, lambda: llm.tokenizer, lambda: VisionEncoder(encoder))
    for load in loads:
        with pytest.raises(Blip2rtError):
            load()
    assert not touched.exists()


@pytest.mark.parametrize("overrides", [{"trust_remote_code": True}, {"dense_act_fn": "__import__"}])
def test_only_listed_overrides_are_allowed(overrides: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="llm.overrides: .* is not allowed: dense_act_fn may be relu, gelu"):
        LlmConfig.from_json({"overrides": overrides})


@pytest.mark.long(4, "whole exports")
def test_trust_remote_code_is_always_false() -> None:
    """Every from_pretrained and from_config must pass trust_remote_code=False."""
    for folder in ("blip2rt", "train", "export", "benchmarks", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
                if called in ("from_pretrained", "from_config"):
                    said = {word.arg: ast.unparse(word.value) for word in node.keywords}  # type: ignore[attr-defined]
                    assert said.get("trust_remote_code") == "False", f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_pkg_source_never_imports_a_package() -> None:
    with pytest.raises(Blip2rtError, match="is not a package name"):
        resolve("pkg:os.path/config.json")


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors"])
def test_shards_outside_the_folder_are_rejected(tmp_path: Path, shard: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(Blip2rtError, match="not in the same folder"):
        Weights(tmp_path)


DEEP = b"[" * 200_000 + b"]" * 200_000
NOISE = random.Random(seed_of(__name__)).randbytes(3000)
OUTPUT = ("blip2rt-export: error: ", "blip2rt-convert: error: ", "blip2rt-train: error: ")


def header(text: bytes) -> bytes:
    """Make a safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + bytes(64)


def zipped(damaged: bool) -> bytes:
    """Make a zip file like torch.save's, with noise for its pickle or a damaged directory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", NOISE)
        archive.writestr("archive/version", "3")
    data = file.getvalue()
    return data[:-60] + NOISE[:38] + data[-22:] if damaged else data


def entry(**changes: object) -> bytes:
    """Make a safetensors file of one tensor with an odd entry."""
    tensor = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}
    return header(json.dumps({"query_tokens": tensor}).encode())


NUMBERS = b'{"model_type": 1e999, "vision": -Infinity}'
JSONS = [DEEP, NOISE, b"", b"[1]", b"9" * 100_000, b'{"a": "\xff"}']
TENSORS = [NOISE, b"", header(DEEP), header(b"[1]"), header(b'{"a": 1}'), b"\xff" * 8 + NOISE, entry(data_offsets=[0])]
TENSORS += [entry(data_offsets=[-64, 0]), *(entry(shape=shape) for shape in ([-4, -4], [1.6e1], "16", [2**62, 4]))]
PICKLES = [NOISE, b"", zipped(False), zipped(True), b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.", b"\x80\x02}q\0(X"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tiny_training.tiny_settings(tmp_path_factory.mktemp("settings"))


def check_errors(source: Path, settings: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Check that a random one of the commands that read a checkpoint rejects `source` in one line."""
    out = source.parent / "out"
    commands = {
        export: ["--checkpoint", str(source), "--out", str(out)],
        convert: [str(source), "--to", "hf", "--out", str(out)],
        stage2.main: [*settings, "--start", str(source), "--out", str(out), "--llm_source", str(source)],
    }
    command = random.choice(list(commands))
    capfd.readouterr()
    code, output = command(commands[command]), capfd.readouterr().err
    lines = [line for line in output.splitlines() if line.startswith(OUTPUT)]
    assert code == 2 and len(lines) == 1 and "Traceback" not in output, (commands[command], code, output[-3000:])
    assert lines[0].isprintable() and source.name in lines[0], lines[0]
    shutil.rmtree(out, ignore_errors=True)  # of train; the others leave nothing
    assert not list(source.parent.glob(".out*"))


NAMES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
DAMAGE = {
    **dict.fromkeys(NAMES, JSONS),
    "config.json": [*JSONS, NUMBERS],  # such numbers are valid in the other files
    "model.safetensors": TENSORS,
    "model.safetensors.index.json": [*JSONS, NUMBERS],
    "pytorch_model.bin": PICKLES,
    "model.pth": PICKLES,  # LAVIS
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_is_a_one_line_error(
    checkpoint_copy: Path, settings: list[str], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file, cases = checkpoint_copy / name, DAMAGE[name]
    assert file.is_file() or name not in NAMES
    if name in ("pytorch_model.bin", "model.safetensors.index.json"):  # a whole file takes precedence
        (checkpoint_copy / "model.safetensors").unlink()
    for data in random.sample(cases, 3):
        print(data[:50])
        file.write_bytes(data)
        check_errors(file if name == "model.pth" else checkpoint_copy, settings, capfd)


@pytest.mark.long(3, "whole conversions")
def test_untrusted_bundles_are_converted_safely(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`convert --to ours` reads graphs, whose data must be inside the bundle; a damaged graph is a one-line error."""
    import onnx

    from blip2rt.bundle import MANIFEST, QFORMER
    from blip2rt.modeling.blip2 import Blip2Config

    folder = Path(shutil.copytree(tiny.path, tmp_path / "bundle"))
    (tmp_path / "secret").write_bytes(bytes(64))
    model = onnx.load(folder / "qformer.onnx")
    tensor = model.graph.initializer.add(name="stranger", data_type=1, dims=[16], data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    llm = LlmConfig(str(tiny_training.llm_folder(tmp_path / "llm")))
    config = json.dumps(Blip2Config(stage=2, llm=llm).to_json()).encode()
    for graph in (model.SerializeToString(), NOISE, b""):
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, data in ((f"{QFORMER}.onnx", graph), ("stage2.json", config)):
            (folder / name).write_bytes(data)
            manifest["files"][name] = {"size": len(data), "sha256": "0" * 64}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        capfd.readouterr()
        assert convert([str(folder), "--to", "ours", "--out", str(tmp_path / "out")]) == 2
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1 and "bundle" in said, said
        assert not (tmp_path / "out").exists()
