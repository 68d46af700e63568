"""The web page in Chromium, with its fake webcam and a keyboard."""

import base64
import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")
if not shutil.which("chromium") or not shutil.which("chromedriver"):
    pytest.skip("chromium is not installed: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.serve.server_process import PHOTO, TIMEOUT, ServerProcess, index_of

pytestmark = pytest.mark.long(13, "a real browser: what the page does, not what its text says")

HEIC = Path(__file__).parents[1] / "gallery" / "kitten.heic"
SAID = "#log .said:not(.coming)"  # answers that are complete
DROP = """
const [kind, data] = arguments, bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
if (kind === "link") transfer.setData("text/uri-list", "https://example.org/a.jpg");
else transfer.items.add(new File([bytes], "dropped.jpg", {type: "image/jpeg"}));
const event = kind !== "paste" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true})
  : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
document.body.dispatchEvent(event);
"""
CONTRAST = """
const [front, back] = arguments;
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
return (high + 0.05) / (low + 0.05);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    flags = "headless=new no-sandbox disable-dev-shm-usage use-fake-device-for-media-stream disable-gpu"
    for flag in f"{flags} use-fake-ui-for-media-stream window-size=1100,900".split():
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(TIMEOUT)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, nano: ServerProcess) -> Iterator[webdriver.Chrome]:
    browser.get(nano.url)
    wait(browser, lambda: text(browser, "model") == "nano")
    browser.get_log("browser")
    yield browser
    browser.execute_async_script("document.getElementById('clear').onclick().then(save).then(arguments[0])")
    faults = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not faults


def wait(browser: webdriver.Chrome, true: Any) -> None:
    WebDriverWait(browser, TIMEOUT, 0.1).until(lambda _: true())


def text(browser: webdriver.Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    """Read all elements in one step: the page redraws its lists, which makes element handles stale."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)", selector
    )
    return found


def pick(browser: webdriver.Chrome) -> None:
    browser.find_element(By.ID, "files").send_keys(str(PHOTO))
    wait(browser, lambda: text(browser, "caption") not in ("", "…"))


def test_picture_is_captioned_asked_about_and_matched(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "question").send_keys("who?", Keys.ENTER)
    assert text(page, "fault") == "Choose a picture first"
    page.find_element(By.ID, "question").clear()
    pick(page)
    assert text(page, "caption") == "a cup of coffee sitting on a table"
    assert re.fullmatch(r"\d+ % sure", text(page, "caption-note"))
    wait(page, lambda: "cup" in texts(page, "#labels li"))
    assert page.find_element(By.ID, "picture").accessible_name == text(page, "caption")

    page.find_element(By.TAG_NAME, "body").send_keys("/")
    question = page.switch_to.active_element
    assert question.accessible_name == "Question about the picture"
    for count, words in enumerate(("What is in the cup?", "What colour is the cup?"), 1):
        question.send_keys(words, Keys.ENTER)
        wait(page, lambda count=count: len(texts(page, SAID)) == count)
    assert texts(page, "#log .asked") == ["What is in the cup?", "What colour is the cup?"]
    assert texts(page, "#log .said") == ["coffee", "red"]

    page.find_element(By.ID, "texts").send_keys("two dogs run on a beach\na cup")
    page.find_element(By.ID, "match").click()
    wait(page, lambda: len(texts(page, "#matches li")) == 2)
    assert texts(page, "#matches li")[0].startswith("a cup"), "best first"
    assert text(page, "fault") == ""


def test_pictures_can_be_dropped_pasted_and_selected_again(page: webdriver.Chrome) -> None:
    data = base64.b64encode(PHOTO.read_bytes()).decode()
    for count, kind in enumerate(("drop", "paste"), 1):
        page.execute_script(DROP, kind, data)
        wait(page, lambda count=count: len(texts(page, "#thumbs button")) == count)
    wait(page, lambda: text(page, "caption") not in ("", "…"))
    first, second = page.find_elements(By.CSS_SELECTOR, "#thumbs button")
    assert second.get_attribute("aria-pressed") == "true" and first.accessible_name.startswith("Picture 1: ")
    first.send_keys(Keys.ENTER)
    wait(page, lambda: first.get_attribute("aria-pressed") == "true")
    assert page.switch_to.active_element == first, "the focus stays"


