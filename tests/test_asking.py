"""`ground`: several images and phrases on a command line, and the files that are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vg_utils import asking
from vg_utils.asking import ground_images, split_words
from vg_utils.cli import main
from vg_utils.config import ConfigError, set_fields
from vg_utils.data import DataError
from vg_utils.models.checkpoints import save_checkpoint

PHRASES = ["the red cube", "the small metal sphere"]


@pytest.fixture
def run(untrained, tiny_config, tmp_path) -> Path:
    """A run directory with an untrained `dense-grounder`."""
    config = set_fields(tiny_config, model__name="dense-grounder")
    save_checkpoint(tmp_path / "run" / "checkpoint", untrained("dense-grounder"), {"epoch": 1}, best=True)
    config.save(tmp_path / "run" / "config.json")
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three images in two formats, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (90, 60)), ("b.jpg", (60, 90)), ("c.PNG", (64, 64))):
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_words_are_images_as_long_as_they_name_some(photos, monkeypatch):
    a, b, c = (photos / name for name in ("a.png", "b.jpg", "c.PNG"))
    for words, images in (
        ([a], [a]),
        ([a, b], [a, b]),
        ([photos], [a, b, c]),
        ([photos / "*.png"], [a]),
        ([photos / "[ab]*", c, a], [a, b, c]),  # an image twice is asked about once
    ):
        assert split_words([*map(str, words), *PHRASES]) == (images, PHRASES)
    monkeypatch.chdir(photos)
    assert split_words(["a.png", "it", "a.png"][:2]) == ([Path("a.png")], ["it"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jpg", "a cube"], "nowhere.jpg: expected an image"),
        (["*.gif", "a cube"], r"\*.gif: expected an image"),
        (["{photos}/a.png"], "expected a phrase"),
        (["{photos}/a.png", "missing.jpg", "a cube"], "missing.jpg: expected an image, found no such file"),
        (["{empty}", "a cube"], "a folder without .png"),
    ],
)
def test_words_that_cannot_be_meant(photos, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    words = [word.format(photos=photos, empty=tmp_path / "empty") for word in words]
    with pytest.raises(DataError, match=said):
        split_words(words)


def test_many_images_in_one_call(run, photos, tmp_path, capsys):
    where = ["--checkpoint", str(run), "--device", "cpu"]
    drawn = [f"--{kind}={tmp_path / kind}" for kind in ("out", "sheet", "heatmap")]
    assert main(["ground", str(photos), *PHRASES, *where, *drawn, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    images = [photos / name for name in ("a.png", "b.jpg", "c.PNG")]
    assert [(one["image"], one["phrase"]) for one in found] == [(str(i), p) for i in images for p in PHRASES]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [image.name for image in images]
    for image in images:
        drawing = Image.open(tmp_path / "out" / image.name)
        assert (drawing.size, drawing.mode) == (Image.open(image).size, "RGB")
        assert (np.asarray(drawing) != np.asarray(Image.open(image))).any()
    for kind in ("sheet", "heatmap"):
        for path in (tmp_path / kind).iterdir():
            Image.open(path).verify()
    assert main(["ground", str(photos), *PHRASES, *where, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) > len(found)
    assert all(line.startswith(str(photos)) for line in lines)


def test_the_same_answers_as_one_by_one(run, photos):
    together = ground_images([photos / "a.png", photos / "b.jpg"], PHRASES, str(run))
    for image, predictions in together.items():
        (alone,) = ground_images([image], PHRASES, str(run)).values()
        torch.testing.assert_close(predictions.boxes_xyxy, alone.boxes_xyxy, atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["out", "sheet", "heatmap"])
@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("found.doc", ["a.png"], "that ends in .png"),
        ("found.png", ["a.png", "b.jpg"], "a folder for 2 images"),
        ("photos/a.png", ["a.png"], "an image that was asked about"),
        ("photos", ["a.png"], "an image that was asked about"),
        ("found", ["a.png", "deeper/a.png"], "2 images would be drawn"),
    ],
)
def test_places_that_cannot_be_drawn_into_are_refused_before_the_work(
    photos, tmp_path, monkeypatch, kind, name, images, said
):
    monkeypatch.setattr(asking, "Grounder", None)
    with pytest.raises(ConfigError, match=f"--{kind}: .*{said}"):
        ground_images([photos / image for image in images], PHRASES, **{kind: str(tmp_path / name)})
    assert not (tmp_path / "found").exists()


def test_wrong_numbers_and_devices_are_a_line(run, photos, capsys):
    for flag, value in (("--top", "0"), ("--device", "cuda:99"), ("--threshold", "2")):
        assert main(["ground", str(photos), "a cube", "--checkpoint", str(run), flag, value]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert flag.strip("-") in said.err
