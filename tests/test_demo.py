"""The page: what is behind it, what it serves, and what a browser shows of it.

The last two need the extra `demo`, and the browser playwright and an installed Chromium beside it.
"""

from __future__ import annotations

import io
import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import torch
from PIL import Image, ImageColor

from experiments.demo_figure import browsed, find_browser, served, wait_for_answer
from vg_utils.cli import main
from vg_utils.config import ConfigError
from vg_utils.data import DataError
from vg_utils.demo import (
    ALL_PHRASES,
    LONGEST_PHRASE,
    MOST_PHRASES,
    SHOWN_PIXELS,
    Answer,
    Asker,
    draw,
    draw_heatmaps,
    free_port,
    split_phrases,
    summary,
)
from vg_utils.figures.annotate import COLORS
from vg_utils.models.prediction import Prediction, Predictions
from vg_utils.predictor import Grounder

ROOT = Path(__file__).parents[1]
COFFEE = ROOT / "Visuals/photographs/coffee.jpg"
CHECKPOINT = "scenes/dense-grounder"
PHRASES = ["the red cube", "the small ball"]


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker("cpu")


# the questions


def test_a_phrase_a_line():
    assert split_phrases(" the  cup\r\n\n\tthe spoon \nthe cup\n") == ["the cup", "the spoon"]
    most = [f"cup {number}" for number in range(MOST_PHRASES)]
    assert split_phrases("\n".join(most)) == most


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a phrase"),
        (" \n\t\n", "expected a phrase"),
        ("\n".join(map(str, range(MOST_PHRASES + 1))), f"at most, got {MOST_PHRASES + 1}"),
        ("cup\n" + "c" * (LONGEST_PHRASE + 1), "phrase 2: expected"),
    ],
)  # fmt: skip
def test_phrases_that_cannot_be_asked(text, said):
    with pytest.raises(DataError, match=said):
        split_phrases(text)


def test_an_image_is_encoded_once(asker):
    first = asker.ask(COFFEE, PHRASES[0], CHECKPOINT)
    second = asker.ask(COFFEE, "\n".join(PHRASES), CHECKPOINT)
    assert second.encoding_seconds < first.encoding_seconds / 10
    other = asker.ask(COFFEE.with_name("cat.jpg"), "\n".join(PHRASES), CHECKPOINT)
    grounder = Grounder.load(CHECKPOINT, "cpu")
    for answer in (second, other):
        truth = grounder.ground(PHRASES, grounder.encode(answer.image))
        torch.testing.assert_close(answer.predictions.boxes_xyxy, truth.boxes_xyxy)
        assert [phrase for _, phrase in draw_heatmaps(answer)] == PHRASES


def test_images_that_cannot_be_asked_about(asker, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "large.png")
    for image, said in (
        (None, "expected an image, got none"),
        (tmp_path / "broken.jpg", "broken.jpg: expected an image that decodes"),
        (
            tmp_path / "large.png",
            "large.png: expected an image of 50 million pixels at most, got 10000 x 6000",
        ),
    ):
        with pytest.raises(DataError, match=said):
            asker.ask(image, "a cup", CHECKPOINT)


# what is shown


def has_color(image: Image.Image, color: str) -> bool:
    return bool((np.asarray(image) == ImageColor.getrgb(color)).all(-1).any())


def test_boxes_of_all_phrases_or_of_one(tmp_path):
    Image.new("RGB", (3 * SHOWN_PIXELS, 900), "#808080").save(tmp_path / "grey.png")
    found = Predictions(
        Prediction(name, box, 0.7, presence)
        for name, box, presence in (
            ("a", (-30.0, 20.5, 300.0, 500.0), 0.9),
            ("b", (700.0, 100.0, 3000.0, 950.0), 0.8),
            ("c", (1000.0, 300.0, 1500.0, 600.0), 0.1),
        )
    )
    answer = Answer(tmp_path / "grey.png", found, 0.0, 0.0)
    for chosen, threshold, drawn in (
        (ALL_PHRASES, None, [True, True, True]),
        (ALL_PHRASES, 0.5, [True, True, False]),
        (1, 0.5, [False, True, False]),
        (2, 0.5, [False, False, True]),  # who asks to see it sees it
    ):
        image = draw(answer, chosen, threshold)
        assert image.size == (SHOWN_PIXELS, 300)
        assert [has_color(image, color) for color in COLORS[:3]] == drawn
    assert "not found" in summary(found[2], 0.5)
    assert "not found" not in summary(found[1], 0.5)
    assert draw_heatmaps(answer) == []


# the command


