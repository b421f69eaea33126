"""Asking about an image."""

from __future__ import annotations

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from vg_utils import predictor
from vg_utils.boxes import best_boxes, boxes_to_image, boxes_to_model, letterbox
from vg_utils.cli import main
from vg_utils.config import ConfigError, set_fields
from vg_utils.data import DataError
from vg_utils.data.transforms import EvalTransform
from vg_utils.devices import find_device
from vg_utils.figures.pictures import prediction_items
from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT, origin, save_checkpoint
from vg_utils.models.clip import tokenize
from vg_utils.models.detector_clip import build_detector_clip
from vg_utils.models.prediction import Prediction
from vg_utils.pipeline import PHOTOGRAPHS
from vg_utils.predictor import Grounder
from vg_utils.presets import preset

PHRASES = ["the red cube", "the small metal sphere left of the cone", "the largest thing"]


@pytest.fixture
def grounder(untrained, tiny_config) -> Grounder:
    return Grounder(untrained("clip-hrnet"), tiny_config, "cpu")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 80).convert(mode)


def test_boxes_are_the_model_s_in_original_pixels(grounder):
    picture = noise(150, 60)
    predictions = grounder.set_image(picture).ground(PHRASES)
    with torch.no_grad():
        view = EvalTransform(64)(picture)
        outputs = grounder.model.predict(
            view.image[None], tokenize(PHRASES), torch.zeros(len(PHRASES), dtype=torch.long)
        )
    expected = boxes_to_image(outputs["boxes_cxcywh"], letterbox((150, 60), 64), 64, (150, 60))
    assert [p.phrase for p in predictions] == PHRASES
    torch.testing.assert_close(torch.tensor([p.box_xyxy for p in predictions]), expected)
    torch.testing.assert_close(torch.tensor([p.score for p in predictions]), outputs["score"])
    assert expected[:, 2].max() > 64  # in pixels of the image, not of the model's square


def test_a_picture_is_encoded_once_for_any_number_of_phrases(grounder, monkeypatch):
    calls, encode = [], grounder.model.encode_images
    monkeypatch.setattr(
        grounder.model, "encode_images", lambda images: calls.append(len(images)) or encode(images)
    )
    grounder.set_image(noise(64, 64))
    together = grounder.ground(PHRASES)
    one_by_one = [grounder.ground(phrase)[0] for phrase in PHRASES]
    assert calls == [1]
    for a, b in zip(together, one_by_one, strict=True):
        assert a.box_xyxy == pytest.approx(b.box_xyxy, abs=1e-3)
    assert grounder.ground([]) == []
    grounder.set_image(noise(90, 40))
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("size_wh", "mode"),
    [((80, 60), "L"), ((80, 60), "RGBA"), ((80, 60), "P"), ((80, 60), "CMYK"), ((80, 60), "1"),
     ((200, 1), "RGB"), ((1, 200), "RGB"), ((1, 1), "RGB"), ((6000, 30), "RGB"), ((30, 6000), "L")],
)  # fmt: skip
def test_any_picture_gets_a_box_inside_it(grounder, size_wh, mode):
    for prediction in grounder.set_image(noise(*size_wh, mode)).ground(PHRASES):
        x1, y1, x2, y2 = prediction.box_xyxy
        assert 0 <= x1 <= x2 <= size_wh[0]
        assert 0 <= y1 <= y2 <= size_wh[1]
        assert 0 <= prediction.score <= 1


def test_a_file_and_the_picture_in_it_are_the_same(grounder, tmp_path):
    picture = noise(100, 70)
    picture.save(tmp_path / "picture.png")
    assert (
        grounder.set_image(picture).ground(PHRASES)
        == grounder.set_image(tmp_path / "picture.png").ground(PHRASES)
        == grounder.set_image(str(tmp_path / "picture.png")).ground(PHRASES)
    )


def test_phrases_are_cleaned_and_come_back_as_asked(grounder):
    grounder.set_image(noise(64, 64))
    loud, plain = grounder.ground(["  The RED   cube ", "the red cube"])
    assert loud.phrase == "  The RED   cube "
    assert loud.box_xyxy == pytest.approx(plain.box_xyxy, abs=1e-4)
    (long,) = grounder.ground(["the cube left of the sphere " * 40])  # past CLIP's 77 tokens
    assert all(map(torch.isfinite, torch.tensor(long.box_xyxy)))


