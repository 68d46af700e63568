"""`blip2rt stdio`: requests and results as JSON lines, and `--stream --json`."""

import base64
import io
import json
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.cli import main
from blip2rt.cli.stdio import MAX_LINE_BYTES, Session, read_lines
from tests.tiny.image_folders import start

TIMEOUT = 900


@pytest.fixture
def model(tiny) -> Iterator[blip2rt.Model]:
    with blip2rt.load(tiny.path, batching=True) as model:
        yield model


@pytest.fixture
def picture(tmp_path, photo, monkeypatch) -> str:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return "a.png"


def run(model, *requests: Any, parallel: int = 3) -> dict[Any, list[dict[str, Any]]]:
    """The lines of each request, by its id."""
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in requests]
    found: dict[Any, list[dict[str, Any]]] = {}
    Session(model, lambda line: found.setdefault(line.pop("id"), []).append(line), parallel).run(lines)
    return found


def test_results_are_those_of_the_model(model, picture):
    sent = "data:;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
    beams, texts = {"num_beams": 3, "num_captions": 2}, ["a dog", "the red sea"]
    found = run(
        model,
        {"id": 1, "task": "caption", "image": picture, "prompt": "a red", **beams},
        {"id": 2, "task": "ask", "image": sent, "question": "what is red?"},
        {"id": 3, "task": "ask", "image": picture, "question": "what is red?", "stream": True},
        {"id": 4, "task": "match", "image": picture, "texts": texts},
        {"id": "text", "task": "embed", "texts": texts},
        {"id": "image", "task": "embed", "image": picture},
        b"  \n",
    )
    [row] = found[1]
    captions = model.caption(picture, prompt="a red", **beams)
    assert row["captions"] == captions and row["caption"] == captions[0] and row["image"] == picture
    assert row["score"] == pytest.approx(captions[0].score, abs=1e-4) and row["truncated"] == captions[0].truncated
    [row] = found[2]
    answer = model.ask(picture, "what is red?")
    assert (row["answer"], row["question"], row["image"]) == (answer, "what is red?", None) and row["ms"] > 0
    *pieces, row = found[3]
    assert row["answer"] == "".join(line["piece"] for line in pieces) == model.ask(picture, "what is red?")
    [row] = found[4]
    want = sorted(zip(model.match(picture, texts), texts, strict=True), key=lambda pair: -pair[0].score)
    assert [each["text"] for each in row["matches"]] == [text for _, text in want]
    assert [each["score"] for each in row["matches"]] == pytest.approx([match.score for match, _ in want])
    np.testing.assert_allclose(found["text"][0]["embeddings"], model.embed_text(texts), atol=1e-6)
    np.testing.assert_allclose(found["image"][0]["embeddings"], model.embed_image(picture), atol=1e-6)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"words", "line 1 is not JSON"),
        (b"[1]", "line 1 is not an object"),
        (b"\xff", "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 is not"),
        ({"task": "caption"}, "the request has no id"),
        ({"id": True, "task": "caption"}, "the request has no id"),
        (b'{"id": NaN, "task": "caption"}', "line 1 is not JSON (NaN is not a JSON number)"),
        (b'{"id": [1], "task": "caption"}', "the request has no id"),
        (b'{"id": 1e999, "task": "caption"}', "the request has no id"),
        (b'{"id": 1, "image": "' + b"A" * MAX_LINE_BYTES + b'"}', "line 1 has more than 20 MiB: give the path"),
        ({"id": 1}, "task is None: choose from caption, ask, match, sees, tag, fill, embed, cancel"),
        ({"id": 1, "task": "match", "texts": "a dog"}, "image is None: give a path"),
        ({"id": 1, "task": "match", "image": "a.png"}, "texts is missing: give a text or a list"),
        ({"id": 1, "task": "sees", "image": "a.png", "texts": []}, "texts is missing: give a text or a list"),
        ({"id": 1, "task": "fill", "image": "a.png", "schema": 3}, "$: its schema is 3"),
        ({"id": 1, "task": "fill", "image": "a.png", "schema": {}, "question": 3}, "question is 3: give a text"),
        ({"id": 1, "task": "tag", "image": "a.png", "top": "many"}, "cannot label images"),
        ({"id": 1, "task": "caption"}, "image is None: give a path, or data:;base64"),
        ({"id": 1, "task": "caption", "image": "none.png"}, "no such file: 'none.png'"),
        ({"id": 1, "task": "caption", "image": "data:;base64,?"}, "not valid base64"),
        ({"id": 1, "task": "caption", "image": "a.png", "question": "who?"}, "give one to ask, and none to caption"),
        ({"id": 1, "task": "ask", "image": "a.png"}, "give one to ask"),
        ({"id": 1, "task": "caption", "image": "a.png", "beams": 2}, "unknown option beams: choose from num_captions"),
        ({"id": 1, "task": "caption", "image": "a.png", "max_time": 1e-9}, "passed before the first word"),
        ({"id": 1, "task": "match", "image": "a.png", "texts": [3]}, "give a str or a list of str"),
        ({"id": 1, "task": "match", "image": "a.png", "text": "x"}, "unknown field text: choose from id, task, image"),
        ({"id": 1, "task": "embed"}, "give one of them"),
    ],
)
def test_an_error_is_one_line_with_the_id(model, picture, request_, said):
    name = request_.get("id") if isinstance(request_, dict) and request_.get("id") is not True else None
    found = run(model, request_, {"id": "next", "task": "embed", "texts": "a dog"})
    [line] = found.pop(name)
    assert said in line["error"] and "\n" not in line["error"] and "embeddings" in found.pop("next")[0] and not found


