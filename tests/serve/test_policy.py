"""How a chat becomes what BLIP-2 reads."""

from __future__ import annotations

import time

import pytest

from blip2rt.serve.policy import Reading, StopAt, Turn, question_of, read


@pytest.mark.parametrize(
    ("texts", "question"),
    [
        ([], None),
        (["  \n"], None),
        (["what colour is the dog?"], "what colour is the dog?"),
        (["How many people are there"], "How many people are there"),
        (["colour of the car"], "colour of the car"),
        (["Describe the image"], None),
        (["Please describe this picture in detail, in one sentence."], None),
        (["What's in this image?"], None),
        (["What is in this picture?"], None),
        (["What do you see?"], None),
        (["what is happening in this scene?"], None),
        (["What is happening here?"], None),
        (["Can you describe the image for me?"], None),
        (["What is this picture about?"], None),
        (["what is the man holding?"], "what is the man holding?"),
        (["What is in his hand?"], "What is in his hand?"),
        (["What is this?"], "What is this?"),
        (["This is a driveway. Be brief. Is there a car? Is the gate open? Do not explain."], "Is the gate open?"),
        (["Image 1:", "Image 2:", "Is it a cat?"], "Is it a cat?"),
        (["front_door.jpg:", "Describe what you see."], None),
        (["[img]\n[img]\nIs it raining?"], "Is it raining?"),
        (["[img]"], None),
        (["Analyze the sequence of images containing the person. Focus on the likely intent of the person based on its "
          "actions and movement, rather than describing its appearance."], None),  # Frigate's, shortened
        (["Create a caption with exactly one sentence in the active voice that describes the main visual content."],
         None),  # PhotoPrism's
        (["Act as a guard. Say in a few words what the person at the door of this house is doing right now."], None),
        (["front_door.jpg: who is there?"], "who is there?"),
        (["front door.jpg:\nwho is there?"], "who is there?"),
        (["Image 1: what is it?"], "what is it?"),
        (["Image 1: a.png: [img-2] Photo #2 of 3: what is it?"], "what is it?"),
        (["IMAGE 1:what colour"], "what colour"),
        (["Image 1 shows what?"], "Image 1 shows what?"),
        (["Is the front_door.jpg sign red?"], "Is the front_door.jpg sign red?"),
        (["Is it 2.5 m high?"], "Is it 2.5 m high?"),
        (["Look at example.org. Is version 1.2.3 shown?"], "Is version 1.2.3 shown?"),
        (["What does the sign say, 3.99 or 4.99? Be brief."], "What does the sign say, 3.99 or 4.99?"),
        (["(Is it red?) Be brief."], "Is it red?"),
        (['"Is it red?" Answer in one word.'], "Is it red?"),
        (["Really?! Is it red?!"], "Is it red?"),
        (["Can you tell me what color the car is?"], "Can you tell me what color the car is?"),
        (["Could you please tell me what the man is holding?"], "Could you please tell me what the man is holding?"),
        (["Tell me what color the car is."], "Tell me what color the car is."),
        (["Please tell me whether the gate is open"], "Please tell me whether the gate is open"),
        (["Can you tell me what is in this picture?"], None),
        (["Can you tell me what you see?"], None),
        (["Tell me what you see in this image."], None),
        (["Tell me what this picture shows."], None),
        (["Can you tell me about this picture?"], None),
        (["Tell me a story about it"], None),
        (["???"], None),
        (["Wo ist die Katze?"], "Wo ist die Katze?"),
    ],
)  # fmt: skip
def test_the_question_of_a_message(texts: list[str], question: str | None) -> None:
    assert question_of(texts) == question


def test_the_last_picture_is_asked_about_and_the_system_prompt_left_out() -> None:
    turns = [Turn("system", ("Is it? Answer in rhymes.",)), Turn("user", ("who?",), ("a", "b"))]
    assert read(turns, True) == Reading("b", "who?")


def test_without_a_picture_there_is_nothing_to_ask() -> None:
    assert read([Turn("user", ("Hi",))], True) == Reading(None)


def test_a_picture_stays_the_one_that_is_asked_about() -> None:
    turns = [Turn("user", ("what is it?",), ("a",)), Turn("assistant", ("a cat",)), Turn("user", ("what colour?",))]
    assert read(turns, True) == Reading("a", "what colour?", (("what is it?", "a cat"),))
    assert read(turns, False) == Reading("a", "what colour?")


def test_what_was_said_of_another_picture_is_left_out() -> None:
    turns = [Turn("user", ("what is it?",), ("a",)), Turn("assistant", ("a cat",)),
             Turn("user", ("what is it?",), ("b",)), Turn("assistant", ("a dog",)),
             Turn("user", ("what colour?",))]  # fmt: skip
    assert read(turns, True) == Reading("b", "what colour?", (("what is it?", "a dog"),))


def test_captions_and_unanswered_questions_are_no_history() -> None:
    turns = [Turn("user", ("Describe it",), ("a",)), Turn("assistant", ("a cat on a mat",)), Turn("user", ("who?",)),
             Turn("user", ("is it grey?",)), Turn("tool", ("42",)), Turn("assistant", (" yes\n",)),
             Turn("user", ("why?",))]  # fmt: skip
    assert read(turns, True) == Reading("a", "why?", (("is it grey?", "yes"),))


def test_a_last_word_of_the_assistant_changes_nothing() -> None:
    turns = [Turn("user", ("who?",), ("a",)), Turn("assistant", ("a man",))]
    assert read(turns, True) == Reading("a", "who?")


@pytest.mark.parametrize(
    "text",
    ["a" * 32_000, " " * 32_000 + "x", "a.jpg" + " " * 32_000 + "x", "what is " * 4000 + "?", "[img] " * 5000,
     "?" * 32_000, "can you describe " * 2000, ". ! \n" * 6000,
     "?" * 32_000 + "x", "a.jpg:" * 5000 + "x", "image 1: " * 3500, '?"' * 16_000, '?' + '"' * 32_000],
)  # fmt: skip
def test_long_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    question_of([text])
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["a cat", " on a mat"], [" on"], "a cat", True),
        (["a cat o", "n a mat"], [" on"], "a cat", True),
        (["a cat o", "r dog"], [" on"], "a cat or dog", False),
        (["aaab"], ["aab"], "a", True),
        (["aa", "ab"], ["aab"], "a", True),
        (["a", "b"], [], "ab", False),
        (["xyz"], ["z", "y"], "x", True),
        (["ends with o"], [" on", "over"], "ends with o", False),
    ],
)
def test_a_text_is_cut_before_the_first_stop(pieces: list[str], stops: list[str], text: str, found: bool) -> None:
    cut = StopAt(stops)
    assert "".join([*map(cut.push, pieces), cut.end()]) == text and cut.found is found