def test_predictions_as_json(grounder):
    (prediction,) = grounder.set_image(noise(64, 64)).ground("the red cube")
    assert json.loads(json.dumps(prediction.as_dict())).keys() == {"phrase", "box_xyxy", "score"}


def test_a_grounder_says_which_model_it_is_and_what_it_was_trained_on(grounder, tmp_path):
    assert grounder.origin == "clip-hrnet"
    run = saved(grounder, tmp_path / "run")
    assert Grounder.load(run).origin == f"{run}: clip-hrnet, trained on {grounder.config.data.root}"
    assert "drawn solids" in Grounder.load("scenes/dense-grounder").origin


def test_by_default_the_model_for_photographs_answers():
    grounder = Grounder.load(device="cpu")
    assert grounder.origin == origin(DEFAULT_CHECKPOINT)
    assert grounder.origin.startswith("photos/dense-grounder: dense-grounder, trained on 4,067 photographs")
    cat, dog = grounder.set_image(PHOTOGRAPHS / "cat.jpg").ground(["the cat", "the dog"])
    assert cat.presence > 0.5 > dog.presence
    assert cat.unknown_words == dog.unknown_words == ()  # neither is news to it


# words without a meaning


@pytest.fixture(scope="module")
def of_scenes() -> Grounder:
    """The shipped flagship of RefScenes, asked about a photograph."""
    return Grounder.load("scenes/dense-grounder", "cpu").set_image(PHOTOGRAPHS / "cat.jpg")


def test_words_that_a_model_does_not_know_are_listed_and_lower_presence(of_scenes):
    phrases = ["the giraffe", "the zebra left of the giraffe's zebra", "the red cube"]
    one, two, none = of_scenes.ground(phrases)
    assert [p.unknown_words for p in (one, two, none)] == [("giraffe",), ("zebra", "giraffe's"), ()]
    assert one.presence < 0.4
    assert two.presence < 0.4**2
    assert one.as_dict()["unknown_words"] == ["giraffe"]
    assert "unknown_words" not in none.as_dict()
    notes = [item["note"] for item in prediction_items(noise(9, 9), [one, two, none])]
    assert notes == ["unknown: giraffe", "unknown: zebra, giraffe's", ""]
    (hidden,) = prediction_items(noise(9, 9), [one], threshold=0.5)
    assert hidden["note"] == "not found; unknown: giraffe"
    assert "prediction_xyxy" not in hidden


def test_the_command_line_names_unknown_words(tmp_path, capsys):
    where = ["--checkpoint", "scenes/dense-grounder"]
    command = ["ground", str(PHOTOGRAPHS / "cat.jpg"), "the giraffe", "the red cube", *where]
    assert main([*command, "--out", str(tmp_path / "found.png")]) == 0
    first, giraffe, cube = capsys.readouterr().out.splitlines()
    assert first == origin("scenes/dense-grounder")
    assert giraffe.endswith("; unknown words: giraffe")
    assert "unknown" not in cube
    assert main([*command, "--json"]) == 0
    giraffe, cube = json.loads(capsys.readouterr().out)
    assert giraffe["unknown_words"] == ["giraffe"]
    assert "unknown_words" not in cube
    assert giraffe["origin"] == cube["origin"] == first


# presence and heat maps


@pytest.fixture
def dense(untrained, tiny_config) -> Grounder:
    config = set_fields(tiny_config, model__name="dense-grounder")
    return Grounder(untrained("dense-grounder"), config, "cpu")


def test_presence_and_heatmap_are_the_models(dense, grounder):
    picture = noise(64, 64)
    predictions = dense.set_image(picture).ground(PHRASES)
    with torch.no_grad():
        images, tokens = EvalTransform(64)(picture).image[None], tokenize(PHRASES)
        outputs = dense.model.predict(images, tokens, torch.zeros(len(PHRASES), dtype=torch.long))
    torch.testing.assert_close(torch.tensor([p.presence for p in predictions]), outputs["presence"])
    # A square image has no padding: the map is the model's own.
    torch.testing.assert_close(torch.stack([p.heatmap for p in predictions]), outputs["heatmap"])
    plain = json.loads(json.dumps(predictions[0].as_dict()))
    assert plain.keys() == {"phrase", "box_xyxy", "score", "presence"}
    assert predictions == dense.ground(PHRASES)
    (without,) = grounder.set_image(picture).ground("the red cube")
    assert without.presence is without.heatmap is None