def test_a_line_of_any_length_takes_bounded_memory(tmp_path):
    with (tmp_path / "long").open("wb") as file:
        file.truncate(8 * MAX_LINE_BYTES)
    tracemalloc.start()
    with (tmp_path / "long").open("rb") as file:
        lines = [len(line) for line in read_lines(file)]
    assert lines == [MAX_LINE_BYTES + 1] and tracemalloc.get_traced_memory()[1] < 4 * MAX_LINE_BYTES
    tracemalloc.stop()
    assert [*read_lines(io.BytesIO(b"a" * (MAX_LINE_BYTES + 9) + b"\nb\n" + b"c" * MAX_LINE_BYTES))][1:] == [
        b"b\n",
        b"c" * MAX_LINE_BYTES,
    ]


@pytest.mark.long(4, "nano in a process")
def test_nano_rates_labels_judges_and_fills():
    image = "docs/photo.jpg"
    with blip2rt.load(batching=True) as nano:
        found = run(
            nano,
            {"id": 1, "task": "caption", "image": image},
            {"id": 2, "task": "tag", "image": image, "top": 2},
            {"id": 3, "task": "sees", "image": image, "texts": ["a cup", "an elephant"]},
            {"id": 4, "task": "fill", "image": image, "schema": {"enum": ["cup", "dog"]}, "question": "what is this?"},
            {"id": 5, "task": "tag", "image": image, "top": "many"},
            {"id": 6, "task": "sees", "image": image, "texts": "a cup", "threshold": "high"},
        )
        assert found[1][0]["confidence"] == pytest.approx(nano.caption(image, scores=True).confidence, abs=1e-4)
        tags = nano.tag(image, top=2)
        assert found[2][0]["tags"] == tags and found[2][0]["image"] == image and len(found[2][0]["probabilities"]) == 2
        assert found[3] == [{"sees": [True, False], "image": image}] and found[4] == [{"value": "cup", "image": image}]
        assert "top is 'many'" in found[5][0]["error"] and "threshold is 'high'" in found[6][0]["error"]


CAPTION = {"task": "caption", "image": "a.png", "min_new_tokens": 30, "max_new_tokens": 30}


def test_running_and_waiting_requests_can_be_cancelled(model, picture, monkeypatch):
    begin, real = threading.Event(), model.submit
    monkeypatch.setattr(model, "submit", lambda request: begin.wait(TIMEOUT) and real(request))

    def requests() -> Iterator[bytes]:
        for name in (1, 2, 1):
            yield json.dumps({"id": name, **CAPTION}).encode()
        for name in (1, 2, "none"):
            yield json.dumps({"id": name, "task": "cancel"}).encode()
        begin.set()

    lines: list[dict[str, Any]] = []
    Session(model, lines.append, 1).run(requests())
    assert lines.pop(0) == {"id": 1, "error": "id is 1, whose request still runs: give another one"}
    assert lines == [{"id": 1, "error": "cancelled"}, {"id": 2, "error": "cancelled"}]


def test_cancelling_a_stream_ends_its_pieces(model, picture):
    begun, cancelled = threading.Event(), threading.Event()
    lines: list[dict[str, Any]] = []

    def write(line: dict[str, Any]) -> None:
        lines.append(line)
        begun.set()
        assert cancelled.wait(TIMEOUT)

    def requests() -> Iterator[bytes]:
        yield json.dumps({"id": 1, "stream": True, **CAPTION}).encode()
        assert begun.wait(TIMEOUT)
        yield json.dumps({"id": 1, "task": "cancel"}).encode()
        cancelled.set()

    Session(model, write, 1).run(requests())
    assert [*lines[0]] == ["id", "piece"] and lines[1:] == [{"id": 1, "error": "cancelled"}]


def test_a_process_ends_with_its_input_or_its_reader(tiny, picture):
    request = json.dumps({"id": 1, "task": "caption", "image": "naïve.png"}, ensure_ascii=False) + "\n"
    process = start("stdio", "--model", tiny.path, stdin=subprocess.PIPE)
    out, err = process.communicate(request, timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "") and json.loads(out)["error"] == "no such file: 'naïve.png'"
    process = start("stdio", "--model", tiny.path, stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    process.stdout.close()
    process.stdin.write(request.replace("naïve", "a"))
    process.stdin.close()
    assert process.wait(TIMEOUT) == 0 and process.stderr is not None and process.stderr.read() == ""
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("stdio", "--model", tiny.path, stdin=subprocess.PIPE, **default)
    process.stdin.write(request)
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT)[1] == "blip2rt: interrupted\n" and process.returncode == 130


def test_stream_with_json_prints_pieces_and_the_row(tiny, picture, capsys):
    words = [picture, "--model", str(tiny.path), "--json"]
    assert main(["caption", *words]) == 0
    want = json.loads(capsys.readouterr().out)
    assert main(["caption", *words, "--stream"]) == 0
    *pieces, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert "".join(piece["piece"] for piece in pieces) == row["caption"]
    assert row["caption"] == want["caption"] and row.keys() == want.keys()
    assert main(["ask", "none.png", "who?", *words[1:], "--stream"]) == 2
    assert json.loads(capsys.readouterr().out) == {"image": "none.png", "error": "no such file: 'none.png'"}
