"""`python -m train.evaluate`: the official formats, checkpoint = bundle, resuming after a kill, the report, bad input.

Random tiny models and photographs, new ones in every run.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("pycocoevalcap")
pytest.importorskip("blip2rt._native")

import blip2rt
from blip2rt_export.cli import main as export
from blip2rt_train import evaluate
from blip2rt_train.evaluation.annotations import read_captions, read_questions
from blip2rt_train.evaluation.metrics import caption_metrics, vqa_accuracy
from blip2rt_train.evaluation.predictors import open_predictor
from tests.seeds import new_seed, seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import question_input
from tests.train.arguments import options
from tests.train.processes import train_together

from .official import IMAGES, faulty, official_formats

pytestmark = pytest.mark.long(35, "checkpoint and exported bundle predict the same")

SEED = seed_of(__name__)
FLOAT = "vision=fp32,qformer=fp32,llm=fp32,retrieval=fp32"
OPT = pytest.mark.parametrize("generative", ["opt"], indirect=True)
TIE = 2e-4  # between scores of two texts that rounding may put in another order


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_formats(tmp_path_factory.mktemp("data"), SEED)


@pytest.fixture(scope="module", params=["opt", "t5"])
def generative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face checkpoint and its bundle."""
    torch.manual_seed(SEED)
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny_blip2.generative(folder / "hf", tiny_blip2.TEXT_CONFIGS[request.param]())
    assert export(["--ckpt", str(checkpoint), "--out", str(folder / "bundle"), "--precision", FLOAT]) == 0
    return checkpoint, folder / "bundle"


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(SEED)
    folder = tmp_path_factory.mktemp("itm")
    checkpoint = tiny_blip2.retrieval(folder / "hf")
    assert export(["--ckpt", str(checkpoint), "--out", str(folder / "bundle"), "--precision", FLOAT]) == 0
    return checkpoint, folder / "bundle"


def run(task: str, model: Path, out: Path, *flags: Any) -> dict[str, Any]:
    """Evaluates; its totals. The predictions are out.predictions.jsonl."""
    assert evaluate.main([task, "--model", str(model), "--json", str(out), *map(str, flags)]) == 0
    return json.loads(out.read_text())


def predictions(out: Path) -> dict[Any, Any]:
    lines = out.with_suffix(".predictions.jsonl").read_text().splitlines()
    return {line["id"]: line["said"] for line in map(json.loads, lines[1:])}


def assert_same(bundle: Path, data: Path, ours: dict[Any, Any], theirs: dict[Any, Any], beams: int) -> None:
    """Assert equal captions; at a tie, the other one is among the beams, with the best score."""
    assert ours.keys() == theirs.keys()
    model = blip2rt.load(bundle, threads=1)
    for id in ours:
        if ours[id] != theirs[id]:
            best = model.caption(data / "images" / f"{id}.jpg", num_beams=beams, num_captions=beams, scores=True)
            scores = {each.text: each.score for each in best}
            assert theirs[id] in scores and max(scores.values()) - scores[theirs[id]] < TIE, f"{id}"