@pytest.mark.parametrize("size_wh", [(160, 64), (64, 160), (90, 80), (200, 1), (1, 200), (64, 64)])
def test_a_heatmap_lies_on_the_picture(dense, monkeypatch, size_wh):
    """A map that rises over the square by its own places has the image's places in it."""
    grid = 8
    axis = (torch.arange(grid) + 0.5) / grid
    across, down = axis.expand(grid, grid), axis[:, None].expand(grid, grid)
    for heatmap, side in ((across, 0), (down, 1)):
        outputs = {"boxes_cxcywh": torch.full((1, 4), 0.5), "score": torch.ones(1), "heatmap": heatmap[None]}
        monkeypatch.setattr(dense.model, "forward", lambda *_, outputs=outputs: outputs)
        (found,) = dense.set_image(noise(*size_wh)).ground("the red cube")
        rows, columns = found.heatmap.shape
        longer = max(size_wh)
        assert rows == max(1, round(grid * size_wh[1] / longer))
        assert columns == max(1, round(grid * size_wh[0] / longer))
        count = (columns, rows)[side]
        centres = torch.zeros(count, 2)
        centres[:, side] = (torch.arange(count) + 0.5) / count * size_wh[side]
        places = boxes_to_model(centres.repeat(1, 2), letterbox(size_wh, 64), 64)[:, side]
        expected = places.clamp(axis[0], axis[-1])  # at the square's edge the map goes on as it ends
        torch.testing.assert_close(found.heatmap.mean(dim=side), expected, atol=1e-4, rtol=0)


def test_found_is_what_is_not_below_the_threshold():
    prediction = Prediction("a cube", (0.0, 0.0, 1.0, 1.0), 0.5, 0.4)
    assert all(prediction.is_found(threshold) for threshold in (None, 0.0, 0.4))
    assert not any(prediction.is_found(threshold) for threshold in (0.41, 1.0))
    assert Prediction("a cube", (0.0, 0.0, 1.0, 1.0), 0.5).is_found(0.9)


def saved(grounder: Grounder, run: Path) -> Path:
    save_checkpoint(run / "checkpoint", grounder.model, {"epoch": 1}, best=True)
    grounder.config.save(run / "config.json")
    return run


@pytest.fixture
def asked(dense, tmp_path, capsys):
    """Runs `ground` on an image with an untrained `dense-grounder`: (status, stdout, stderr)."""
    run, picture = saved(dense, tmp_path / "run"), tmp_path / "picture.png"
    noise(80, 60).save(picture)

    def ask(*options: object, checkpoint: Path = run) -> tuple[int, str, str]:
        where = ("--checkpoint", str(checkpoint))
        status = main(["ground", str(picture), *PHRASES, *where, *map(str, options)])
        return status, *capsys.readouterr()

    return ask


def test_the_command_line_says_what_is_not_found(asked, tmp_path):
    status, printed, _ = asked("--json")
    plain = json.loads(printed)
    assert status == 0
    keys = {"phrase", "box_xyxy", "score", "presence", "rank", "image", "origin"}
    assert {key for one in plain for key in one} == keys
    presences = sorted(one["presence"] for one in plain)
    threshold = (presences[0] + presences[1]) / 2  # one of three is below it
    status, printed, _ = asked("--json", "--threshold", threshold, "--out", tmp_path / "found.png")
    judged = json.loads(printed)
    assert status == 0
    assert [one["found"] for one in judged] == [one["presence"] >= threshold for one in plain]
    assert [{**one, "found": None} for one in judged] == [{**one, "found": None} for one in plain]
    Image.open(tmp_path / "found.png").verify()
    _, printed, _ = asked("--threshold", threshold, "--heatmap", tmp_path / "seen.png")
    Image.open(tmp_path / "seen.png").verify()
    for line, one in zip(printed.splitlines()[1:], judged, strict=True):
        answer = line.removeprefix(f"{one['phrase']}: ")
        missing = f"not found (presence {one['presence']:.2f})"
        assert answer.startswith("box (") if one["found"] else answer == missing
    _, printed, _ = asked()
    assert "not found" not in printed
    for all_or_none, found in ((0, True), (1, False)):
        _, printed, _ = asked("--json", "--threshold", all_or_none)
        assert {one["found"] for one in json.loads(printed)} == {found}


def test_a_threshold_needs_a_model_that_knows_presence_and_a_heatmap_one_that_has_it(
    asked, grounder, tmp_path
):
    other = saved(grounder, tmp_path / "other")
    for flag, value in (("--threshold", 0.5), ("--heatmap", tmp_path / "seen.png")):
        status, printed, error = asked(flag, value, checkpoint=other)
        assert (status, printed, len(error.splitlines())) == (2, "", 1)
        assert flag in error
        assert "clip-hrnet" in error
    for wrong in (1.5, "nan"):
        status, printed, error = asked("--threshold", wrong)
        assert (status, printed) == (2, "")
        assert "[0, 1]" in error


