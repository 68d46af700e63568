"""JSON filled from pictures: every result is valid under its schema, and what cannot be filled is named."""

import json
import random
from typing import Any

import jsonschema
import pytest
from referencing.exceptions import Unresolvable

import blip2rt
from blip2rt.errors import OptionError
from blip2rt.structured import answers_of, fill, fill_form, read
from blip2rt.structured.fill import _clamped, number_in
from blip2rt.structured.picture import split
from blip2rt.structured.questions import count_question, meanings, named_chance, open_question, statement

pytestmark = pytest.mark.long(6, "random schemas: answers are valid under each")

NAMES = ["title", "colour", "is_new", "labels", "count", "confidence", "hasDog", "x", "objects", "time_of_day", "näme"]
DESCRIPTIONS = ["What colour is it?", "Whether a dog is there", "0 = good, 1 = bad, 2 = worst", "Number of cars", ""]
DEFINITIONS = {
    "Car": {"type": "object", "properties": {"colour": {"type": "string"}, "next": {"$ref": "#/$defs/Car"}}},
    "Mood": {"enum": ["calm", "wild", None, 3, True]},
}


def random_schema(depth: int) -> dict[str, Any]:
    """A schema of any types, limits and nesting. Some have keywords that contradict the others, or mean nothing."""
    make = random.choice([*LEAVES, *(BRANCHES if depth else ())])
    schema: dict[str, Any] = make(depth)
    while random.random() < 0.3:
        schema = {**schema, **random.choice(STRAY)(max(depth - 1, 0))}
    if random.random() < 0.5 and "$ref" not in schema:
        schema["description"] = random.choice(DESCRIPTIONS)
    return schema


def limits(low: str, high: str, most: int) -> dict[str, int]:
    least = random.randrange(most)
    found = {low: least, high: random.randrange(least, most + 1)}
    return {name: value for name, value in found.items() if random.random() < 0.5}


def number(_: int) -> dict[str, Any]:
    low, kind = random.randrange(-30, 30), random.choice(["number", "integer"])
    high = low + random.choice([6, 25, 1000])
    found: dict[str, Any] = {random.choice(["minimum", "exclusiveMinimum"]): low}
    if random.random() < 0.6:
        found[random.choice(["maximum", "exclusiveMaximum"])] = high
    return {"type": kind, **found}


def array(depth: int) -> dict[str, Any]:
    items = random_schema(depth - 1)
    unique = {"uniqueItems": True} if random.random() < 0.3 else {}
    most = 1 if unique else 7
    return {"type": "array", "items": items, **limits("minItems", "maxItems", most), **unique}


