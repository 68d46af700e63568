"""How a chat is reduced to a prompt."""

import base64
import time

import pytest

from blip2rt.serve.chat_prompt import Conversation, Turn, text_job
from blip2rt.serve.inference import TextJob
from blip2rt.structured.questions import extract_question

CAPTION_REQUESTS = """
Describe the image
Please describe this picture in detail, in one sentence.
What's in this image?
What is in this picture?
What do you see?
what is happening in this scene?
What is happening here?
Can you describe the image for me?
What is this picture about?
Can you tell me what is in this picture?
Can you tell me what you see?
Tell me what you see in this image.
Tell me what this picture shows.
Can you tell me about this picture?
Tell me a story about it
???
[img]
front_door.jpg:|Describe what you see.
Create a caption with exactly one sentence in the active voice that describes the main visual content.
Act as a guard. Say in a few words what the person at the door of this house is doing right now.
Analyze the sequence of images containing the person. Focus on the likely intent based on its actions and movement.
"""
QUESTIONS = """
what colour is the dog?
How many people are there
colour of the car
what is the man holding?
What is in his hand?
What is this?
Image 1 shows what?
Is the front_door.jpg sign red?
Is it 2.5 m high?
Can you tell me what color the car is?
Could you please tell me what the man is holding?
Tell me what color the car is.
Please tell me whether the gate is open
Wo ist die Katze?
"""
EMBEDDED_QUESTIONS = """
This is a driveway. Be brief. Is there a car? Is the gate open? Do not explain. -> Is the gate open?
Image 1:|Image 2:|Is it a cat? -> Is it a cat?
[img]|[img]|Is it raining? -> Is it raining?
front_door.jpg: who is there? -> who is there?
front door.jpg:|who is there? -> who is there?
Image 1: what is it? -> what is it?
Image 1: a.png: [img-2] Photo #2 of 3: what is it? -> what is it?
IMAGE 1:what colour -> what colour
Look at example.org. Is version 1.2.3 shown? -> Is version 1.2.3 shown?
What does the sign say, 3.99 or 4.99? Be brief. -> What does the sign say, 3.99 or 4.99?
(Is it red?) Be brief. -> Is it red?
"Is it red?" Answer in one word. -> Is it red?
Really?! Is it red?! -> Is it red?
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("text", ["", "  \n", *lines(CAPTION_REQUESTS)])
def test_caption_requests_have_no_question(text: str) -> None:
    assert extract_question(text.split("|")) is None
    assert extract_question([text.replace("|", "\n")]) is None


@pytest.mark.parametrize("text", [*(f"{line} -> {line}" for line in lines(QUESTIONS)), *lines(EMBEDDED_QUESTIONS)])
def test_questions_are_extracted(text: str) -> None:
    message, _, question = text.partition(" -> ")
    assert extract_question(message.split("|")) == question
    assert extract_question([message.replace("|", "\n")]) == question


IMAGES = {name: base64.b64encode(name.encode()).decode() for name in "ab"}


def job(*messages: str) -> TextJob | None:
    """The job of a chat; "user a b: who?" is a message with two images."""
    turns = []
    for message in messages:
        sender, text = message.split(": ", 1)
        role, *images = sender.split()
        turns.append(Turn(role, (text,), tuple(IMAGES[name] for name in images)))
    return text_job(Conversation(turns, {}, ()))


def test_the_last_image_is_used_and_the_system_prompt_ignored() -> None:
    messages = ["system: Is it? Answer in rhymes.", "user a b: who?"]
    assert job(*messages) == job(*messages, "assistant: a man") == TextJob(b"b", "who?")
    assert job("user: who?", "tool a: 42") == TextJob(b"a", "who?")
    assert job("system: who?", "tool a: What is it?") == TextJob(b"a", "What is it?")
    assert job("user: Hi") is None


def test_history_is_about_the_same_image() -> None:
    messages = ["user a: what is it?", "assistant: a cat", "user: what colour?"]
    assert job(*messages) == TextJob(b"a", "what colour?", history=(("what is it?", "a cat"),))
    messages[2:] = ["user b: what is it?", "assistant: a dog", "user: what colour?"]
    assert job(*messages) == TextJob(b"b", "what colour?", history=(("what is it?", "a dog"),))


def test_history_has_no_captions_and_no_unanswered_questions() -> None:
    messages = ["user a: Describe it", "assistant: a cat on a mat", "user: who?", "user: is it grey?", "tool: 42"]
    found = job(*messages, "assistant:  yes\n", "user: why?")
    assert found == TextJob(b"a", "why?", history=(("is it grey?", "yes"),))


LONG = ["a" * 32_000, " " * 32_000 + "x", "a.jpg" + " " * 32_000 + "x", "what is " * 4000 + "?", "[img] " * 5000]
LONG += ["?" * 32_000, "can you describe " * 2000, ". ! \n" * 6000, "?" * 32_000 + "x", "a.jpg:" * 5000 + "x"]
LONG += ["image 1: " * 3500, '?"' * 16_000, "?" + '"' * 32_000]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_texts_are_parsed_quickly(text: str) -> None:
    start = time.process_time()
    extract_question([text])
    assert time.process_time() - start < 1