def test_questions_that_cannot_be_answered(grounder, tmp_path):
    with pytest.raises(ValueError, match=r"no image to look at.*set_image"):
        grounder.ground(PHRASES)
    with pytest.raises(DataError, match=r"missing\.jpg"):
        grounder.set_image(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        grounder.set_image(tmp_path / "text.jpg")
    grounder.set_image(noise(64, 64))
    for empty in ("", "   ", ["the red cube", ""]):
        with pytest.raises(ValueError, match="at least one word"):
            grounder.ground(empty)


def test_a_checkpoint_answers_as_the_model_that_was_saved(grounder, tiny_config, tmp_path):
    save_checkpoint(tmp_path / "run" / "checkpoint", grounder.model, {"epoch": 1}, best=True)
    tiny_config.save(tmp_path / "run" / "config.json")
    picture = noise(70, 90)
    loaded = Grounder.load(tmp_path / "run", "cpu")
    assert not loaded.model.training
    assert loaded.config == tiny_config
    assert loaded.set_image(picture).ground(PHRASES) == grounder.set_image(picture).ground(PHRASES)


@pytest.mark.parametrize("door", ["grounder", "detector-clip"])
def test_both_doors_refuse_an_empty_phrase_alike_and_forget_a_picture_that_failed(grounder, tmp_path, door):
    if door == "detector-clip":
        config = preset("scenes", "detector-clip").model
        asked = build_detector_clip(config)
        asked.set_image(noise(64, 64), torch.tensor([[1.0, 2.0, 30.0, 40.0]]))
    else:
        asked = grounder.set_image(noise(64, 64))
    for empty in ("", "   ", ["the red cube", ""]):
        with pytest.raises(DataError, match="at least one word"):
            asked.ground(empty)
    assert len(asked.ground("the red cube")) == 1
    with pytest.raises(DataError):
        asked.set_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match="no image to look at"):
        asked.ground("the red cube")


# many at once, and several boxes a phrase


def close(ones: list[Prediction], others: list[Prediction]) -> bool:
    """Whether they say the same, but for the last bits of sums made in another order."""
    for one, other in zip(ones, others, strict=True):
        assert (one.phrase, one.rank, one.unknown_words) == (other.phrase, other.rank, other.unknown_words)
        assert one.box_xyxy == pytest.approx(other.box_xyxy, abs=1e-2)
        assert (one.score, one.presence) == pytest.approx((other.score, other.presence), abs=1e-4)
        if one.heatmap is not None:
            torch.testing.assert_close(one.heatmap, other.heatmap, atol=1e-4, rtol=0)
    return True


def test_what_is_encoded_is_a_value_that_can_be_asked_about_in_any_order(dense):
    wide, tall = noise(90, 40), noise(40, 90)
    first, second = dense.encode(wide), dense.encode(tall)
    assert close(dense.ground(PHRASES, first), dense.set_image(wide).ground(PHRASES))
    assert close(dense.ground(PHRASES, second), dense.set_image(tall).ground(PHRASES))
    dense.set_image(wide)
    assert close(dense.ground(PHRASES, second), dense.ground(PHRASES, dense.encode(tall)))
    assert close(
        dense.ground(PHRASES), dense.ground(PHRASES, first)
    )  # that set last, whatever was handed over
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.size_wh = (1, 1)


def test_threads_that_hand_over_what_they_encoded_do_not_mix_up_answers(grounder):
    images = [noise(40 + 10 * i, 100 - 10 * i) for i in range(6)]
    expected = [grounder.ground(PHRASES, grounder.encode(image)) for image in images]

    def ask(number: int) -> list[Prediction]:
        grounder.set_image(images[-1 - number])  # of another's: it must not matter
        return grounder.ground(PHRASES, grounder.encode(images[number]))

    with ThreadPoolExecutor(4) as pool:
        for answers, right in zip(pool.map(ask, [*range(6)] * 3), expected * 3, strict=True):
            assert close(answers, right)