def test_caption_does_not_interrupt_an_answer(page: webdriver.Chrome) -> None:
    page.execute_script(
        "const real = fetch; window.held = {};"
        "window.fetch = (path, ...rest) => new Promise((done) => { held[path] = () => done(real(path, ...rest)); });"
    )
    page.find_element(By.ID, "files").send_keys(str(PHOTO))
    wait(page, lambda: page.execute_script("return 'v1/caption' in held"))
    page.find_element(By.ID, "question").send_keys("What is in the cup?", Keys.ENTER)
    wait(page, lambda: page.execute_script("return 'v1/chat/completions' in held"))
    page.execute_script("held['v1/caption']()")
    wait(page, lambda: text(page, "caption") not in ("", "…"))
    assert not page.find_element(By.ID, "ideas").is_displayed()
    page.execute_script("held['v1/chat/completions']()")
    wait(page, lambda: texts(page, SAID))
    assert "coffee" in texts(page, "#log .said")[0]


@pytest.mark.parametrize(
    ("example", "caption", "answers"),
    [
        ("a cup of coffee", "a cup of coffee sitting on a table", ["coffee", "red", "yes"]),
        ("a man with a camera", "a man is holding a camera in front of a field", ["camera", "no", "yes"]),
    ],
)
def test_suggested_questions_are_answered_rightly(page, example, caption, answers):
    page.find_element(By.CSS_SELECTOR, f"#examples [aria-label='Example: {example}']").click()
    wait(page, lambda: text(page, "caption") == caption)
    for number in range(3):
        page.execute_script("document.querySelectorAll('#ideas button')[arguments[0]].click()", number)
        wait(page, lambda number=number: len(texts(page, SAID)) > number)
    assert texts(page, SAID) == answers
    assert not page.find_element(By.ID, "ideas").is_displayed()


def test_settings_and_copying(page: webdriver.Chrome) -> None:
    page.find_element(By.CSS_SELECTOR, "summary").click()
    page.find_element(By.ID, "beams").send_keys("1")
    page.execute_script(
        "window.sent = []; const real = fetch; window.fetch = (...a) => { sent.push(a); return real(...a); }"
    )
    page.execute_script(DROP, "drop", base64.b64encode(PHOTO.read_bytes()).decode())
    wait(page, lambda: text(page, "caption") not in ("", "…"))
    assert page.execute_script("return JSON.parse(sent[0][1].body).num_beams") == 1
    page.find_element(By.ID, "copy").click()
    wait(page, lambda: text(page, "copy") == "Copied")


def test_a_failed_picture_keeps_its_own_error(page: webdriver.Chrome) -> None:
    page.execute_script(DROP, "drop", base64.b64encode(b"no picture").decode())
    wait(page, lambda: text(page, "picture-fault").startswith("dropped.jpg: "))
    said = text(page, "picture-fault")
    pick(page)
    assert text(page, "picture-fault") == "" and not page.find_element(By.ID, "again").is_displayed()
    failed, _ = page.find_elements(By.CSS_SELECTOR, "#thumbs button")
    assert failed.accessible_name == "Picture 1: dropped.jpg, failed"
    failed.click()
    assert text(page, "picture-fault") == said and text(page, "caption") == ""
    page.find_element(By.ID, "again").click()
    wait(page, lambda: text(page, "picture-fault") == said)
    page.get_log("browser")  # has the server's errors


def test_a_picture_dragged_from_another_site_is_refused_in_words(page: webdriver.Chrome) -> None:
    page.execute_script(DROP, "link", "")
    assert text(page, "fault").startswith("This page may not read another site's picture: save it")


def test_pictures_and_texts_survive_a_reload_until_they_are_removed(page: webdriver.Chrome) -> None:
    for _ in range(2):
        pick(page)
    page.find_element(By.ID, "question").send_keys("What is in the cup?", Keys.ENTER)
    wait(page, lambda: texts(page, SAID))
    page.find_element(By.ID, "texts").send_keys("a cup", Keys.TAB)
    page.execute_async_script("save().then(arguments[0])")
    for left in (2, 1, 0):
        page.refresh()
        wait(page, lambda: text(page, "model") == "nano")
        wait(page, lambda left=left: len(texts(page, "#thumbs button")) == left)
        assert page.find_element(By.ID, "texts").get_attribute("value") == ("a cup" if left else "")
        if left == 2:
            assert texts(page, "#log p") == ["What is in the cup?", "coffee"] and text(page, "caption")
        page.find_element(By.ID, "remove" if left == 2 else "clear").click() if left else None
        page.execute_async_script("save().then(arguments[0])")
    assert text(page, "caption") == "" and page.find_element(By.ID, "hint").is_displayed()


