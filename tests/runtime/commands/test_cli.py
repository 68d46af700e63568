"""The command line: output, error messages and exit status. Most tests call main() in this process."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import blip2rt
from blip2rt.bundle import MANIFEST, embedded, read
from blip2rt.cli import main
from tests.tiny.image_folders import start

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, photo, monkeypatch) -> Path:
    """Two good pictures, and the working directory."""
    for name in ("a.png", "b.png"):
        Image.fromarray(photo()).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


def rejected(capsys, *arguments: object) -> str:
    """Exit code 2, nothing on stdout, one line on stderr: the line."""
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("blip2rt: error: ") and err.count("\n") == 1, (code, out, err)
    return err


TIMEOUT = 900  # seconds until a process counts as hung, however busy the machine is


def test_caption_prints_captions(tiny, folder, capsys):
    model = blip2rt.load(tiny.path)
    a, b = model.caption(["a.png", "b.png"])
    assert run(capsys, "caption", "a.png", "--model", tiny.path) == (0, f"{a}\n", "")
    assert run(capsys, "caption", "a.png", "b.png", "--model", tiny.path) == (0, f"a.png\t{a}\nb.png\t{b}\n", "")
    greedy = model.caption("a.png", num_beams=1, max_new_tokens=2, prompt="a dog")
    options = ["--beams", 1, "--max-new-tokens", 2, "--prompt", "a dog", "--threads", 1]
    assert run(capsys, "caption", "a.png", "--model", tiny.path, *options)[1] == f"{greedy}\n"


def test_caption_prints_json(tiny, folder, capsys):
    code, out, err = run(capsys, "caption", "a.png", "none.png", "--json", "--num-captions", 2, "--model", tiny.path)
    good, bad = map(json.loads, out.splitlines())
    assert code == 1 and "none.png" in err
    assert set(good) == {"image", "captions", "caption", "score", "truncated", "model", "ms"}
    assert good["truncated"] is False or good["truncated"] is True
    assert good["image"] == "a.png" and good["captions"][0] == good["caption"] and len(good["captions"]) == 2
    assert bad == {"image": "none.png", "error": "no such file: 'none.png'"}


def test_ask_answers_about_several_images(tiny, folder, capsys):
    model = blip2rt.load(tiny.path)
    (folder / "tab\tand\nline.png").write_bytes((folder / "b.png").read_bytes())
    images = ["a.png", "none.png", "tab\tand\nline.png"]
    want = model.ask([images[0], images[2]], "what is red")
    code, out, err = run(capsys, "ask", *images, "what is red", "--model", tiny.path)
    assert code == 1 and out.splitlines() == [f"a.png\t{want[0]}", f"tab\\tand\\nline.png\t{want[1]}"]
    assert err.count("\n") == 1 and "none.png" in err
    out = run(capsys, "ask", *images, "what is red", "--model", tiny.path, "--json")[1]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == images and [row.get("answer") for row in rows] == [want[0], None, want[1]]
    assert run(capsys, "ask", "none.png", "what is red", "--model", tiny.path)[0] == 2
    assert "one image" in rejected(capsys, "ask", *images, "who?", "--stream", "--model", tiny.path)


def test_image_from_standard_input(tiny, folder, capsys, monkeypatch):
    want = run(capsys, "caption", "a.png", "--model", tiny.path)[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "a.png").read_bytes())))
    assert run(capsys, "caption", "-", "--model", tiny.path) == (0, want, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "0 bytes" in rejected(capsys, "caption", "-", "--model", tiny.path)


def test_ask_and_match_print_answers_and_scores(tiny, folder, capsys):
    model = blip2rt.load(tiny.path)
    answer, match = model.ask("a.png", "what is red"), model.match("a.png", "a dog")
    assert run(capsys, "ask", "a.png", "what is red", "--model", tiny.path) == (0, f"{answer}\n", "")
    row = json.loads(run(capsys, "ask", "a.png", "what is red", "--model", tiny.path, "--json")[1])
    assert row.pop("ms") > 0
    assert row.pop("score") == pytest.approx(answer.score, abs=1e-4) and row.pop("truncated") == answer.truncated
    question = {"question": "what is red", "answer": answer}
    assert row == {"image": "a.png", "caption": answer, "captions": [answer], "model": "tiny", **question}
    out = run(capsys, "match", "a.png", "a dog", "--model", tiny.path)[1]
    line = "score {0.score:6.2f}  probability {0.probability:.3f}  cosine {0.cosine:6.3f}".format
    assert out == line(match) + "\n"
    texts = ["a dog", "a red cat", "the sea"]
    ranked = sorted(zip(model.match("a.png", texts), texts, strict=True), key=lambda row: -row[0].score)
    out = run(capsys, "match", "a.png", *texts, "--model", tiny.path)[1]
    assert out.splitlines() == [f"{line(match)}  {text}" for match, text in ranked]
    out = run(capsys, "match", "a.png", *texts, "--model", tiny.path, "--json")[1]
    assert [json.loads(line)["text"] for line in out.splitlines()] == [text for _, text in ranked]
    out = json.loads(run(capsys, "match", "a.png", "a dog", "--model", tiny.path, "--json")[1])
    assert [out[name] for name in ("probability", "cosine", "score")] == pytest.approx(
        [match.probability, match.cosine, match.score]
    )


def test_decoding_flags_set_options(tiny, folder, capsys):
    model = blip2rt.load(tiny.path)
    numbers = {"temperature": 2, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 4, "max_time": 60}
    numbers |= {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    flags = [word for name, value in numbers.items() for word in ("--" + name.replace("_", "-"), value)]
    flags += ["--sample", "--bad-word=dog", "--bad-word=cat", "--forced-prefix=a man", "--stop-string=water"]
    texts = {"bad_words": ["dog", "cat"], "forced_prefix": "a man", "stop_strings": ["water"]}
    want = model.caption("a.png", do_sample=True, **numbers, **texts)
    assert run(capsys, "caption", "a.png", "--model", tiny.path, *flags) == (0, f"{want}\n", "")
    assert want.startswith("a man") and "dog" not in want


def test_info_describes_a_bundle(tiny, capsys):
    code, out, _ = run(capsys, "info", tiny.path)
    assert code == 0
    for word in ("tiny", "vision", "fp32", "pixels (B,3,8,12) -> vision_features (B,6,8)", "CC0-1.0", "max_new_tokens"):
        assert word in out
    assert "nano" in run(capsys, "info")[1], "the default"
    data = json.loads(run(capsys, "info", tiny.path, "--json")[1])
    assert data["name"] == "tiny" and data["size"] == read(tiny.path).size


def test_verify_finds_damage(tiny, tmp_path, capsys):
    assert run(capsys, "verify")[1].startswith(f"{embedded()}: "), "the default"
    path = shutil.copytree(tiny.path, tmp_path / "copy")
    code, out, _ = run(capsys, "verify", path)
    assert code == 0 and "9 files" in out
    graph = path / "llm.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    graph.write_bytes(data)
    assert "llm.onnx" in rejected(capsys, "verify", path)
    graph.write_bytes(data[:-1])
    assert "not whole" in rejected(capsys, "verify", path)
    graph.unlink()
    (path / "embed.onnx").unlink()
    assert "embed.onnx is missing; llm.onnx is missing" in rejected(capsys, "caption", "x.png", "--model", path)


MISTAKES = """
    captions; caption; ask a.png; caption a.png --beams x; caption a.png --no; verify --model=; match a.png; info /none
    caption none.png; caption *.gif; caption a.png --max-time 1e-9; ask a.png who? --max-time 1e-9
    caption a.png --stream --max-time 1e-9; caption a.png b.png --stream; caption a.png --top-p 2 --sample
    caption a.png --model ''; info ''; ask a.png ' '; caption a.png --stop-string ''; caption a.png --length-penalty inf
    caption a.png --seed 1 => --seed is 1|set --sample; caption a.png --beams 0 => --beams is 0
    caption a.png --threads 0 => --threads is 0; caption a.png --bad-word '' => --bad-word is ['']
    caption a.png --max-time 0 => --max-time is 0|above 0
    caption a.png --num-captions 5 --beams 2 => --num-captions is 5|--beams, 2|set --sample
