"""The training-free system with a tiny random CLIP: against loops that encode one crop at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.test_detectors import noise
from vg_utils.boxes import paired_iou
from vg_utils.config import ClipConfig, ConfigError, DetectorClipConfig, ModelConfig
from vg_utils.data.examples import Expression, GroundingExample
from vg_utils.data.transforms import crop_regions
from vg_utils.evaluation.metrics import summarise
from vg_utils.evaluation.rows import make_rows
from vg_utils.evaluation.runs import evaluate_detector
from vg_utils.evaluation.similarity import add_clip_similarity
from vg_utils.models.clip import ClipBackbone, tokenize
from vg_utils.models.detector_clip import DetectorClip, blur_around, build_detector_clip
from vg_utils.models.detectors import SEEN, Oracle

SIZE = 64
CONFIG = ModelConfig(
    image_size=SIZE,
    clip=ClipConfig(name="scenes-rn", weights="random"),
    detector_clip=DetectorClipConfig(detector="oracle", spatial_prior=False),
)
TEXTS = ("the red cube", "a dog on the left", "the dog on the left", "the largest thing", "man in a hat")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return ClipBackbone(CONFIG.clip, SIZE).eval()


def grounder(clip, source=None, **changes) -> DetectorClip:
    config = replace(CONFIG, detector_clip=replace(CONFIG.detector_clip, **changes))
    return DetectorClip(source or Oracle(), clip, config)


def example(i, size_wh=(60, 48), boxes=3):
    """An image of noise with random boxes, one expression for each."""
    generator = torch.Generator().manual_seed(i)
    corner = torch.rand(boxes, 2, generator=generator) * 0.5
    extent = 0.1 + torch.rand(boxes, 2, generator=generator) * 0.4
    side = torch.tensor(size_wh)
    found = torch.cat([corner * side, (corner + extent) * side], dim=1)
    found = tuple(tuple(box) for box in found.tolist())
    names = ("dog", "cat", "car", "unknown")
    expressions = tuple(
        Expression(
            TEXTS[(i + k) % len(TEXTS)], box, sent_id=10 * i + k, ref_id=k, category=names[(i + k) % 4]
        )
        for k, box in enumerate(found)
    )
    return GroundingExample(noise(*size_wh, seed=i), i, expressions, size_wh, found, ("dog",) * boxes)


EXAMPLES = [example(0), example(1, (48, 60), 1), example(2, (64, 20), 4), example(3, boxes=2)]


class Nothing:
    name = "nothing"

    def propose(self, pictures, examples=None):
        return [torch.zeros(0, 4) for _ in pictures]


def unit(vector):
    return vector / vector.norm()


@torch.no_grad()
def text_vector(clip, text):
    return unit(clip.encode_texts(tokenize([text])).pooled[0])


@torch.no_grad()
def crop_vector(clip, picture, box):
    """The vector of one crop, cut here and encoded alone."""
    x1, y1, x2, y2 = (round(v) for v in box)
    crop = picture.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    pixels = torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1)[None].float() / 255
    return unit(clip.encode_images(pixels)[0])


def test_crop_answers_equal_a_loop_over_single_crops(clip):
    answers = grounder(clip).answer_examples(EXAMPLES)
    row, scale = 0, clip.clip.logit_scale.exp()
    for one in EXAMPLES:
        for expression in one.expressions:
            vectors = [crop_vector(clip, one.image, box) for box in one.object_boxes_xyxy]
            cosines = torch.stack([vector @ text_vector(clip, expression.text) for vector in vectors])
            assert answers.boxes_xyxy[row].tolist() == list(one.object_boxes_xyxy[cosines.argmax()])
            expected = (scale * cosines).softmax(0).max().item()
            assert answers.scores[row].item() == pytest.approx(expected, abs=1e-4)
            row += 1
    assert row == len(answers.scores)
    assert (answers.proposal_iou > 0.999).all()  # the oracle proposes every true box


@pytest.mark.parametrize("mode", ["crop+blur", "global-local"])
def test_modes_with_context_equal_their_formulas(clip, mode):
    system, one = grounder(clip, mode=mode), EXAMPLES[0]
    answers = system.answer_examples([one])
    boxes = torch.tensor(one.object_boxes_xyxy)
    blurred = blur_around(one.image, boxes, SIZE, system.config.detector_clip.blur)
    with torch.no_grad():
        contexts = [unit(clip.encode_images(b[None])[0]) for b in blurred]
    crops = [crop_vector(clip, one.image, box) for box in one.object_boxes_xyxy]
    for row, expression in enumerate(one.expressions):
        sentence = text_vector(clip, expression.text)
        head = {"a dog on the left": "a dog", "the dog on the left": "the dog"}.get(
            expression.text, expression.text
        )
        if mode == "crop+blur":
            similarity = [(c @ sentence + b @ sentence) / 2 for c, b in zip(crops, contexts, strict=True)]
        else:
            text = unit(0.5 * sentence + 0.5 * text_vector(clip, head))
            visual = [unit(0.85 * b + 0.15 * c) for c, b in zip(crops, contexts, strict=True)]
            similarity = [v @ text for v in visual]
        expected = (clip.clip.logit_scale.exp() * torch.stack(similarity)).softmax(0)
        assert answers.boxes_xyxy[row].tolist() == list(one.object_boxes_xyxy[expected.argmax()])
        assert answers.scores[row].item() == pytest.approx(expected.max().item(), abs=1e-4)


@pytest.mark.parametrize("mode", ["crop", "crop+blur", "global-local"])
def test_a_batch_of_pictures_equals_one_by_one_and_two_calls(clip, mode):
    system = grounder(clip, mode=mode, spatial_prior=True)
    together = system.answer_examples(EXAMPLES)
    alone = [system.answer_examples([one]) for one in EXAMPLES]
    for field in ("boxes_xyxy", "scores", "proposal_iou"):
        parts = torch.cat([getattr(answer, field) for answer in alone])
        torch.testing.assert_close(getattr(together, field), parts, atol=1e-4, rtol=1e-4)
    asked = []
    for one in EXAMPLES:
        system.set_image(one.image, torch.tensor(one.object_boxes_xyxy))
        asked += system.ground([expression.text for expression in one.expressions])
    assert [p.box_xyxy for p in asked] == [tuple(box) for box in together.boxes_xyxy.tolist()]
    assert [p.score for p in asked] == pytest.approx(together.scores.tolist(), abs=1e-4)


def test_all_proposals_of_a_batch_go_through_clip_in_one_call(clip, monkeypatch):
    calls = []
    encode = clip.encode_images
    monkeypatch.setattr(clip, "encode_images", lambda images: (calls.append(len(images)), encode(images))[1])
    grounder(clip, mode="crop+blur").answer_examples(EXAMPLES)
    assert calls == [2 * sum(len(one.object_boxes_xyxy) for one in EXAMPLES)]
    calls.clear()
    monkeypatch.setattr("vg_utils.models.backbones.ENCODED_AT_ONCE", 4)
    bounded = grounder(clip).answer_examples(EXAMPLES)
    assert calls == [4, 4, 2]
    monkeypatch.undo()
    torch.testing.assert_close(bounded.scores, grounder(clip).answer_examples(EXAMPLES).scores)


@pytest.mark.parametrize("mode", ["crop", "global-local"])
def test_no_proposal_gives_the_whole_picture(clip, mode):
    system = grounder(clip, Nothing(), mode=mode, spatial_prior=True)
    prediction = system.set_image(noise(37, 21)).ground("the dog on the left")[0]
    assert prediction.box_xyxy == (0, 0, 37, 21)
    assert prediction.score == 0
    answers = system.answer_examples(EXAMPLES)
    expected = torch.tensor([[0, 0, *one.size_wh] for one in EXAMPLES for _ in one.expressions]).float()
    assert torch.equal(answers.boxes_xyxy, expected)
    truth = torch.tensor([x.box_xyxy for one in EXAMPLES for x in one.expressions])
    torch.testing.assert_close(answers.proposal_iou, paired_iou(expected, truth))


@pytest.mark.parametrize("mode", ["crop", "crop+blur", "global-local"])
@pytest.mark.parametrize(
    "picture",
    [noise(40, 30, "L"), noise(90, 1), noise(6000, 40), noise(30, 20, "RGBA"), noise(1, 1)],
    ids=["grey", "one pixel high", "6000 wide", "transparent", "one pixel"],
)
def test_strange_pictures(clip, mode, picture):
    width, height = picture.size
    boxes = torch.tensor([[0, 0, width, height], [0, 0, width / 2, height], [width / 3, 0, width, 0.5]])
    predictions = grounder(clip, mode=mode).set_image(picture, boxes).ground(["a cube", "the left ball"])
    for prediction in predictions:
        assert list(prediction.box_xyxy) in boxes.tolist()
        assert 1 / 3 <= prediction.score <= 1


# Six tiles of one content in an image of 90 x 60: to CLIP all crops are the same.
TILES = torch.tensor(
    [[0, 0, 20, 20], [35, 0, 55, 20], [70, 0, 90, 20], [0, 40, 20, 60], [36, 22, 54, 38], [65, 35, 90, 60]]
).float()


@pytest.mark.parametrize(
    ("phrase", "tile"),
    [
        ("the square in the middle", 4),
        ("the largest square", 5),
        ("the smaller square", 4),
        ("the square in the top left corner", 0),
        ("the square in the bottom left", 3),
        ("the upper right square", 2),
        ("the bottom right square", 5),
    ],
)
def test_the_spatial_prior_picks_among_equals_and_can_be_switched_off(clip, phrase, tile):
    picture = Image.new("RGB", (90, 60), (200, 40, 40))
    on = grounder(clip, spatial_prior=True).set_image(picture, TILES)
    chosen = on.ground(phrase)[0]
    assert list(chosen.box_xyxy) == TILES[tile].tolist()
    off = grounder(clip, spatial_prior=False).set_image(picture, TILES)
    assert off.ground(phrase)[0].score == pytest.approx(1 / 6, abs=1e-4)
    weightless = grounder(clip, spatial_prior=True, spatial_weight=0.0).set_image(picture, TILES)
    assert weightless.ground(phrase)[0].score == pytest.approx(1 / 6, abs=1e-4)


def test_left_and_right_among_two_equals(clip):
    system = grounder(clip, spatial_prior=True).set_image(Image.new("RGB", (90, 60)), TILES[[2, 0]])
    boxes = [
        p.box_xyxy[0] for p in system.ground(["the left square", "the right square", "square on the left"])
    ]
    assert boxes == [0, 70, 0]


def test_blur_keeps_the_proposal_and_only_it():
    picture = noise(80, 40)
    boxes = torch.tensor([[10.0, 5, 50, 35], [0, 0, 80, 40], [79, 39, 80, 40]])
    views = blur_around(picture, boxes, 80, blur=0.1)
    sharp = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    top = 20  # where an 80 x 40 image starts in the square of 80
    assert torch.equal(views[0][:, top + 5 : top + 35, 10:50], sharp[:, 5:35, 10:50])
    assert torch.equal(views[1][:, top : top + 40], sharp)
    assert torch.equal(views[2][:, top + 39, 79], sharp[:, 39, 79])
    outside = torch.ones(80, 80, dtype=torch.bool)
    outside[top + 5 : top + 35, 10:50] = False
    outside[top + 39, 79] = False  # sharp in the third view
    assert torch.equal(views[0][:, outside], views[2][:, outside])
    assert views[0][:, outside].float().std() < 0.3 * sharp.float().std()  # noise, averaged away
    assert blur_around(picture, boxes[:0], 80, 0.1).shape == (0, 3, 80, 80)


def test_the_blur_is_a_gaussian():
    picture = Image.fromarray(
        np.uint8([[255 * (x == y == 16) for x in range(33)] for y in range(33)])
    ).convert("RGB")
    view = blur_around(picture, torch.tensor([[0.0, 0, 1, 1]]), 33, blur=1 / 33)[0, 0].float()
    assert view[16, 16].item() == pytest.approx(255 / (2 * np.pi), abs=1)  # standard deviation 1
    assert view[16, 17].item() == pytest.approx(255 / (2 * np.pi) * np.exp(-0.5), abs=1)


def test_evaluation_reports_the_ceiling_beside_the_accuracy(clip):
    rows, results, _ = evaluate_detector(grounder(clip), EXAMPLES, "made", "test")
    assert results["model"] == "detector-clip"
    assert results["n_expressions"] == 10
    assert results["proposal_recall@all"] == 1.0
    assert results["acc@0.5"] <= results["proposal_recall@all"]
    assert results["proposals"] == "oracle"
    assert "note" not in results
    assert rows["text_similarity"].notna().all()
    unfit = grounder(clip, Nothing(), detector="x")
    nothing = evaluate_detector(unfit, EXAMPLES, "made", "test", similarity=False).results
    assert nothing["proposal_recall@all"] == nothing["acc@0.5"]
    assert nothing["note"] == SEEN  # the config says COCO's weights


def test_category_recall_and_similarities_equal_an_independent_loop(clip):
    answers = grounder(clip, Nothing()).answer_examples(EXAMPLES)
    shifted = answers.boxes_xyxy * torch.tensor([0.2, 0.3, 0.7, 0.9])
    rows = add_clip_similarity(make_rows(EXAMPLES, shifted, answers.scores), EXAMPLES, clip, "cpu")
    categories = {name: text_vector(clip, f"a photo of a {name}") for name in ("car", "cat", "dog")}
    row, hits = 0, []
    for one in EXAMPLES:
        for expression in one.expressions:
            found = crop_vector(clip, one.image, shifted[row].tolist())
            wanted = crop_vector(clip, one.image, expression.box_xyxy)
            line = rows.iloc[row]
            phrase = text_vector(clip, expression.text)
            assert line["text_similarity"] == pytest.approx((found @ phrase).item(), abs=1e-4)
            assert line["semantic_similarity"] == pytest.approx((found @ wanted).item(), abs=1e-4)
            named = max(categories, key=lambda name: (found @ categories[name]).item())
            if expression.category == "unknown":
                assert rows["category_hit"].isna().iloc[row]
            else:
                assert bool(line["category_hit"]) == (named == expression.category)
                hits.append(named == expression.category)
            row += 1
    assert 0 < sum(hits) < len(hits)
    assert summarise(rows)["category_recall"] == pytest.approx(sum(hits) / len(hits))


def test_what_cannot_be_asked(clip):
    system = grounder(clip)
    with pytest.raises(ValueError, match="call set_image"):
        system.ground("a dog")
    with pytest.raises(ConfigError, match="oracle"):
        system.set_image(noise(9, 9))
    system.set_image(noise(9, 9), torch.tensor([[0.0, 0, 4, 4]]))
    with pytest.raises(ValueError, match="at least one word"):
        system.ground(["a dog", "  "])
    assert system.ground([]) == []


def test_built_from_the_config():
    config = replace(CONFIG, detector_clip=replace(CONFIG.detector_clip, mode="global-local"))
    system = build_detector_clip(config, "cpu")
    assert system.source.name == "oracle"
    assert not system.clip.training


def test_crops_are_those_of_the_metrics(clip):
    picture, box = EXAMPLES[0].image, EXAMPLES[0].object_boxes_xyxy[:1]
    with torch.no_grad():
        whole = unit(clip.encode_images(crop_regions(picture, box, SIZE))[0])
    torch.testing.assert_close(crop_vector(clip, picture, box[0]), whole, atol=1e-5, rtol=1e-5)
