"""An index: search, updates, damage, interrupted writers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blip2rt
from blip2rt.bundle.checksum import EMPTY, KEY, insert_checksum
from blip2rt.errors import GalleryError
from blip2rt.gallery import Index, index, index_manifest, one_vector
from blip2rt.gallery.catalog import Catalog, File
from blip2rt.gallery.near_duplicates import find_near_duplicates
from blip2rt.gallery.vectors import Shortlist, Vectors
from tests.seeds import new_seed
from tests.tiny.image_folders import GOOD, fill, picture, start, tree

pytestmark = pytest.mark.long(12)

pytest.importorskip("blip2rt._native")
TIMEOUT = 900


@pytest.fixture
def model(tiny):
    return blip2rt.load(tiny.path)


def contents(at: Path) -> dict[str, tuple[int, bytes]]:
    """Each picture of an index, with its size and its vectors."""
    about = json.loads((at / "index.json").read_text())
    catalog, vectors = Catalog(at / "files.db", False), Vectors(at / "vectors.i8", about["queries"], about["size"])
    found = {file.path: (file.size, vectors.read([file.row]).tobytes()) for file in catalog.all()}
    catalog.close()
    return found


def test_search_returns_the_nearest(model, album):
    names = [*GOOD, "sub/inner.png"]
    with Index.create("x", album, model) as made:
        counts = made.add()
        assert (counts.processed, counts.failed, len(made)) == (10, 2, 10)
        embeds = model.embed_image([album / name for name in names])  # (10, Q, E)
        scores = (embeds @ model.embed_text("a dog runs")).max(axis=1)
        hits = made.search("a dog runs", 4)
        told = dict(zip(names, scores, strict=True))
        assert [hit.score for hit in hits] == pytest.approx([told[hit.name] for hit in hits], abs=0.02)
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:4], abs=0.02)
        assert hits[0].path.samefile(album / hits[0].name)
        same = {hit.name: hit.score for hit in made.search(album / "b.jpg", 10, image=True)}
        assert same["b.jpg"] == pytest.approx(1, abs=0.02) and same["b.jpg"] >= max(same.values()) - 0.02
        judged = made.search("a dog runs", 3, rerank=10)
        wanted = model.match([album / name for name in names], "a dog runs")
        best = sorted(zip(names, wanted, strict=True), key=lambda pair: -pair[1].score)[:3]
        assert [hit.name for hit in judged] == [name for name, _ in best]
        assert [hit.probability for hit in judged] == pytest.approx([match.probability for _, match in best], abs=1e-4)


def test_cancelled_reranking_leaves_out_the_rest(model, album):
    with Index.create("x", album, model) as made:
        made.add()
        answers = iter([False, True])  # before the first 8 pictures, and before the rest
        judged = made.search("a dog runs", 10, rerank=9, cancelled=lambda: next(answers))
        assert [hit.probability is not None for hit in judged] == [True] * 8 + [False]
        assert judged[-1] == made.search("a dog runs", 10)[-1]


def test_update_follows_the_folder(model, album):
    def names() -> set[str]:
        with Index.open("x", model) as opened:
            return {file.path for file in opened.files()}

    with Index.create("x", album, model) as made:
        made.add()
        assert made.add().processed == 0
        rng = np.random.default_rng(new_seed())
        picture(rng).save(album / "a.png")
        (album / "c.webp").rename(album / "sub" / "moved.webp")
        (album / "d.gif").unlink()
        shutil.copy(album / "e.bmp", album / "sub" / "copy.bmp")
        os.utime(album / "b.jpg", (1, 1))
        picture(rng).save(album / "new.png")
        before = dict(contents(Path("x")))
        counts = made.add()
        assert (counts.processed, counts.removed) == (2, 1), "moved, touched and copied pictures cost no graph"
        after = contents(Path("x"))
        assert after["sub/moved.webp"] == before["c.webp"] and after["sub/copy.bmp"][1] == before["e.bmp"][1]
        assert after["a.png"] != before["a.png"] and "new.png" in after and "d.gif" not in after
        got = made.vectors.read([made.catalog.by_path("a.png").row])[0]
        assert np.allclose(got, model.embed_image(album / "a.png"), atol=0.02)
        files = {path.relative_to(album).as_posix() for path in album.rglob("*.*") if path.suffix != ".md"}
        assert names() == files - {"bad.jpg", "cut.png", ".hidden.png"} | {"no ending"}


def test_unreadable_folder_keeps_its_pictures(model, album, monkeypatch):
    with Index.create("x", album, model) as made:
        made.add()
        listdir = os.listdir

        def unreadable(path):
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied")
            return listdir(path)

        monkeypatch.setattr(os, "listdir", unreadable)
        counts = made.add()
        assert counts.removed == 0 and counts.failed == 3 and "sub/inner.png" in contents(Path("x"))
        monkeypatch.undo()


def test_damaged_picture_leaves_the_index(model, tiny, album, run):
    with Index.create("x", album, model) as made:
        made.add()
        (album / "a.png").write_bytes((album / "a.png").read_bytes()[:100])
        (album / "b.jpg").write_bytes(b"words")
    code, _, err = run("index", "album", "--out", "x", "--errors", "e.jsonl", "--model", tiny.path)
    failed = {json.loads(line)["image"] for line in Path("e.jsonl").read_text().splitlines()}
    assert code == 1 and failed == {f"album/{name}" for name in ("a.png", "b.jpg", "bad.jpg", "cut.png")}, err
    with Index.open("x", model) as opened:
        assert {hit.name for hit in opened.search("a dog", 20)} == {*GOOD, "sub/inner.png"} - {"a.png", "b.jpg"}


def test_index_and_folder_can_be_moved_together(model, album, tmp_path):
    with Index.create("x", album, model) as made:
        made.add()
    (tmp_path / "elsewhere").mkdir()
    for name in ("x", "album"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    with Index.open(tmp_path / "elsewhere" / "x", model) as opened:
        assert all(hit.path.is_file() for hit in opened.search("a dog", 10))
    with Index.create(tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "album", model) as made:
        assert made.add().processed == 0


def test_moved_folder_is_reported_and_can_be_reset(tiny, album, run):
    run("index", "album", "--out", "x", "--model", tiny.path)
    album.rename("elsewhere")
    for command in (["search", "x", "a dog"], ["duplicates", "x"]):
        code, _, err = run(*command, "--model", tiny.path)
        assert code == 1 and err.count("\n") == 1, err
        assert "album, the folder of x, does not exist" in err and "`blip2rt index DIR --out x`" in err
    _, _, err = run("index", "elsewhere", "--out", "x", "--model", tiny.path)
    assert "0 indexed, 10 already done, 2 failed" in err
    code, out, err = run("search", "x", "a dog", "--model", tiny.path)
    assert (code, err) == (0, "") and all(Path(line.split("\t")[1]).is_file() for line in out.splitlines())


def test_shortlist_search_equals_exact_search(model, album, monkeypatch):
    pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", 4)
    rng = np.random.default_rng(new_seed())
    with Index.create("x", album, model) as made:
        made.add()
        assert (Path("x") / "shortlist.usearch").exists() and not made.catalog.not_in_shortlist()
        assert made.search("a dog", 5) == made.search("a dog", 5, exact=True)
        (album / "a.png").unlink()
        picture(rng).save(album / "z.png")
        made.add()
        assert made.search("a dog", 10) == made.search("a dog", 10, exact=True)
        picture(rng).save(album / "zz.png")
        monkeypatch.setattr(Index, "refresh", lambda self: None)  # killed before the shortlist was brought up to date
        made.add()
    with Index.open("x", model) as opened:
        assert "zz.png" in {hit.name for hit in opened.search("a dog", 11)}


def test_shortlist_of_5000_vectors_keeps_the_nearest(tmp_path):
    pytest.importorskip("usearch")
    rng = np.random.default_rng(new_seed())
    vectors = rng.normal(size=(5000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = Shortlist(tmp_path / "s", 64, view=False)
    made.add(range(5000), vectors)
    made.save()
    seen = Shortlist(tmp_path / "s", 64, view=True)
    kept = [len(set(seen.nearest(v, 200).tolist()) & set(np.argsort(-vectors @ v)[:10].tolist())) for v in vectors[:50]]
    assert np.mean(kept) >= 9


def test_shortlist_loses_less_than_a_point_of_recall(model, album, monkeypatch):
    """R@10 of 800 vectors near one of 4,000 pictures, with a shortlist and without."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(index, "MAX_EXACT", 1000)
    rng = np.random.default_rng(new_seed())
    Index.create("x", album, model).close()
    about, (queries, size) = json.loads(Path("x/index.json").read_text()), (8, 64)
    Path("x/index.json").write_text(json.dumps({**about, "queries": queries, "size": size}))
    with Index.open("x", model, write=True) as made:
        topics = rng.normal(size=(60, 1, size))  # pictures lie in heaps, and so do the vectors of one
        embeds = topics[rng.integers(60, size=4000)] + 0.8 * rng.normal(size=(4000, 1, size))
        embeds = embeds + 0.5 * rng.normal(size=(4000, queries, size))
        embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
        made.vectors.write(range(4000), embeds.astype(np.float32))
        made.catalog.put(File(row, f"{row}.png", 1, 1, str(row).encode()) for row in range(4000))
        made.refresh()
        wanted = rng.choice(4000, 800, replace=False)
        asked = embeds[wanted, rng.integers(queries, size=800)] + rng.normal(size=(800, size)) * 2 / size**0.5
        asked = (asked / np.linalg.norm(asked, axis=-1, keepdims=True)).astype(np.float32)
        found = [
            np.mean([place in made.nearest(vector, 10, exact)[0] for place, vector in zip(wanted, asked, strict=True)])
            for exact in (False, True)
        ]
    assert 0.2 < found[1] < 0.99 and found[0] > found[1] - 0.01, found