"""


@pytest.mark.parametrize("line", [line.strip() for line in MISTAKES.strip().replace("\n", ";").split(";")])
def test_mistakes_are_one_line_that_names_flags(tiny, folder, capsys, line):
    line, _, words = line.partition(" => ")
    arguments = shlex.split(line)
    model = ["--model", tiny.path] if "--model" not in arguments and arguments[0] in ("caption", "ask", "match") else []
    error = rejected(capsys, *arguments, *model)
    assert all(word in error for word in words.split("|")), error


def test_texts_cut_by_max_time_are_counted(tiny, folder, capsys, monkeypatch):
    monkeypatch.setattr("blip2rt.gallery.captions.finish_reason", lambda text, settings: "time")
    assert main(["caption", "a.png", "b.png", "--max-time", "600", "--model", str(tiny.path)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err == "blip2rt: 2 captioned, 2 cut by --max-time\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
def test_closed_streams_raise_no_traceback(tiny, folder):
    for more, code, words in (("a.png >&-", 0, ""), ("- <&-", 2, "- is standard input, which is closed")):
        command = f"{sys.executable} -m blip2rt caption --model {tiny.path} {more}"
        done = subprocess.run(command, check=False, shell=True, stderr=subprocess.PIPE, text=True)
        assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == (code > 0), done


def test_missing_embedded_model_is_reported(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("blip2rt.bundle.reader.CHECKOUT_NANO", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for command in (("caption", "x.png"), ("info",)):
        said = rejected(capsys, *command)
        assert "nano, the embedded model, is not installed: pip install " in said and said.count("\n") == 1


def test_installed_nano_is_found_without_an_import(monkeypatch, tmp_path):
    monkeypatch.setattr("blip2rt.bundle.reader.CHECKOUT_NANO", tmp_path)
    folder = tmp_path / "blip2rt_nano" / "nano"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError")
    (folder / MANIFEST).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert embedded() == folder


def test_a_process_captions_files_of_any_name(tiny, folder):
    name = "naïve 图 \udcff.png" if sys.platform == "linux" else "naïve 图.png"
    (folder / "a.png").rename(folder / name)
    process = start("caption", os.fsencode(name).decode("utf-8", "surrogateescape"), "b.png", "--model", tiny.path)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and err == "" and len(out.splitlines()) == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and pipes")
def test_ctrl_c_and_a_broken_pipe_are_silent(tiny, folder):
    # Background jobs of a shell ignore SIGINT, and their children inherit that.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("caption", "-", "--model", tiny.path, stdin=subprocess.PIPE, **default)
    assert process.stdin is not None
    process.stdin.write("x" * 2**18)  # more than a pipe holds: now it reads the image
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (130, "", "blip2rt: interrupted\n")

    process = start("caption", *["a.png"] * 50, "--model", tiny.path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(TIMEOUT) == 0
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny, folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "blip2rt", "caption", "a.png", "--model", str(tiny.path)]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "blip2rt: error: standard output: No space left on device\n")


def test_source_folder_uses_the_installed_core(tmp_path):
    """In a checkout next to an installation, only the installed package has the native module."""
    import blip2rt._native as native

    shutil.copytree(
        ROOT / "blip2rt", tmp_path / "source" / "blip2rt", ignore=shutil.ignore_patterns("models", "_native*")
    )
    (tmp_path / "site" / "blip2rt").mkdir(parents=True)
    code = (
        "import sys; sys.path = [p for p in sys.path if not p.endswith('site-packages')]\n"
        f"sys.path.append({str(tmp_path / 'site')!r})\n"
        "from blip2rt.native import native\n"
        "try: print(native.__file__)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}

    def output() -> str:
        return subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path / "source", env=env, text=True)

    assert output().startswith("BackendError blip2rt's native core is not built for this Python: pip install blip2rt")
    shutil.copy(native.__file__, tmp_path / "site" / "blip2rt")
    assert output().strip() == str(tmp_path / "site" / "blip2rt" / Path(native.__file__).name)


def test_only_native_py_imports_the_core():
    """Imported by name, the core would only be looked for in the source folder."""
    direct = ("from .._native", "from ._native", "from . import _native", "import blip2rt._native")
    found = [p.name for p in (ROOT / "blip2rt").rglob("*.py") if any(each in p.read_text("utf-8") for each in direct)]
    assert found == ["native.py"], "which imports its types for mypy"