def test_a_port_that_is_taken_is_a_line(monkeypatch, capsys):
    monkeypatch.setattr("vg_utils.demo.find_spec", lambda name: name)
    monkeypatch.setattr("vg_utils.demo.Asker", None)  # before the model is loaded
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("vg_utils demo: --host, --port: expected a free port")
        assert len(said.splitlines()) == 1
    assert free_port("127.0.0.1", 0) > 0
    for host, port in (("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no such host", 0)):
        with pytest.raises(ConfigError, match="expected a free port"):
            free_port(host, port)


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("vg_utils.demo.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "pip install 'gradio" in said
    assert len(said.splitlines()) == 1


# the page


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio", reason="of the extra `demo`")
    with served("--device", "cpu") as address:
        yield address


def test_nothing_but_the_page_is_served(address):
    assert urlsplit(address).hostname == "127.0.0.1"
    config = requests.get(f"{address}config", timeout=600).json()
    assert config["analytics_enabled"] is False
    assert not config["is_colab"]
    front = requests.get(address, timeout=600)
    assert front.headers["content-security-policy"].startswith("default-src 'self'")
    for path in (ROOT / "README.md", "/etc/hostname"):
        assert requests.get(f"{address}gradio_api/file={path}", timeout=600).status_code == 403
    for elsewhere in ("https://example.org/", "HTTP://example.org/"):
        refused = requests.get(f"{address}gradio_api/file={elsewhere}", timeout=600)
        assert (refused.status_code, refused.text) == (403, "not a file of this page")


@pytest.fixture
def page(address):
    pytest.importorskip("playwright", reason="drives the browser")
    if find_browser() is None:
        pytest.skip("no Chromium is installed")
    with browsed(address) as page:
        yield page


def share_of_edges(page, box: tuple[float, ...], color: str) -> float:
    """The share of the worst edge of a box, in pixels of the image, that has the colour in the browser."""
    image = page.locator("#boxes img")
    shot = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
    natural = np.array(image.evaluate("i => [i.naturalWidth, i.naturalHeight]"))
    scale = (shot.size / natural).min()  # it is shown as large as fits, in the middle
    shift = (shot.size - natural * scale) / 2
    near = np.abs(np.asarray(shot, int) - ImageColor.getrgb(color)).max(-1) < 40  # (H, W)
    x1, y1, x2, y2 = (np.reshape(box, (2, 2)) * scale + shift).ravel()
    along = np.linspace(0.1, 0.9, 30)
    xs, ys = x1 + (x2 - x1) * along, y1 + (y2 - y1) * along
    edges = [[(x, y) for x in xs] for y in (y1, y2)] + [[(x, y) for y in ys] for x in (x1, x2)]

    def is_there(x: float, y: float) -> bool:
        x, y, reach = round(x), round(y), 4
        return bool(near[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].any())

    return min(np.mean([is_there(x, y) for x, y in edge]) for edge in edges)


def test_a_browser_shows_the_boxes_where_they_are(page, tmp_path):
    asked = []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.reload()
    text, find = page.get_by_role("textbox", name="Phrases"), page.get_by_role("button", name="Find")
    find.wait_for()

    page.set_input_files("input[type=file]", COFFEE)
    page.get_by_label("Remove Image").wait_for()
    phrases = ["the cup of coffee", "the spoon"]
    text.fill("\n".join(phrases))
    page.get_by_role("spinbutton").fill("0")  # a box for each, however sure the model is
    find.click()
    wait_for_answer(page)
    grounder = Grounder.load(device="cpu")
    boxes = [p.box_xyxy for p in grounder.ground(phrases, grounder.encode(COFFEE))]
    for box, color in zip(boxes, COLORS, strict=False):
        assert share_of_edges(page, box, color) > 0.9
        assert share_of_edges(page, tuple(v + 10 for v in box), color) < 0.5
    assert page.locator("#maps img").count() == len(phrases)

    find.click()
    wait_for_answer(page, "encoded in 0.00 s")

    before = page.locator("#boxes img").get_attribute("src")
    page.get_by_role("radio", name="the spoon").click()
    page.wait_for_function("before => document.querySelector('#boxes img').src != before", arg=before)
    wait_for_answer(page)
    assert share_of_edges(page, boxes[0], COLORS[0]) < 0.5
    assert share_of_edges(page, boxes[1], COLORS[1]) > 0.9

    text.fill("  \n")
    find.click()
    page.locator("#about").filter(has_text="Not answered: expected a phrase").wait_for()
    assert page.locator("#boxes img").count() == 0

    text.fill("the cup")
    page.get_by_label("Remove Image").click()
    (tmp_path / "broken.jpg").write_text("no image")
    page.set_input_files("input[type=file]", tmp_path / "broken.jpg")
    page.get_by_label("Remove Image").wait_for()
    find.click()
    page.locator("#about").filter(
        has_text="Not answered: broken.jpg: expected an image that decodes"
    ).wait_for()
    assert {url.hostname for url in asked if url.scheme.startswith("http")} == {"127.0.0.1"}