def test_stored_vectors_keep_their_cosines(tmp_path):
    rng = np.random.default_rng(new_seed())
    embeds = rng.normal(size=(7, 3, 256)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    vectors = Vectors(tmp_path / "v", 3, 256)
    vectors.write([4, 0, 2], embeds[:3])
    vectors.write([1, 3], embeds[3:5])
    got = vectors.read([4, 0, 2, 1, 3])
    assert np.abs(np.einsum("bqe,bqe->bq", got, embeds[:5]) - 1).max() < 0.003
    assert np.linalg.norm(one_vector(embeds), axis=-1) == pytest.approx(1)


def test_catalog_reuses_free_rows_first(tmp_path):
    catalog = Catalog(tmp_path / "c.db", True)
    catalog.put(File(row, f"{row}.png", 1, 1, bytes([row])) for row in catalog.next_rows(5))
    catalog.remove([1, 3])
    assert catalog.next_rows(3) == [1, 3, 5] and catalog.row_count == 5 and len(catalog) == 3
    catalog.put([File(1, "0.png", 2, 2, b"x")])  # a picture that changed leaves its old place
    assert catalog.free_rows() == [0, 3] and catalog.by_path("0.png").row == 1


def test_near_duplicates_are_grouped(model, album):
    shutil.copy(album / "a.png", album / "sub" / "same.png")
    Image.open(album / "b.jpg").save(album / "b2.png")
    with Index.create("x", album, model) as made:
        made.add()
        groups = [sorted(file.path for file in group) for group in find_near_duplicates(made, 0.9999)]
    assert ["a.png", "sub/same.png"] in groups and ["b.jpg", "b2.png"] in groups


def test_index_search_and_duplicates_commands(tiny, album, run):
    flags = ["--model", tiny.path]
    code, out, err = run("index", "album", "--out", "x", "--errors", "e.tsv", *flags)
    assert (code, out, err) == (1, "", "blip2rt: 10 indexed, 2 failed (listed in e.tsv)\n")
    assert "0 indexed, 10 already done" in run("index", "album", "--out", "x", *flags)[2]
    code, out, err = run("search", "x", "a dog", "-n", 3, "--json", "--html", "p.html", "--copy-to", "best", *flags)
    hits = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == "" and len(hits) == 3 and all(Path(hit["image"]).is_file() for hit in hits)
    page = Path("p.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page and "album/" in page
    assert [path.name[:3] for path in sorted(Path("best").iterdir())] == ["01-", "02-", "03-"]
    assert "album/b.jpg\n" in run("search", "x", "--image", "album/b.jpg", *flags)[1]
    assert "probability" in run("search", "x", "a dog", "--rerank", 4, "--json", *flags)[1]
    out = run("search", "x", "a dog", "-n", 4, "--rerank", 2, "--html", "p.html", *flags)[1]
    assert [line.split("\t")[0].endswith(" cosine") for line in out.splitlines()] == [False, False, True, True]
    assert Path("p.html").read_text().count(" cosine</p>") == 2
    assert " cosine" not in run("search", "x", "a dog", *flags)[1]
    shutil.copy("album/a.png", "album/zz.png")
    run("index", "album", "--out", "x", *flags)
    assert "a.png\n" in run("duplicates", "x", "--alike", 0.9999, *flags)[1]


def test_clip_retrieval_layout(tiny, model, album, run):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("index", "album", "--out", "c", "--format", "clip-retrieval", "--model", tiny.path)[0] == 1
    embeds = np.load("c/img_emb/img_emb_0.npy")
    paths = parquet.read_table("c/metadata/metadata_0.parquet").to_pydict()["image_path"]
    assert embeds.dtype == np.float16 and len(paths) == len(embeds) == 10
    assert np.allclose(embeds, one_vector(model.embed_image(paths)), atol=0.02)


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_undecodable_names_stay_distinct_in_parquet(tiny, run, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    Path("album").mkdir()
    for name in (b"album/\xff.png", b"album/\xfe.png"):
        picture(np.random.default_rng(new_seed())).save(os.fsdecode(name))
    assert run("index", "album", "--out", "c", "--format", "clip-retrieval", "--model", tiny.path)[0] == 0
    paths = parquet.read_table("c/metadata/metadata_0.parquet").to_pydict()["image_path"]
    assert sorted(Path(path).name for path in paths) == ["\\xfe.png", "\\xff.png"]


def test_usage_errors_are_one_line(tiny, album, run):
    flags = ["--model", tiny.path]
    run("index", "album", "--out", "x", *flags)
    (album.parent / "full").mkdir()
    (album.parent / "full" / "a").touch()
    for command, words in (
        (["search", "none", "a dog"], ["none is not an index", "blip2rt index DIR"]),
        (["search", "album/a.png", "a dog"], ["album/a.png is a file, not an index"]),
        (["search", "x"], ["give TEXT, or --image"]),
        (["search", "x", "a", "--image", "b"], ["give TEXT, or --image"]),
        (["search", "x", "..."], ["no words"]),
        (["search", "x", "a", "-n", "0"], ["from 1"]),
        (["search", "x", "--image", "none.png"], ["no such file: 'none.png'"]),
        (["search", "x", "--image", "album/a.png", "--rerank", "3"], ["rerank"]),
        (["index", "none", "--out", "y"], ["'none' is not a folder"]),
        (["index", "album"], ["missing: --out"]),
        (["index", "album", "--out", "full"], ["full is neither an index nor empty"]),
        (["index", "album/sub", "--out", "x"], ["not of album/sub"]),
        (["duplicates", "x", "--alike", "2"], ["--alike is 2"]),
    ):
        code, out, err = run(*command, *flags)
        assert code == 2 and out == "" and err.count("\n") == 1 and all(word in err for word in words), (command, err)
    about = json.loads(Path("x/index.json").read_text())
    Path("x/index.json").write_text(json.dumps(about | {"version": 1}))  # without checksums
    assert "x has version 1" in (err := run("search", "x", "a", *flags)[2]) and "create it again" in err
    for damage in ("{}", "no JSON", "[]"):
        Path("x/index.json").write_text(damage)
        assert "is damaged" in run("search", "x", "a", *flags)[2]


def test_damaged_index_is_one_error_line_or_repaired(tiny, album, run, monkeypatch):
    monkeypatch.setattr(index, "MAX_EXACT", 4)  # so that there is a shortlist
    run("index", "album", "--out", "good", "--model", tiny.path)
    found = run("search", "good", "a dog", "-n", 10, "--model", tiny.path)[1]
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
            for command in (["search", "x", "a dog", "-n", 10], ["duplicates", "x"], ["index", "album", "--out", "x"]):
                code, out, err = run(*command, "--model", tiny.path)
                if code == 2:
                    assert out == "" and err.count("\n") == 1 and f"x/{name} is damaged" in err, (name, command, err)
                    assert "remove x and create it again with `blip2rt index`" in err
                else:
                    unread = name == "vectors.i8" and len(damage or b"") == len(data)  # of a folder as it was
                    assert name == "shortlist.usearch" or (command[0] == "index" and (unread or name == "files.db"))
            if code == 1 and name != "vectors.i8":  # `index` has mended it
                assert run("search", "x", "a dog", "-n", 10, "--model", tiny.path)[1] == found, (name, err)


def test_vectors_are_synced_before_the_catalog(model, album, monkeypatch):
    order = []
    sync, put = os.fsync, Catalog.put
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(Catalog, "put", lambda self, files: (order.append("catalog"), put(self, files)))
    with Index.create("x", album, model) as made:
        order.clear()
        made.add()
    assert order == [os.stat("x/vectors.i8").st_ino, "catalog"] * 2


def test_existing_files_are_not_overwritten(tiny, album, run):
    run("index", "album", "--out", "x", "--model", tiny.path)
    Path("full").mkdir()
    shutil.copy("album/a.png", "full/a.png")
    for command, words in (
        (["search", "x", "a dog", "--html", "full/a.png"], "'full/a.png' is a picture"),
        (["search", "x", "a dog", "--html", "none/p.html"], "folder 'none' does not exist"),
        (["search", "x", "a dog", "--copy-to", "full"], "full is not empty: give another --copy-to"),
        (["index", "album", "--out", "x", "--errors", "full/a.png"], "'full/a.png' is a picture"),
        (["index", "album", "--out", "full", "--format", "clip-retrieval"], "full is neither an index nor empty"),
    ):
        before = tree(Path())
        code, out, err = run(*command, "--model", tiny.path)
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err, (command, err)
        assert tree(Path()) == before


def _modified_bundle(bundle: Path, folder: Path, **fields: object) -> blip2rt.Model:
    """A copy of a bundle with changed manifest fields."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "blip2rt.json").read_text())
    for name, value in fields.items():
        part, field = name.split("__")
        manifest[part][field] = value
    text = json.dumps(manifest | {KEY: EMPTY}).encode()
    (folder / "blip2rt.json").write_bytes(insert_checksum(text))
    return blip2rt.load(folder)


def test_index_accepts_a_model_with_the_same_embeddings(tiny, album, tmp_path):
    with Index.create("x", album, blip2rt.load(tiny.path)) as made:
        made.add()
        found = made.search("a dog")
    same = _modified_bundle(tiny.path, tmp_path / "same", retrieval__itm_weight=0.5, prompts__caption="a photo of")
    assert [hit.name for hit in Index.open("x", same).search("a dog")] == [hit.name for hit in found]
    for name, value in (("image__mean", [0.1, 0.2, 0.3]), ("retrieval__max_text_length", 9)):
        with pytest.raises(GalleryError, match="another version"):
            Index.open("x", _modified_bundle(tiny.path, tmp_path / name, **{name: value}))
    data = _modified_bundle(tiny.path, tmp_path / "data").bundle
    graph = data.manifest.components["vision"].graph
    for name in data.manifest.files:
        text = (data.path / "blip2rt.json").read_text()
        hashed = data.manifest.files[name].sha256
        (data.path / "blip2rt.json").write_text(text.replace(hashed, hashed[::-1]))
        used = index_manifest.fingerprint(blip2rt.load(data.path).bundle) != index_manifest.fingerprint(data)
        assert used == (name in (graph, "image_embed.onnx", "text_embed.onnx", "qformer_tokenizer.json")), name
        (data.path / "blip2rt.json").write_text(text)


def test_index_of_another_model_is_rejected(model, tiny, album, tmp_path):
    with Index.create("x", album, model):
        pass
    about = json.loads(Path("x/index.json").read_text())
    Path("x/index.json").write_text(json.dumps({**about, "model": "0" * 64, "name": "big"}))
    with pytest.raises(GalleryError, match="made by the model 'big'"):
        Index.open("x", model)


@pytest.mark.parametrize("left", ["x/.index.json.part", "x/blip2rt/", "x/blip2rt/.index.json.part"])
def test_writer_killed_at_once_can_be_restarted(tiny, album, run, left):
    """Before index.json exists: in its own folder, and in clip-retrieval's layout."""
    Path(left).parent.mkdir(parents=True, exist_ok=True)
    Path(left).mkdir() if left.endswith("/") else Path(left).write_text("{")
    command = ["index", "album", "--out", "x", "--model", tiny.path]
    command += ["--format", "clip-retrieval"] if "blip2rt" in left else []
    code, _, said = run(*command)
    assert code == 1 and "indexed" in said, said  # the album has bad pictures
    assert not list(Path("x").rglob("*.part"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_writer_resumes_to_the_same_index(tiny, tmp_path):
    rng, seed = random.Random(new_seed()), new_seed()
    for place in ("whole", "killed"):
        fill(tmp_path / place / "album", seed, 60)
    command = ["index", "album", "--out", "x", "--model", tiny.path, "--batch-size", 4]
    start(*command, cwd=tmp_path / "whole").communicate(timeout=TIMEOUT)
    for _ in range(8):
        process = start(*command, cwd=tmp_path / "killed")
        time.sleep(rng.uniform(0.3, 0.9))
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=TIMEOUT)
    assert start(*command, cwd=tmp_path / "killed").wait(TIMEOUT) == 1
    assert contents(tmp_path / "killed" / "x") == contents(tmp_path / "whole" / "x")
    assert (tmp_path / "killed/x/vectors.i8").read_bytes() == (tmp_path / "whole/x/vectors.i8").read_bytes()