@pytest.mark.parametrize("way", ["ground_batch", "_in_batches"])  # the latter is a GPU's
def test_a_batch_answers_as_one_by_one(dense, monkeypatch, way):
    monkeypatch.setattr(predictor, "BATCH_IMAGES", 3)
    monkeypatch.setitem(predictor.PHRASES_AT_ONCE, "cpu", 4)  # chunks that end within images and across them
    images = [noise(90, 40), noise(40, 90), noise(64, 64), noise(200, 1), noise(30, 70)]
    phrases = [PHRASES, [], PHRASES[:1], [f"the {word} cube" for word in ("red", "blue", "big")] * 3, PHRASES]
    batch = getattr(dense, way)(images, phrases, 1)
    assert [len(answers) for answers in batch] == [len(asked) for asked in phrases]
    for image, asked, answers in zip(images, phrases, batch, strict=True):
        assert close(answers, dense.ground(asked, dense.encode(image)))
    assert getattr(dense, way)([], [], 1) == []


def test_the_threads_of_torch_are_shared_out_and_given_back(dense, monkeypatch):
    images, phrases, numbers = [noise(20, 20)] * 3, [["a cube"]] * 3, []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    assert len(dense.ground_batch(images, phrases)) == 3
    assert (set(numbers[:-1]), numbers[-1]) == ({1}, 2)
    numbers.clear()
    dense.ground_batch(images[:1], phrases[:1])
    assert numbers == [2, 2]


def test_a_batch_is_checked_before_the_work(dense, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="2 images, 1 lists"):
        dense.ground_batch([noise(9, 9)] * 2, [PHRASES])
    monkeypatch.setattr(dense.model, "encode_images", None)
    with pytest.raises(DataError, match="phrase 2 of 2"):
        dense.ground_batch([noise(9, 9)] * 2, [PHRASES, ["a cube", " "]])
    with pytest.raises(DataError, match=r"missing\.jpg"):
        dense.ground_batch([tmp_path / "missing.jpg"], [PHRASES])


def test_however_many_phrases_few_are_in_memory_at_once(dense, monkeypatch):
    sizes, forward = [], dense.model.forward
    monkeypatch.setattr(dense.model, "forward", lambda *a: sizes.append(len(a[2])) or forward(*a))
    assert len(dense.set_image(noise(64, 64)).ground(["the red cube"] * 100)) == 100
    assert max(sizes) <= 32
    assert sum(sizes) == 100


@pytest.mark.parametrize("name", ["dense-grounder", "clip-rpn-concat"])
def test_several_boxes_a_phrase_the_answer_first(untrained, tiny_config, name):
    config = set_fields(tiny_config, model__name=name)
    asked = Grounder(untrained(name), config, "cpu").set_image(noise(90, 50))
    best, several = asked.ground(PHRASES), asked.ground(PHRASES, top=4)
    assert close(best, [p for p in several if p.rank == 0])
    assert len(several) > len(best)
    for phrase in PHRASES:
        own = [p for p in several if p.phrase == phrase]
        assert [p.rank for p in own] == list(range(len(own)))
        assert len(own) <= 4
        assert [p.score for p in own] == sorted((p.score for p in own), reverse=True)
        boxes = torch.tensor([p.box_xyxy for p in own])
        assert (box_iou(boxes, boxes).fill_diagonal_(0) <= 0.5).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([90, 50])).all()


def test_a_model_that_weighs_one_box_is_asked_for_no_more(grounder):
    with pytest.raises(ConfigError, match="clip-hrnet has one a phrase"):
        grounder.set_image(noise(9, 9)).ground(PHRASES, top=2)


def test_suppression_keeps_the_answer_and_what_differs_from_it():
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [21, 0, 31, 10], [5, 5, 5, 9]]])
    scores = torch.tensor([[0.2, 0.9, 0.3, 0.4, 0.8]])  # the answer may have less than what comes after it
    (found,) = best_boxes(boxes.float(), scores, top=9)
    assert [box for box, _ in found] == [[0, 0, 10, 10], [21, 0, 31, 10]]
    assert [score for _, score in found] == pytest.approx([0.2, 0.4])


def test_a_model_in_half_precision_is_refused_in_a_line(grounder):
    halved = Grounder(copy.deepcopy(grounder.model).half(), grounder.config, "cpu")
    with pytest.raises(ValueError, match=r"float32 .*float16"):
        halved.set_image(noise(9, 9))


def test_devices_that_are_not_here_are_refused():
    for name in ("gpu", "cuda:99", "tpu:"):
        with pytest.raises(ConfigError, match="device: expected cpu, cuda"):
            find_device(name)
    assert find_device("cpu").type == "cpu"