def test_captions_match_between_checkpoint_and_bundle(
    generative: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = generative
    flags = ["--data", data / "nocaps.json", "--batch-size", 3]
    by_torch = run("caption", checkpoint, tmp_path / "torch.json", *flags)
    by_runtime = run("caption", bundle, tmp_path / "runtime.json", *flags)
    said = predictions(tmp_path / "runtime.json")
    assert_same(bundle, data, said, predictions(tmp_path / "torch.json"), 5)
    if said == predictions(tmp_path / "torch.json"):
        assert {**by_torch, "model": "", "seconds": 0} == {**by_runtime, "model": "", "seconds": 0}
    items = read_captions(data / "nocaps.json", data / "images")
    want, _ = caption_metrics([item.references for item in items], [said[item.id] for item in items])
    assert by_runtime["cider"] == pytest.approx(want["cider"], abs=0.01)
    inside = [item for item in items if item.group == "in-domain"]
    want, _ = caption_metrics([item.references for item in inside], [said[item.id] for item in inside])
    assert by_runtime["in-domain"]["cider"] == pytest.approx(want["cider"], abs=0.01)
    assert by_runtime["near-domain"].keys() == want.keys() | {"chair_captions", "chair_nouns"}


def test_answers_match_between_checkpoint_and_bundle(generative: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    checkpoint, bundle = generative
    flags = ["--data", data / "questions.json", "--annotations", data / "annotations.json"]
    run("vqa", checkpoint, tmp_path / "torch.json", *flags)
    totals = run("vqa", bundle, tmp_path / "runtime.json", *flags, "--results", tmp_path / "results.json")
    said, other = predictions(tmp_path / "runtime.json"), predictions(tmp_path / "torch.json")
    assert said.keys() == other.keys() and sum(said[id] != other[id] for id in said) <= 1  # one tie in a long while
    asked = read_questions(data / "questions.json", data / "annotations.json", data / "images").items
    scores = [vqa_accuracy(said[item.id], item.answers) for item in asked]
    assert totals["accuracy"] == pytest.approx(100 * np.mean(scores), abs=0.01)
    kinds = [score for item, score in zip(asked, scores, strict=True) if item.group == "yes/no"]
    assert totals["yes/no"]["accuracy"] == pytest.approx(100 * np.mean(kinds), abs=0.01)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == [{"question_id": item.id, "answer": said[item.id]} for item in asked]


def test_prompts_and_options_reach_checkpoint_and_bundle(
    generative: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """Both change the texts in the same way."""
    checkpoint, bundle = generative
    image = data / "images" / "1.jpg"
    for model, name in ((checkpoint, "torch"), (bundle, "runtime")):
        shown = options(data=data / "nocaps.json", limit=3, beams=1, min_new_tokens=6, max_new_tokens=6)
        shown += ["--repetition-penalty", "0.1"]
        run("caption", model, tmp_path / f"{name}.json", *shown, "--prompt", "a photo of")
        kept = predictions(tmp_path / f"{name}.json")
        want = blip2rt.load(bundle, threads=1).caption(
            image, prompt="a photo of", num_beams=1, min_new_tokens=6, max_new_tokens=6, repetition_penalty=0.1
        )
        assert kept[1] == want, f"{name}"
        predictor = open_predictor(str(model), prompt="what {} is")
        asked = predictor.ask([image], ["red"], num_beams=1, max_new_tokens=5, min_new_tokens=5)
        want = blip2rt.load(bundle, threads=1).caption(
            image, prompt="what red is", raw=True, num_beams=1, min_new_tokens=5, max_new_tokens=5
        )
        assert asked == [want], f"{name}"


def test_answers_of_a_question_input_match_between_checkpoint_and_bundle(tmp_path: Path, data: Path) -> None:
    folder, _, model = question_input.export_model(tmp_path)
    predictor: Any = open_predictor(str(folder / "ckpt"))
    images = [data / "images" / f"{i}.jpg" for i in (1, 1, 2)]
    questions = ["What is red?", "is the man in the snow with a dog and two cats", "the ball "]
    options = {"num_beams": 1, "max_new_tokens": 3, "min_new_tokens": 1}
    assert predictor.ask(images, questions, **options) == model.ask(images, questions, **options)
    assert predictor.caption(images, **options) == model.caption(images, **options)


def test_retrieval_matches_between_checkpoint_and_bundle(
    retrieval: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = retrieval
    found = {}
    for model, name in ((checkpoint, "torch"), (bundle, "runtime")):
        totals = run("retrieval", model, tmp_path / f"{name}.json", "--data", data / "table.tsv", "--rerank", 4)
        found[name] = totals, predictions(tmp_path / f"{name}.json")
    kept, other = found["runtime"][1], found["torch"][1]
    items = read_captions(data / "table.tsv", data / "images")
    texts = [text for item in items for text in item.references]
    assert kept.keys() == other.keys() == {f"i2t {i}" for i in range(IMAGES)} | {f"t2i {i}" for i in range(len(texts))}
    for id in kept:
        mine, theirs = (dict(zip(each[id]["best"], each[id]["itm_logits"], strict=True)) for each in (kept, other))
        shared = mine.keys() & theirs.keys()
        assert len(shared) >= 3  # cosines that are equal but for rounding may stand in another order
        np.testing.assert_allclose([mine[k] for k in shared], [theirs[k] for k in shared], atol=1e-3, err_msg=f"{SEED}")
    model, paths = blip2rt.load(bundle, threads=1), [str(item.path) for item in items]
    owner = np.repeat(np.arange(IMAGES), [len(item.references) for item in items])
    sim = np.einsum("iqe,te->itq", model.embed_image(paths), model.embed_text(texts)).max(-1)
    totals = found["runtime"][0]
    for way, rows, own in (
        ("t2i", sim.T, owner[:, None] == np.arange(IMAGES)),
        ("i2t", sim, owner == np.arange(IMAGES)[:, None]),
    ):
        right: dict[str, list[bool]] = {"itm": [], "match": []}
        for query, row in enumerate(rows):
            said = kept[f"{way} {query}"]
            best, logits = said["best"], np.array(said["itm_logits"])
            assert sorted(row[best], reverse=True) == pytest.approx(sorted(row, reverse=True)[:4], abs=1e-6)
            right["itm"].append(own[query][best[int((logits[:, 1] + row[best]).argmax())]])
            asked = [(image, query) if way == "t2i" else (query, image) for image in best]
            scores = [match.score for match in model.match([paths[i] for i, _ in asked], [texts[j] for _, j in asked])]
            right["match"].append(own[query][best[int(np.argmax(scores))]])
        for name, ones in right.items():
            assert totals[f"{name}_{way}_r@1"] == pytest.approx(100 * np.mean(ones), abs=0.01), name
    assert totals["itc_t2i_r@1"] == pytest.approx(100 * np.mean(sim.argmax(0) == owner), abs=0.01)


@OPT
def test_killed_evaluation_resumes(
    generative: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    bundle = generative[1]
    flags = ["--data", data / "table.tsv", "--batch-size", 2, "--beams", 2]
    whole = run("caption", bundle, tmp_path / "whole.json", *flags)
    original, asked = blip2rt.Model.caption, []

    def caption(self: Any, images: Any, **options: Any) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(images)
        return original(self, images, **options)

    monkeypatch.setattr(blip2rt.Model, "caption", caption)
    out = tmp_path / "killed.json"
    assert evaluate.main(["caption", "--model", str(bundle), "--json", str(out), *map(str, flags)]) == 130
    assert not out.exists() and len(predictions(out)) == 4
    kept = out.with_suffix(".predictions.jsonl")
    kept.write_text(kept.read_text() + '{"id": "6.jpg", "sa')  # killed within a line
    monkeypatch.setattr(blip2rt.Model, "caption", original)
    again = run("caption", bundle, out, *flags)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert predictions(out) == predictions(tmp_path / "whole.json")
    # Other options are another evaluation.
    assert evaluate.main(["caption", "--model", str(bundle), "--json", str(out), *map(str, flags[:-1]), "3"]) == 2
    assert "num_beams was 2" in capsys.readouterr().err


def test_processes_share_an_evaluation(retrieval: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    flags = ["--data", data / "table.tsv", "--rerank", 4]
    whole = run("retrieval", retrieval[0], tmp_path / "whole.json", *flags)
    out = tmp_path / "two.json"
    arguments = ["retrieval", "--model", str(retrieval[0]), "--json", str(out), *map(str, flags)]
    logs = train_together("blip2rt_train.evaluate", arguments, tmp_path)
    assert {**json.loads(out.read_text()), "seconds": 0} == {**whole, "seconds": 0}
    ours, theirs = predictions(out), predictions(tmp_path / "whole.json")
    assert ours.keys() == theirs.keys() and all(ours[id]["best"] == theirs[id]["best"] for id in ours)
    assert ["itm_i2t" in log for log in logs] == [True, False], "one reports"
    assert not list(tmp_path.glob("two.predictions.jsonl.*"))


def test_predictions_of_another_split_or_list_are_rejected(
    retrieval: tuple[Path, Path], data: Path, tmp_path: Path, error_of: Any
) -> None:
    model, out, table = retrieval[0], tmp_path / "totals.json", tmp_path / "list.json"
    table.write_text((data / "karpathy.json").read_text())
    flags = ["--data", table, "--images", data / "images", "--rerank", 2]
    first = run("retrieval", model, out, *flags)
    assert {**run("retrieval", model, out, *flags), "seconds": 0} == {**first, "seconds": 0}
    command = ["retrieval", "--model", model, "--json", out, *flags]
    assert "split was None" in error_of(evaluate.main, [*command, "--split", "val"])
    listed = json.loads(table.read_text())
    table.write_text(json.dumps({**listed, "images": listed["images"][::-1]}))
    assert "data_sha256 was" in error_of(evaluate.main, command)


@OPT
def test_report_is_self_contained_and_worst_first(
    generative: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "<b>pictures"
    folder.mkdir()
    said = {"<i>.jpg": "a cat <sits>", "two.jpg": "two dogs play in the snow", "three.jpg": "a man on a red bike"}
    truth = ["<script>alert(1)</script> & more", said["two.jpg"], "a man rides a red bike"]
    for name, photo in zip(said, tiny_blip2.photographs(3, np.random.default_rng(new_seed())), strict=True):
        photo.save(folder / name)
    monkeypatch.setattr(blip2rt.Model, "caption", lambda _, images, **options: [said[path.name] for path in images])
    rows = "".join(f"{name}\t{text}\n" for name, text in zip(said, truth, strict=True))
    (tmp_path / "table.tsv").write_text("image\tcaption\n" + rows)
    page = tmp_path / "report.html"
    flags = ["--data", tmp_path / "table.tsv", "--images", folder, "--report", page]
    totals = run("caption", generative[1], tmp_path / "totals.json", *flags)
    text = page.read_text()
    assert "<script" not in text and "<i>" not in text and "<b>" not in text and "<sits>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert "http" not in text and text.count("data:image/jpeg;base64,") == 3
    assert f"<td>{totals['cider']:.2f}" in text
    order = [text.index(f">{html.escape(name)}</div>") for name in ("<i>.jpg", "three.jpg", "two.jpg")]
    assert order == sorted(order), "worst first"
    run("caption", generative[1], tmp_path / "totals.json", *flags, "--report-rows", 1)
    assert page.read_text().count("<article>") == 1 and "2 better ones are not shown" in page.read_text()


@pytest.mark.parametrize("name", ["nocaps.json", "karpathy.json"])
def test_caption_formats_agree(data: Path, name: str) -> None:
    want = {item.path.name: item.references for item in read_captions(data / "table.tsv", data / "images")}
    if name == "karpathy.json":
        del want["3.jpg"]  # of another split
    found = read_captions(data / name, data / "images")
    assert {item.path.name: item.references for item in found} == want
    assert {item.id for item in found} == {int(Path(each).stem) if name.endswith(".json") else each for each in want}


def test_vqa_formats_agree(data: Path, tmp_path: Path) -> None:
    official = read_questions(data / "questions.json", data / "annotations.json", data / "images")
    assert official.graded and len(official.items) == 2 * IMAGES and len(official.items[0].answers) == 10
    gqa = read_questions(data / "gqa.json", None, data / "images")
    assert not gqa.graded and [item.path for item in gqa.items] == [item.path for item in official.items]
    (tmp_path / "mine.jsonl").write_text(
        '{"image": "1.jpg", "question": "what is red?", "answer": "ball"}\n'
        '{"image": "1.jpg", "question": "what is red?", "answer": "the ball"}\n{"image": "2.jpg", "caption": "a dog"}\n'
    )
    [mine] = read_questions(tmp_path / "mine.jsonl", None, data / "images").items
    assert mine.answers == ["ball", "the ball"] and mine.path.name == "1.jpg"


@OPT
def test_unpublished_answers_can_be_submitted(
    generative: tuple[Path, Path], data: Path, tmp_path: Path, capsys: Any
) -> None:
    flags = ["vqa", "--model", str(generative[1]), "--data", str(data / "questions.json"), "--beams", "1"]
    assert evaluate.main([*flags, "--limit", "2"]) == 2
    assert "no answers to compare with" in capsys.readouterr().err
    assert evaluate.main([*flags, "--limit", "2", "--results", str(tmp_path / "results.json")]) == 0
    assert [each["question_id"] for each in json.loads((tmp_path / "results.json").read_text())] == [10, 11]
    assert "accuracy" not in json.loads(capsys.readouterr().out)


@OPT
def test_bad_input_is_one_line(generative: tuple[Path, Path], data: Path, tmp_path: Path, error_of: Any) -> None:
    model = generative[1]
    for name, (command, message) in faulty(tmp_path, data).items():
        flags = [*command, *([] if "--model" in command else ["--model", model])]
        flags += [] if "--images" in command else ["--images", data / "images"]
        error = error_of(evaluate.main, flags)
        assert re.search(message, error), f"{name}: {error}"
    flags = ["caption", "--data", data / "table.tsv", "--images", data / "images", "--model", model]  # of the core
    assert "--beams is 1000" in error_of(evaluate.main, [*flags, "--beams", "1000"])