def test_all_captions_are_downloaded(page: webdriver.Chrome) -> None:
    page.execute_script("window.got = {}; window.download = (name, type, text) => { got[name] = text; }")
    assert not page.find_element(By.ID, "csv").is_enabled()
    page.execute_script(DROP.replace("dropped.jpg", "=1+1"), "drop", base64.b64encode(b"no picture").decode())
    wait(page, lambda: text(page, "picture-fault"))
    pick(page)
    wait(page, lambda: "cup" in texts(page, "#labels li"))
    page.find_element(By.ID, "csv").click()
    page.find_element(By.ID, "json").click()
    got = page.execute_script("return got")
    header, failed, good = csv.reader(io.StringIO(got["captions.csv"]))
    assert header == ["image", "caption", "confidence", "labels", "error"]
    assert failed[:2] == ["'=1+1", ""] and failed[4] and good[:2] == ["photo.jpg", text(page, "caption")]
    page.get_log("browser")  # has the server's error
    _, row = json.loads(got["captions.json"])
    assert row["caption"] == good[1] and "cup" in row["labels"] and 0 < row["confidence"] < 1


def test_a_failed_request_keeps_the_question(page: webdriver.Chrome) -> None:
    pick(page)
    page.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.find_element(By.ID, "question").send_keys("What animal is it?", Keys.ENTER)
    wait(page, lambda: text(page, "fault") == "The server does not answer: is it still running?")
    assert page.find_element(By.ID, "question").get_attribute("value") == "What animal is it?"
    assert texts(page, "#log p") == []


def test_pictures_that_the_browser_cannot_show_go_to_the_server(page: webdriver.Chrome) -> None:
    pytest.importorskip("pi_heif")
    data = base64.b64encode(HEIC.read_bytes()).decode()
    page.execute_script(DROP.replace("dropped.jpg", "a.heic"), "drop", data)
    wait(page, lambda: text(page, "caption") not in ("", "…"))
    assert "a.heic" in text(page, "hidden-picture")


def test_search_shows_what_stands_out(page: webdriver.Chrome) -> None:
    flat = [{"score": 0.2 + 0.001 * i} for i in range(20, 0, -1)]
    best = [{"score": 0.5}, {"score": 0.45}, {"score": 0.4}]
    assert page.execute_script("return standOut(arguments[0])", best + flat) == 3
    assert page.execute_script("return standOut(arguments[0])", best) == 3
    assert page.execute_script("return standOut(arguments[0])", [{"score": 0.3}] * 20) == 20


def test_webcam_is_captioned_live(page: webdriver.Chrome) -> None:
    button = page.find_element(By.ID, "webcam")
    page.execute_script(
        "const media = navigator.mediaDevices, real = media.getUserMedia.bind(media);"
        "media.getUserMedia = (asked) => { window.asked = asked; return real(asked); };"
    )
    button.click()
    wait(page, lambda: re.match(r"[\d.]+ captions/s, \d+ frames dropped", text(page, "caption-note")))
    wait(page, lambda: int(re.findall(r"(\d+) frames", text(page, "caption-note"))[0]) > 0)
    assert page.execute_script("return asked.video.facingMode.ideal") == "environment"
    assert text(page, "caption") and button.text == "Stop the webcam" and button.get_attribute("aria-pressed") == "true"
    page.find_element(By.ID, "question").send_keys("What is it?", Keys.ENTER)
    wait(page, lambda: texts(page, SAID))
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    wait(page, lambda: button.text == "Webcam")
    assert not page.find_element(By.ID, "video").is_displayed() and text(page, "fault") == ""


