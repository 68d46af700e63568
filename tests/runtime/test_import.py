"""What `import blip2rt` costs, needs and exports."""

import inspect
import pickle
import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

import pytest
from PIL import Image

import blip2rt
from blip2rt.options import CaptionOptions, Options, TextOptions


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


def test_captions_with_torch_and_friends_blocked(tiny, tmp_path, photo):
    Image.fromarray(photo()).save(tmp_path / "x.png")
    blocked = "torch torchvision transformers onnx train export blip2rt_train blip2rt_export blip2rt.modeling".split()
    blocked.append("onnxruntime.capi.onnxruntime_pybind11_state")
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"import blip2rt; print(blip2rt.load({str(tiny.path)!r}).caption({str(tmp_path / 'x.png')!r}))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_import_is_light():
    code = (
        "import sys, time; start = time.process_time(); import blip2rt; spent = time.process_time() - start\n"
        "heavy = {'numpy', 'PIL', 'tokenizers', 'onnxruntime', 'blip2rt._native'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(spent)"
    )
    assert min(float(run_python(code).stdout) for _ in range(3)) < 0.2, "seconds of one core"


def test_a_caption_imports_only_what_one_picture_needs(tiny, tmp_path, photo):
    Image.fromarray(photo()).save(tmp_path / "x.jpg")
    needless = "PIL.ImageOps PIL.PngImagePlugin blip2rt.bundle.hub blip2rt.gallery.outputs.sidecars".split()
    needless += "blip2rt.gallery.tar_samples blip2rt.serve.cli blip2rt.serve.settings tarfile".split()
    arguments = ["caption", str(tmp_path / "x.jpg"), "--model", str(tiny.path)]
    code = (
        f"import sys; before = set(sys.modules)\nfrom blip2rt.cli import main\nassert main({arguments!r}) == 0\n"
        f"print(*({{*{needless!r}}} & (set(sys.modules) - before)))"
    )
    assert run_python(code).stdout.splitlines()[1:] == [""]


def test_functions_show_every_option_with_its_type():
    assert sorted(dir(blip2rt)) == sorted([*blip2rt.__all__, "__version__"])
    for name, own in (("caption", {"prompt", "raw", "on_timeout"}), ("ask", {"questions", "keep_going", "on_timeout"})):
        found = inspect.signature(getattr(blip2rt, name))
        assert {field.name for field in fields(blip2rt.Options)} | own <= set(found.parameters)
        assert not any(each.kind is each.VAR_KEYWORD for each in found.parameters.values())
        for field in fields(blip2rt.Options):
            shown = found.parameters[field.name]
            assert (str(shown.annotation), shown.default) == (field.type, field.default)
        assert pickle.loads(pickle.dumps(getattr(blip2rt, name))) is getattr(blip2rt, name)
    for name in ("caption", "ask", "match"):
        method = inspect.signature(getattr(blip2rt.Model, name))
        assert [*inspect.signature(getattr(blip2rt, name)).parameters.values()] == [*method.parameters.values()][1:]
    embed = str(inspect.signature(blip2rt.Model.embed_image))
    assert embed.endswith("images: ImageLike | Sequence[ImageLike], *, keep_going: bool = False) -> numpy.ndarray")


def test_every_public_name_exists():
    for name in blip2rt.__all__:
        assert getattr(blip2rt, name) is not None
    with pytest.raises(AttributeError):
        blip2rt.nothing  # noqa: B018


def test_typed_keywords_match_options() -> None:
    assert get_type_hints(TextOptions) | {"num_captions": int} == get_type_hints(Options)
    assert CaptionOptions.__required_keys__ == frozenset()
    keys = [line.partition(":")[0] for line in (Options.__doc__ or "").splitlines() if ":" in line]
    documented = {name.strip() for key in keys for name in key.split(", ")}
    assert {field.name for field in fields(Options)} <= documented


def test_typing_extensions_is_not_needed() -> None:
    code = "import sys; sys.modules['typing_extensions'] = None; import blip2rt.backends.ort, blip2rt.backends.trt"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
