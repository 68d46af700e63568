"""Scripts of recipes/nano: the tables of its data sets, questions about presence, and figures."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blip2rt_train.recipe import parse
from blip2rt_train.stage_settings import SelfCriticalSettings, Stage1Settings, Stage2Settings
from tests.train.arguments import options

RECIPES = Path(__file__).parents[2] / "recipes"


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of recipes/nano."""
    script = [sys.executable, str(RECIPES / "nano" / name), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # for their imports
    return subprocess.run(script, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


BUILD = RECIPES / "nano" / "build.sh"
# Stands in for Python: records its arguments, and creates what the command would write.
STUB = """\
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments[0] != "-":
    with open(os.environ["RECORD"], "a") as file:
        print(json.dumps(arguments), file=file)
    given = dict(zip(arguments, arguments[1:]))
    out = Path(given.get("--out") or given.get("--json") or next(a for a in reversed(arguments) if a[0] == "/"))
    if "--steps" in given:
        out = out / f"step-{int(given['--steps']):06d}"
    made = [out / "coco.tsv", out / "daquar.tsv"] if "tables.py" in arguments[0] else [out / "config.json"]
    for file in [out] if out.suffix else made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
"""


def test_build_script_names_the_recipes() -> None:
    named = re.findall(r"\$recipes/(\w+)\.yaml", BUILD.read_text())
    assert set(named) == {path.stem for path in BUILD.parent.glob("*.yaml")}
    for given, fault in (
        ({"SETS": "web"}, "SETS is 'web': give all or coco"),
        ({"SETS": "coco", "START": "nano"}, "START continues all sets: leave out SETS"),
        ({"START": "/none"}, "START /none is no bundle"),
    ):
        done = subprocess.run(["bash", str(BUILD)], env={**os.environ, **given}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"build.sh: error: {fault}\n")


@pytest.mark.long(4, "a shell script, killed after each command")
@pytest.mark.parametrize("given", [{}, {"SETS": "coco"}, {"START": str(RECIPES.parent / "blip2rt/models/nano")}])
def test_build_script_resumes_after_each_command(given: dict[str, str], tmp_path: Path) -> None:
    """Its trainings' settings are valid, and a run after a killed one repeats nothing that is finished."""
    record, stub = tmp_path / "record", tmp_path / "python"
    stub.write_text(f"#!{sys.executable}\n{STUB}")
    stub.chmod(0o755)
    settings = {**given, "PYTHON": str(stub), "RECORD": str(record)}

    def build(out: str) -> list[list[str]]:
        record.write_text("")
        script = ["bash", str(BUILD), str(tmp_path / "data"), str(tmp_path / out)]
        done = subprocess.run(script, check=False, env={**os.environ, **settings}, capture_output=True, text=True)
        assert done.returncode == 0 and f"== built {tmp_path / out}/bundle" in done.stdout, done.stderr
        return [json.loads(line) for line in record.read_text().splitlines()]

    commands = build("out")
    assert build("out") == []
    last = max(i for i, command in enumerate(commands) if "--steps" in command)
    shutil.rmtree(tmp_path / "out" / Path(commands[last][commands[last].index("--out") + 1]).name)
    assert build("out") == [commands[last]]
    kinds = {"train.stage1": Stage1Settings, "train.stage2": Stage2Settings}
    for _, module, *arguments in (command for command in commands if "--steps" in command):
        found = parse(kinds.get(module, SelfCriticalSettings), arguments, module)
        data = (found.stage2 if isinstance(found, SelfCriticalSettings) else found).data.entries
        assert "SETS" not in given or all("/data/coco/images" in entry["images"] for entry in data)


def write_set(folder: Path, files: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def test_tables_leak_no_dev_images(tmp_path: Path) -> None:
    captions, asked = "image\tcaption", "image\tquestion\tanswer\tsource"
    write_set(
        tmp_path / "d" / "coco",
        {
            "train.tsv": [captions, "b.webp\tA dog", "h.webp\tthe cat is on a mat"],
            "train-human.tsv": [captions, "h.webp\tA cat"],
            "dev.tsv": [captions, "c.webp\tA cat"],
            "train-qa.tsv": [asked, "a.webp\tWhat is it?\tDog\tvqa"],
            "dev-qa.tsv": [asked, "c.webp\tIs it?\tyes\tvqa"],
        },
    )
    for name in ("web", "flickr8k"):
        write_set(tmp_path / "d" / name, {"train.tsv": [captions, "x.webp\tA hat"]})
    pascal = [f"{name}.webp\tA hat" for name in "abcd"]
    write_set(tmp_path / "d" / "pascal", {"train.tsv": [captions, *pascal]})
    rows = ["image\tquestion\tanswer", "r.webp\tWhat is here?\ttable_lamp", "r.webp\tAnd there?\tbook, papers"]
    write_set(tmp_path / "d" / "daquar", {"train-qa.tsv": rows})
    done = run_script("tables.py", tmp_path / "d", tmp_path / "out")
    assert done.returncode == 0 and "coco: 3 images, 2 captions, 1 questions" in done.stdout, done.stderr
    header, human, stated = "image\tcaption\tprompt\n", "h.webp\tA cat\t\n", "b.webp\tA dog\t\n"
    found = {name: (tmp_path / "out" / f"coco{name}.tsv").read_text() for name in ("", "-told", "-human", "-stated")}
    assert found["-human"] == header + human, "a human caption replaces the statement"
    assert found["-stated"] == header + stated and found["-told"] == header + stated + human
    assert found[""] == header + "a.webp\tdog\twhat is it?\n" + stated + human
    untold = (tmp_path / "out" / "coco-untold.tsv").read_text()
    assert untold == "image\tcaption\tprompt\na.webp\tdog\twhat is it?\n", "these wait for captions"
    assert (tmp_path / "out" / "daquar.tsv").read_text().splitlines()[1:] == ["r.webp\ttable lamp\twhat is here?"]
    trained = (tmp_path / "out" / "pascal.tsv").read_text().splitlines()[1:]
    assert trained == ["b.webp\tA hat\t", "c.webp\tA hat\t"], "every third photograph is for measuring"
    dev = (tmp_path / "out" / "coco-dev-qa.tsv").read_text()
    assert dev == "image\tcaption\tprompt\nc.webp\tyes\tis it?\n", "as train.evaluate reads it"
    with (tmp_path / "d" / "coco" / "train.tsv").open("a") as file:
        file.write("c.webp\tA leak\n")
    done = run_script("tables.py", tmp_path / "d", tmp_path / "out")
    assert done.returncode == 2 and "coco-stated has 1 images of its dev split, as c.webp: remove them" in done.stderr


def test_presence_asks_for_what_captions_say(tmp_path: Path) -> None:
    """Half of the answers are no, about nouns that no caption suggests. Numbers that captions dispute are left out."""
    dogs = ["Two dogs play on a couch.", "two brown dogs rest on the sofa", "Animals sit"]
    buses = ["A red bus in traffic", "a bus beside three men", "a bus and four men"]
    images = {"a.webp": dogs, "b.webp": buses}
    rows = [f"{image}\t{caption}\n" for image, captions in images.items() for caption in captions]
    (tmp_path / "t.tsv").write_text("image\tcaption\n" + "".join(rows))
    asked = set()
    for seed in range(5):
        flags = options(data=tmp_path / "t.tsv", out=tmp_path / "o.tsv", seed=seed)
        done = run_script("presence.py", *flags)
        assert done.returncode == 0, done.stderr
        lines = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()[1:]]
        answers = [line[1] for line in lines]
        assert answers.count("yes") == answers.count("no") == 6
        asked |= {(image, answer, re.sub(r" in the \w+", "", question)) for image, answer, question, _ in lines}
    assert asked == {
        *(("a.webp", "yes", f"is there a {name}?") for name in ("dog", "couch")),
        *(("a.webp", "no", f"is there a {name}?") for name in ("bus", "man", "person")),
        *(("b.webp", "yes", f"is there a {name}?") for name in ("bus", "man", "person")),
        *(("b.webp", "no", f"is there a {name}?") for name in ("dog", "couch")),
        ("a.webp", "two", "how many dogs are there?"),
        *(("a.webp", answer, f"are the dogs {colour}?") for answer, colour in (("yes", "brown"), ("no", "red"))),
        *(("b.webp", answer, f"is the bus {colour}?") for answer, colour in (("yes", "red"), ("no", "brown"))),
    }


@pytest.mark.long(10, "nano on photographs")
def test_judge_counts_on_photographs_outside_the_fit(tmp_path: Path) -> None:
    """Each question and caption of two photographs is counted; those of the third are the fit's."""
    told = {"cat": "a cat looks at the camera", "coffee": "a cup of coffee on a table", "hopper": "a woman in a hat"}
    (tmp_path / "set" / "images").mkdir(parents=True)
    rows = ["image\tcaption\tprompt\tkind"]
    for name, caption in told.items():
        shutil.copyfile(RECIPES.parent / "docs" / "nano" / f"{name}.jpg", tmp_path / "set" / "images" / f"{name}.jpg")
        rows += [f"set/images/{name}.jpg\t{caption}\t\t"] * 2
        rows += [f"set/images/{name}.jpg\t{'yes' if name == 'cat' else 'no'}\tis there a cat?\tfrequency"]
    rows += ["set/images/cat.jpg\tone\thow many cats are there?\tnumber"]
    everything, fitted, out = tmp_path / "all.tsv", tmp_path / "fitted.tsv", tmp_path / "judged.txt"
    everything.write_text("\n".join(rows) + "\n")
    fitted.write_text("\n".join([rows[0], *(row for row in rows if "hopper" in row)]) + "\n")
    bundle = RECIPES.parent / "blip2rt" / "models" / "nano"
    done = run_script("judge.py", bundle, *options(data=everything, fitted=fitted, root=tmp_path, out=out))
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert lines[0] == "2 images: {'set': 2}" and done.stdout == out.read_text()
    assert "nouns, set, yes: 1 of 1, 100.0%" in lines and "nouns, set, no: 0 of 1, 0.0%" in lines
    assert {line.rpartition(" of ")[2].partition(",")[0] for line in lines if line.startswith("captions")} == {"2"}
    assert sum(line.startswith("number one: ") for line in lines) == 1
    assert [line.partition(" %")[0] for line in lines[-6:]] == [
        f"most confident {n}" for n in (10, 25, 50, 75, 90, 100)
    ]