def an_object(depth: int) -> dict[str, Any]:
    names = random.sample(NAMES, random.randrange(5))
    properties = {name: random_schema(depth - 1) for name in names}
    required = [name for name in names if random.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


LEAVES = [
    lambda _: {"type": "string", **limits("minLength", "maxLength", 120)},
    lambda _: {"type": "boolean"},
    lambda _: {"enum": random.sample(["red", "light_blue", "", 1, 2.5, False, None, "a cat"], random.randrange(1, 6))},
    lambda _: {"const": random.choice(["x", 4, None])},
    lambda _: {"type": random.sample(["string", "null", "integer", "boolean"], 2)},
    lambda _: {"$ref": f"#/$defs/{random.choice([*DEFINITIONS])}"},
    lambda _: {},
    number,
]
BRANCHES = [
    array,
    an_object,
    lambda depth: {"anyOf": [random_schema(depth - 1), {"type": "null"}], "default": None},
    lambda depth: {"allOf": [random_schema(depth - 1)]},
]


STRAY = [
    lambda _: {"type": random.choice([[], {}, [[]], None, "date", "integer", "object", ["number", "null"]])},
    lambda _: {"enum": random.sample([1, 1.0, True, "a", "", 0, -0.0, None, {}], random.randrange(1, 6))},
    lambda _: {"const": random.choice([1, 1.0, True, float("nan")])},
    lambda _: {"$ref": random.choice(["#", "#car", "#/$defs/Car/properties/colour", "#/%24defs/Mood", "#/$defs/Far"])},
    lambda _: random.choice([{"$id": "http://example.com/a"}, {"$anchor": "car"}]),
    lambda _: {"uniqueItems": True, "minItems": random.randrange(3)},
    lambda _: {"required": random.sample(NAMES, 2)},
    lambda depth: {"additionalProperties": random.choice([False, True, random_schema(depth)])},
    lambda depth: {"properties": {random.choice(NAMES): random.choice([False, True, random_schema(depth)])}},
    lambda depth: {"items": random.choice([False, True, random_schema(depth)])},
    lambda depth: {"anyOf": [random.choice([False, True, random_schema(depth)]) for _ in range(2)]},
    lambda depth: {"allOf": [random_schema(depth)]},
    lambda _: random.choice([{"not": {}}, {"multipleOf": 2}, {"minProperties": 1}, {"maxProperties": 1}]),
    lambda _: random.choice([{"minimum": 3}, {"maximum": 1.5}, {"maxLength": 5}, {"minLength": 9}, {"maxItems": 1}]),
]


class RandomPicture:
    """Says anything about a picture, at once. seen: the texts that a model would have read or written."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._labels = [(self.text(), random.random()) for _ in range(random.randrange(4))]

    def text(self) -> str:
        return random.choice(["", "a cat", "two", "-0", "9" * 400, "2.5 m", "ä" * 300, "red and blue", "1e3 ", "cat. "])

    caption = property(text)
    confidence = property(lambda _: random.random())

    def captions(self, count: int = 1) -> list[str]:
        return [self.text() for _ in range(count)]

    def answers(self, questions: list[str]) -> list[str]:
        self.seen.update(questions)
        return [self.text() for _ in questions]

    def likeliest(self, question: str, choices: list[str]) -> int:
        self.seen.update(f"{question} {choice}" for choice in choices)
        return random.randrange(len(choices))

    def yes_question(self, statement: str) -> str | None:
        return f"is there {statement}?" if hash(statement) % 3 == 0 else None

    def stated(self, statement: str) -> str | None:
        return statement if hash(statement) % 3 == 1 else None

    def prepare(self, *_: list[str]) -> None:
        pass

    def probabilities(self, texts: list[str]) -> list[float]:
        self.seen.update(texts)
        return [random.random() for _ in texts]

    def labels(self) -> list[tuple[str, float]]:
        return self._labels

    def details(self) -> list[str]:
        return [self.text() for _ in range(6)]


def is_judged_valid(schema: Any, value: Any) -> bool:
    """Whether a schema has a meaning; if so, jsonschema has found the value valid."""
    judge = jsonschema.Draft202012Validator
    try:
        judge.check_schema(schema)
        faults = list(judge(schema).iter_errors(value))
    except (jsonschema.SchemaError, Unresolvable, RecursionError):
        return False
    assert not faults, (schema, value)
    return True


@pytest.mark.parametrize("count", [500, 10_000])
def test_whatever_a_schema_accepts_is_valid(count: int) -> None:
    filled = 0
    for _ in range(count):
        schema = {"$defs": DEFINITIONS, **random_schema(3)}
        try:
            form = read(schema)
        except OptionError as error:
            assert str(error).startswith("$") and ": " in str(error)
            continue
        picture: Any = RandomPicture()
        value = json.loads(json.dumps(fill_form(picture, form, random.choice([None, "what is it?"])), allow_nan=False))
        filled += is_judged_valid(schema, value)
        assert len(picture.seen) <= answers_of(form)
    assert filled > count / 3


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ({"type": "string", "pattern": "^a"}, "$: pattern is not supported"),
        ({"type": "string", "minLength": 500}, "$: minLength is 500"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "$: maxLength is below minLength"),
        ({"type": "date"}, "$: JSON Schema has no type 'date'"),
        ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "$: no number is within its limits"),
        ({"type": "number", "minimum": float("nan")}, "$: the schema is not JSON"),
        ({"type": []}, "$: JSON Schema has no type []"),
        ({"$anchor": "a", "$ref": "#a"}, "$: $ref '#a' is outside the schema"),
        ({"type": "string", "anyOf": [{"type": "integer"}]}, "$: type stands beside $ref, allOf or anyOf"),
        ({"enum": ["word " * 600, "word " * 601]}, "$: enum has 6,005 characters: give 4,000 at most"),
        ({"type": "array", "minItems": 99}, "$: minItems is 99"),
        ({"type": "array", "uniqueItems": True, "minItems": 2}, "cannot all be different"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "$.a: it is required"),
        ({"type": "object", "required": "a"}, "required a list"),
        (
            {"type": "object", "properties": {"a": {"type": "string", "format": "uri"}}, "required": ["a"]},
            "$.a: format",
        ),
        ({"enum": [{}]}, "$: enum must list texts"),
        ({"enum": ["a"], "type": "integer"}, "$: enum has no value of its type"),
        ({"enum": list(range(100))}, "$: enum has 100 values"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "$: oneOf is not supported"),
        ({"allOf": [{}, {}]}, "$: allOf of several schemas"),
        ({"$ref": "#/$defs/X"}, "$ref #/$defs/X names nothing"),
        ({"$ref": "https://example.com/a"}, "is outside the schema"),
        ({"$ref": "#"}, "$: its schema contains itself"),
        ({"anyOf": []}, "$: anyOf must be a list"),
        (False, "$: its schema is False"),
        ("json", "$: its schema is 'json'"),
        ({"properties": {"is_gay": {"type": "boolean"}}, "required": ["is_gay"]}, "$.is_gay: no picture shows"),
        ({"minLength": 1, "minimum": 1}, "$: minimum does not fit"),
    ],
    ids=str,
)
def test_what_cannot_be_filled_is_named(schema: Any, wrong: str) -> None:
    with pytest.raises(OptionError) as error:
        read(schema)
    assert wrong in str(error.value) and ": " in str(error.value)


def test_size_is_limited() -> None:
    wide = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(100)}}
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    level: dict[str, Any] = {
        f"L{i}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/L{i + 1}"} for key in "abc"}}
        for i in range(12)
    }
    explosive = {"$ref": "#/$defs/L0", "$defs": {**level, "L12": {"type": "string"}}}
    many: dict[str, Any] = {"type": "object"}
    for _ in range(3):
        many = {"type": "array", "minItems": 16, "items": many}
    chain = {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(5000)}}
    for schema, wrong in (
        *((wide, "100 fields"), (deep, "16 levels"), (explosive, "100 fields"), (many, "100 fields")),
        (chain, "more than 64 references"),
    ):
        with pytest.raises(OptionError, match=wrong):
            read(schema)


def test_choices_that_the_model_cannot_read_are_an_option_error(model: Any, photo: Any) -> None:
    for schema in ({"enum": ["a dog " * 50, "cat"]}, {"properties": {"dog " * 99: {"enum": ["dog", "cat"]}}}):
        with pytest.raises(OptionError, match="fit behind the image"):
            fill(model, photo(), schema)


def test_optional_and_nullable_fields_are_left_out() -> None:
    date = {"type": "string", "format": "date"}
    properties = {"a": date, "b": {"anyOf": [date, {"type": "null"}]}, "c": {"type": "array", "items": date}}
    form: Any = read({"type": "object", "properties": properties, "required": ["b", "c"]})
    assert [name for name, _ in form.properties] == ["b", "c"]
    assert form.properties[0][1].values == (None,) and form.properties[1][1].item is None
    told = {"type": ["boolean", "null"], "description": "Whether the person is sick."}
    form = read({"properties": {"race": {"enum": ["white", None]}, "sick": told, "plant": {"type": "boolean"}}})
    assert [getattr(each, "values", ()) for _, each in form.properties] == [(None,), (None,), ()]


def test_a_picture_is_encoded_once_and_questions_are_batched(tiny: Any, photo: Any, monkeypatch: Any) -> None:
    model = blip2rt.load(tiny.path, threads=1)
    backend, calls = model.pipeline.backend, []
    for name in ("vision", "generate"):
        function = getattr(backend, name)
        monkeypatch.setattr(
            backend, name, lambda *args, name=name, function=function: (calls.append(name), function(*args))[1]
        )
    names = ["colour", "animal", "weather", "place", "caption"]
    fill(model, photo(), {"type": "object", "properties": {name: {"type": "string"} for name in names}})
    assert sorted(calls) == ["generate", "generate", "vision"], "one caption, and four questions together"


def test_an_answer_asks_the_question_and_a_title_does_not(model: Any, photo: Any) -> None:
    image, names = photo(), ("answer", "title")
    found = fill(model, image, {"properties": {name: {"type": "string"} for name in names}}, "what is red?")
    caption = model.caption(image)
    answer = "".join(model.ask(image, "what is red?").split()) or "".join(caption.split())
    assert found["title"] == caption and "".join(found["answer"].split()) == answer  # tidied, as captions are


@pytest.mark.parametrize(
    ("name", "description", "question"),
    [
        ("colour", "", "what is the colour?"),
        ("mainColour", "", "what is the main colour?"),
        ("x", "What is the dog doing?", "What is the dog doing"),
        ("x", "the colour of the car", "what is the colour of the car?"),
        ("animal", "", "what animal is it?"),
        ("title", "Title for the activity.", None),
        ("x", "Describe the scene.", None),
        ("caption", "", None),
    ],
)
def test_a_text_field_asks(name: str, description: str, question: str | None) -> None:
    found = open_question(name, description)
    assert found == question or (found is not None and found.rstrip("?") == question)


def test_booleans_and_numbers_ask() -> None:
    assert statement("has_dog", "") == statement("dog_detected", "") == statement("dog", "A flag.") == "dog"
    assert statement("x", "Whether a person is visible in the picture") == "a person"
    assert statement("x", "True if there is an animal.") == "an animal"
    assert statement("x", "Whether the picture was taken indoors") == statement("isIndoors", "") == "indoors"
    assert statement("nsfw", "") == statement("is_nsfw", "") == "sexual content"
    assert statement("x", "Is the door open?").startswith("Is the door open")
    assert (named_chance("confidence"), named_chance("dog_probability")) == (None, "dog")
    assert count_question("number_of_people", "") == "how many people are there?"
    assert count_question("count", "") == "how many things are there?"
    assert count_question("n", "The number of cars in view") == "how many cars in view are there?"
    assert meanings("A: 0 = normal, 1 = odd, 2 = critical threat.") == {0: "normal", 1: "odd", 2: "critical threat"}
    assert [number_in(text) for text in ("there are two", "-3.5 m", "no", "12 of 20")] == [2, -3.5, 0, 12]
    assert [_clamped(read({"type": kind}), 2.6) for kind in ("integer", "number")] == [3, 2.6]
    assert split("a cat, the dog and some grass") == ["cat", "dog", "grass"]
