"""An index: search, updates, damage, interrupted writers."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import blip2rt
from blip2rt.bundle.fingerprint import fingerprint
from blip2rt.errors import GalleryError, OptionError
from blip2rt.gallery import Index, index
from blip2rt.gallery.catalog import Catalog
from blip2rt.gallery.vectors import Vectors
from tests.gallery.helpers import TIMEOUT, make_unreadable
from tests.seeds import new_seed
from tests.tiny.bundle import changed
from tests.tiny.image_folders import GOOD, fill, picture, start

pytestmark = pytest.mark.long(12, "indexes of whole folders, killed and resumed")


def contents(at: Path) -> dict[str, tuple[int, bytes]]:
    """Each picture of an index, with its size and its vectors."""
    about = json.loads((at / "index.json").read_text())
    catalog, vectors = Catalog(at / "files.db", False), Vectors(at / "vectors.i8", about["queries"], about["size"])
    found = {file.path: (file.size, vectors.read([file.row]).tobytes()) for file in catalog.all()}
    catalog.close()
    return found


def test_search_returns_the_nearest(model, album):
    names = [*GOOD, "sub/inner.png"]
    with Index.create("x", album, model) as opened:
        counts = opened.add()
        assert (counts.processed, counts.failed, len(opened)) == (10, 2, 10)
        embeds = model.embed_image([album / name for name in names])  # (10, Q, E)
        scores = (embeds @ model.embed_text("a dog runs")).max(axis=1)
        hits = opened.search("a dog runs", 4)
        score_by_name = dict(zip(names, scores, strict=True))
        assert [hit.score for hit in hits] == pytest.approx([score_by_name[hit.name] for hit in hits], abs=0.02)
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:4], abs=0.02)
        assert hits[0].path.samefile(album / hits[0].name)
        same = {hit.name: hit.score for hit in opened.search(album / "b.jpg", 10, image=True)}
        assert same["b.jpg"] == pytest.approx(1, abs=0.02) and same["b.jpg"] >= max(same.values()) - 0.02
        reranked = opened.search("a dog runs", 3, rerank=10)
        matches = model.match([album / name for name in names], "a dog runs")
        best = sorted(zip(names, matches, strict=True), key=lambda pair: -pair[1].score)[:3]
        assert [hit.name for hit in reranked] == [name for name, _ in best]
        assert [hit.probability for hit in reranked] == pytest.approx(
            [match.probability for _, match in best], abs=1e-4
        )
        query = model.embed_text("A dog") - 0.8 * model.embed_text("red cat")
        fewer = opened.search("A dog without any red cat.", 10)
        assert [hit.score for hit in fewer] == pytest.approx(sorted((embeds @ query).max(axis=1))[::-1], abs=0.04)
        with pytest.raises(OptionError, match="rerank cannot exclude 'people'"):
            opened.search("a beach with no people", rerank=4)


def test_cancelled_reranking_leaves_out_the_rest(model, album):
    with Index.create("x", album, model) as opened:
        opened.add()
        answers = iter([False, True])  # before the first 8 pictures, and before the rest
        reranked = opened.search("a dog runs", 10, rerank=9, cancelled=lambda: next(answers))
        assert [hit.probability is not None for hit in reranked] == [True] * 8 + [False]
        assert reranked[-1] == opened.search("a dog runs", 10)[-1]


def test_update_follows_the_folder(model, album):
    def names() -> set[str]:
        with Index.open("x", model) as opened:
            return {file.path for file in opened.catalog.all()}

    with Index.create("x", album, model) as opened:
        opened.add()
        assert opened.add().processed == 0
        rng = np.random.default_rng(new_seed())
        picture(rng).save(album / "a.png")
        (album / "c.webp").rename(album / "sub" / "moved.webp")
        (album / "d.gif").unlink()
        shutil.copy(album / "e.bmp", album / "sub" / "copy.bmp")
        os.utime(album / "b.jpg", (1, 1))
        picture(rng).save(album / "new.png")
        before = dict(contents(Path("x")))
        counts = opened.add()
        assert (counts.processed, counts.removed) == (3, 1), "a copy is indexed without a graph"
        after = contents(Path("x"))
        assert after["sub/moved.webp"] == before["c.webp"] and after["sub/copy.bmp"][1] == before["e.bmp"][1]
        assert after["a.png"] != before["a.png"] and "new.png" in after and "d.gif" not in after
        got = opened.vectors.read([opened.catalog.by_path("a.png").row])[0]
        assert np.allclose(got, model.embed_image(album / "a.png"), atol=0.02)
        files = {path.relative_to(album).as_posix() for path in album.rglob("*.*") if path.suffix != ".md"}
        assert names() == files - {"bad.jpg", "cut.png", ".hidden.png"} | {"no ending"}


def test_unreadable_folder_keeps_its_pictures(model, album, monkeypatch):
    with Index.create("x", album, model) as opened:
        opened.add()
        make_unreadable(monkeypatch, "sub")
        counts = opened.add()
        assert counts.removed == 0 and counts.failed == 3 and "sub/inner.png" in contents(Path("x"))
        monkeypatch.undo()


def test_damaged_picture_leaves_the_index(model, album, run):
    with Index.create("x", album, model) as opened:
        opened.add()
        (album / "a.png").write_bytes((album / "a.png").read_bytes()[:100])
        (album / "b.jpg").write_bytes(b"words")
    code, _, err = run("index", "album", "--out", "x", "--errors", "e.jsonl")
    failed = {json.loads(line)["image"] for line in Path("e.jsonl").read_text().splitlines()}
    assert code == 1 and failed == {f"album/{name}" for name in ("a.png", "b.jpg", "bad.jpg", "cut.png")}, err
    with Index.open("x", model) as opened:
        assert {hit.name for hit in opened.search("a dog", 20)} == {*GOOD, "sub/inner.png"} - {"a.png", "b.jpg"}


def test_index_and_folder_can_be_moved_together(model, album, tmp_path):
    with Index.create("x", album, model) as opened:
        opened.add()
    (tmp_path / "elsewhere").mkdir()
    for name in ("x", "album"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    with Index.open(tmp_path / "elsewhere" / "x", model) as opened:
        assert all(hit.path.is_file() for hit in opened.search("a dog", 10))
    with Index.create(tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "album", model) as opened:
        assert opened.add().processed == 0


def test_moved_folder_is_reported_and_can_be_reset(album, run):
    run("index", "album", "--out", "x")
    album.rename("elsewhere")
    code, _, err = run("search", "x", "a dog")
    assert code == 1 and err.count("\n") == 1, err
    assert "album, the folder of x, does not exist" in err and "`blip2rt index DIR --out x`" in err
    _, _, err = run("index", "elsewhere", "--out", "x")
    assert "0 indexed, 10 already done, 2 failed" in err
    code, out, err = run("search", "x", "a dog")
    assert (code, err) == (0, "") and all(Path(line.split("\t")[1]).is_file() for line in out.splitlines())


def test_damaged_index_is_one_error_line_or_repaired(album, run, monkeypatch):
    monkeypatch.setattr(index, "MAX_EXACT", 4)  # so that there is a shortlist
    run("index", "album", "--out", "good")
    found = run("search", "good", "a dog", "-n", 10)[1]
    rng = random.Random(new_seed())
    for name in ("files.db", "vectors.i8", "shortlist.usearch"):
        data = Path("good", name).read_bytes()
        others = [rng.randbytes(len(data))]
        if name == "vectors.i8":  # a bit of a number, and vectors in each other's places
            at, place = rng.randrange(len(data)), len(data) // 10
            others.append(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
            others.append(data[place : 2 * place] + data[:place] + data[2 * place :])
        for damage in (b"", data[: len(data) // 2], None, *others):
            shutil.rmtree("x", ignore_errors=True)
            shutil.copytree("good", "x")
            Path("x", name).unlink() if damage is None else Path("x", name).write_bytes(damage)
            for command in (["search", "x", "a dog", "-n", 10], ["index", "album", "--out", "x"]):
                code, out, err = run(*command)
                if code == 2:
                    assert out == "" and err.splitlines()[-1].startswith("blip2rt: error: "), (name, command, err)
                    words = [f"x/{name} is damaged", "remove x and create it again with `blip2rt index`"]
                    words = ["x/files.db is empty"] if (name, damage) == ("files.db", b"") else words
                    assert all(word in err for word in words), err
                else:
                    unread = name == "vectors.i8" and len(damage or b"") == len(data)  # of a folder as it was
                    assert name == "shortlist.usearch" or (command[0] == "index" and (unread or name == "files.db"))
            if code == 1 and name != "vectors.i8":  # `index` has repaired it
                assert run("search", "x", "a dog", "-n", 10)[1] == found, (name, err)


def test_index_accepts_a_model_with_the_same_embeddings(tiny, model, album, tmp_path):
    def other(name: str, **sections: dict) -> blip2rt.Model:
        return blip2rt.load(changed(Path(shutil.copytree(tiny.path, tmp_path / name)), **sections))

    with Index.create("x", album, model) as opened:
        opened.add()
        found = opened.search("a dog")
    same = other("same", retrieval={"itm_weight": 0.5}, prompts={"caption": "a photo of"})
    assert [hit.name for hit in Index.open("x", same).search("a dog")] == [hit.name for hit in found]
    for name, fields in (("image", {"mean": [0.1, 0.2, 0.3]}), ("retrieval", {"max_text_length": 9})):
        with pytest.raises(GalleryError, match="made by the model 'tiny'.* or another version"):
            Index.open("x", other(name, **{name: fields}))
    data = other("data").bundle
    graph = data.manifest.components["vision"].graph
    for name in data.manifest.files:
        text = (data.path / "blip2rt.json").read_text()
        hashed = data.manifest.files[name].sha256
        (data.path / "blip2rt.json").write_text(text.replace(hashed, hashed[::-1]))
        used = fingerprint(blip2rt.load(data.path).bundle) != fingerprint(data)
        assert used == (name in (graph, "image_embed.onnx", "text_embed.onnx", "qformer_tokenizer.json")), name
        (data.path / "blip2rt.json").write_text(text)


@pytest.mark.parametrize("left", ["x/", "x/.index.json.part"])
def test_writer_killed_at_once_can_be_restarted(album, run, left):
    """Before index.json exists."""
    Path(left).parent.mkdir(parents=True, exist_ok=True)
    Path(left).mkdir() if left.endswith("/") else Path(left).write_text("{")
    code, _, said = run("index", "album", "--out", "x")
    assert code == 1 and "indexed" in said, said  # the album has bad pictures
    assert not list(Path("x").rglob("*.part"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_writer_resumes_to_the_same_index(tiny, tmp_path):
    rng, seed = random.Random(new_seed()), new_seed()
    for place in ("whole", "killed"):
        fill(tmp_path / place / "album", seed, 60)
    command = ["index", "album", "--out", "x", "--model", tiny.path, "--batch-size", 4]
    start(*command, cwd=tmp_path / "whole").communicate(timeout=TIMEOUT)
    for _ in range(5):
        process = start(*command, cwd=tmp_path / "killed")
        time.sleep(rng.uniform(0.3, 0.9))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=TIMEOUT)
    assert start(*command, cwd=tmp_path / "killed").wait(TIMEOUT) == 1
    assert contents(tmp_path / "killed" / "x") == contents(tmp_path / "whole" / "x")
    assert (tmp_path / "killed/x/vectors.i8").read_bytes() == (tmp_path / "whole/x/vectors.i8").read_bytes()