def test_layout_fits_a_phone(page: webdriver.Chrome) -> None:
    pick(page)
    try:
        phone = {"width": 390, "height": 664, "deviceScaleFactor": 2, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        width = page.execute_script("scrollTo(0, 0); return [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1] == 390
        shown = (
            "const box = document.getElementById(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom]"
        )
        for name in ("picture", "caption", "question"):
            top, bottom = page.execute_script(shown, name)
            assert 0 <= top < bottom <= 664, f"{name} is within the first screen"
        assert page.execute_script("return getComputedStyle(document.getElementById('stage')).borderStyle") == "none"
        for each in page.find_elements(By.CSS_SELECTOR, "main button, main .button"):
            if each.is_displayed():
                assert each.size["height"] >= 44, "large enough for a finger"
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(page: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    backs = {}
    for selector in ("body", "h2", "#send", "#webcam", "#question", "header span"):
        front, back = page.execute_script(
            "let node = document.querySelector(arguments[0]); const front = getComputedStyle(node).color;"
            "while (getComputedStyle(node).backgroundColor === 'rgba(0, 0, 0, 0)') node = node.parentElement;"
            "return [front, getComputedStyle(node).backgroundColor]",
            selector,
        )
        assert page.execute_script(CONTRAST, front, back) >= 4.5, selector
        backs[selector] = [int(value) for value in re.findall(r"\d+", back)[:3]]
    assert (sum(backs["body"]) > 600) is (scheme == "light")


def test_controls_have_accessible_names(page: webdriver.Chrome) -> None:
    pick(page)
    used = page.find_elements(By.CSS_SELECTOR, "main input, main textarea, main button, section, #log, #thumbs, a")
    for each in used:
        if each.is_displayed():
            assert each.accessible_name, each.get_attribute("outerHTML")[:200]
    page.find_element(By.TAG_NAME, "h1").click()
    seen: list[str] = []
    for _ in range(24):
        ActionChains(page).send_keys(Keys.TAB).perform()
        seen.append(page.switch_to.active_element.get_attribute("id"))
    assert {"files", "webcam", "question", "send", "texts", "match"} <= set(seen), "reachable by keyboard"


def test_index_is_searched(browser: webdriver.Chrome, start: Any, tiny: Any, tmp_path: Any) -> None:
    browser.get(start("--index", index_of(tiny, tmp_path, {"a cup.jpg": PHOTO.read_bytes()})).url)
    wait(browser, lambda: browser.find_element(By.ID, "searching").is_displayed())
    browser.find_element(By.ID, "wanted").send_keys("a cup", Keys.ENTER)
    wait(browser, lambda: texts(browser, "#hits li"))
    hit = browser.find_element(By.CSS_SELECTOR, "#hits button")
    assert hit.accessible_name == "a cup.jpg"
    hit.click()
    wait(browser, lambda: text(browser, "caption") not in ("", "…"))
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_docs_list_the_routes(browser: webdriver.Chrome, nano: ServerProcess) -> None:
    browser.get(f"{nano.url}/docs")
    wait(browser, lambda: len(texts(browser, "summary")) > 15)
    shown = texts(browser, "summary")
    [chat] = [each for each in shown if each.startswith("POST /v1/chat/completions Caption")]
    browser.find_elements(By.CSS_SELECTOR, "summary")[shown.index(chat)].click()
    assert "messages" in texts(browser, "details[open] td code")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_api_key_dialog(browser: webdriver.Chrome, start: Callable[..., ServerProcess]) -> None:
    browser.get(start("--api-key", "right").url)
    wait(browser, lambda: text(browser, "model") == "tiny")
    dialog, key = browser.find_element(By.ID, "key-dialog"), browser.find_element(By.ID, "key")
    browser.find_element(By.ID, "files").send_keys(str(PHOTO))
    wait(browser, dialog.is_displayed)
    assert text(browser, "key-fault") == ""
    key.send_keys(Keys.ESCAPE)
    wait(browser, lambda: text(browser, "picture-fault") == f"{PHOTO.name}: The server needs an API key")
    assert not dialog.is_displayed()
    browser.find_element(By.ID, "texts").send_keys("a dog")
    browser.find_element(By.ID, "match").click()
    wait(browser, dialog.is_displayed)
    key.send_keys("wrong", Keys.ENTER)
    wait(browser, lambda: text(browser, "key-fault") == "This API key is wrong")
    assert dialog.is_displayed()
    key.clear()
    key.send_keys("right", Keys.ENTER)
    wait(browser, lambda: texts(browser, "#matches span") != [])
    assert not dialog.is_displayed() and text(browser, "fault") == ""
    browser.find_element(By.ID, "question").send_keys("who runs?", Keys.ENTER)  # the key is asked for once
    wait(browser, lambda: texts(browser, SAID))
    browser.get_log("browser")
