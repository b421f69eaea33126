"""Decoding at a reduced scale, the letterbox, and augmentation that never loses a target."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vg_utils.boxes import boxes_to_image, boxes_to_model, letterbox, letterbox_size, to_xyxy
from vg_utils.data.examples import DataError
from vg_utils.data.transforms import (
    PADDING_RGB,
    EvalTransform,
    TrainTransform,
    change_colors,
    decode,
    random_colors,
)

PHOTOS = Path(__file__).parents[2].parent / "shared" / "refcocog_photos" / "images"
PLAIN = {"flip": 0.0, "jitter": 0.0, "scale": (1.0, 1.0), "translate": 0.0}  # no augmentation at all
SIZE = 96


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_picture(size_wh, seed=0):
    """An image of soft blobs, like a photograph in that neighbouring pixels resemble each other."""
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size_wh, Image.Resampling.BICUBIC)


def picture_with_rectangle(size_wh, box_xyxy, colour=(250, 20, 20)):
    picture = Image.new("RGB", size_wh, (20, 60, 200))
    picture.paste(colour, tuple(int(v) for v in box_xyxy))
    return picture


def random_case(seed):
    """An image of any proportions, and one to three boxes of which the first is painted red."""
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in np.exp(rng.uniform(np.log(40), np.log(500), 2)))
    corners = []
    for _ in range(int(rng.integers(1, 4))):
        x1, y1 = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
        corners.append(
            [x1, y1, int(rng.integers(x1 + 12, width + 1)), int(rng.integers(y1 + 12, height + 1))]
        )
    picture = picture_with_rectangle((width, height), corners[0])
    return picture, torch.tensor(corners, dtype=torch.float32)


def corners_in_square(view, size=SIZE):
    return to_xyxy(boxes_to_model(view.boxes_xyxy, view.letterbox, size)) * size


# --- letterbox ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size_wh", [(64, 48), (48, 64), (96, 96), (1, 300), (300, 1), (6000, 40), (1, 1)])
def test_eval_transform_draws_where_the_letterbox_says(size_wh):
    view = EvalTransform(SIZE)(Image.new("RGB", size_wh, (10, 200, 30)))
    assert view.image.shape == (3, SIZE, SIZE)
    assert view.image.dtype == torch.uint8
    assert torch.equal(view.letterbox, letterbox(size_wh, SIZE))
    width, height = letterbox_size(size_wh, SIZE)
    left, top = (int(v) for v in view.letterbox[2:])
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    colour, padding = torch.tensor([10, 200, 30]), torch.tensor(PADDING_RGB)
    assert (view.image[:, inside] == colour[:, None]).all()
    assert (view.image[:, ~inside] == padding[:, None]).all()


def test_eval_transform_leaves_boxes_and_texts_alone():
    boxes_xyxy = torch.tensor([[3.0, 4.0, 50.0, 40.0]])
    view = EvalTransform(SIZE)(smooth_picture((64, 48)), boxes_xyxy, ["the left sign"])
    assert torch.equal(view.boxes_xyxy, boxes_xyxy)
    assert view.texts == ["the left sign"]
    assert view.size_wh == (64, 48)
    assert EvalTransform(SIZE)(smooth_picture((64, 48))).boxes_xyxy.shape == (0, 4)


def test_training_without_augmentation_is_the_letterbox():
    for size_wh in [(64, 48), (61, 97), (500, 1), (300, 211)]:
        picture, boxes_xyxy = smooth_picture(size_wh), torch.tensor([[0.0, 0.0, size_wh[0], size_wh[1]]])
        trained = TrainTransform(SIZE, **PLAIN)(picture, boxes_xyxy, ["all"], seeded())
        plain = EvalTransform(SIZE)(picture)
        assert torch.equal(trained.letterbox, plain.letterbox)
        assert torch.equal(trained.image, plain.image)


# --- augmentation ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_targets_stay_inside_and_the_picture_follows_them(seed):
    picture, boxes_xyxy = random_case(seed)
    texts = ["the red thing on the left"] * len(boxes_xyxy)
    transform = TrainTransform(SIZE, jitter=0.0, scale=(0.5, 3.0), translate=0.4)
    view = transform(picture, boxes_xyxy, texts, seeded(seed))

    corners = corners_in_square(view)
    assert corners.min() >= -1e-3
    assert corners.max() <= SIZE + 1e-3
    back = boxes_to_image(boxes_to_model(view.boxes_xyxy, view.letterbox, SIZE), view.letterbox, SIZE)
    assert (back - view.boxes_xyxy).abs().max() < 0.5  # pixels of the original

    # The painted target covers its box, but for a blurred rim, and nothing else is painted.
    red = (view.image[0] > 200) & (view.image[2] < 100)
    x1, y1, x2, y2 = corners[0].tolist()
    assert red[math.ceil(y1) + 1 : math.floor(y2) - 1, math.ceil(x1) + 1 : math.floor(x2) - 1].all()
    red[max(math.floor(y1) - 1, 0) : math.ceil(y2) + 1, max(math.floor(x1) - 1, 0) : math.ceil(x2) + 1] = (
        False
    )
    assert not red.any()


def test_augmentation_varies_and_uses_its_ranges():
    picture, boxes_xyxy = smooth_picture((200, 150)), torch.tensor([[90.0, 60.0, 110.0, 80.0]])
    transform = TrainTransform(SIZE)
    views = [transform(picture, boxes_xyxy, ["left"], seeded(seed)) for seed in range(300)]
    zooms = torch.stack([view.letterbox[0] for view in views]) / (SIZE / 200)
    assert zooms.min() == pytest.approx(0.7, abs=0.05)
    assert zooms.max() == pytest.approx(1.4, abs=0.05)
    assert {view.texts[0] for view in views} == {"left", "right"}
    assert 100 < sum(view.texts == ["right"] for view in views) < 200
    shifts = torch.stack([view.letterbox[2] for view in views]) - (SIZE - 200 * zooms * SIZE / 200) / 2
    assert shifts.max() > 8
    assert shifts.min() < -8
    assert shifts.abs().max() <= 0.1 * SIZE + 1


def test_the_generator_decides_everything():
    picture, boxes_xyxy = random_case(5)
    texts = ["left"] * len(boxes_xyxy)
    transform = TrainTransform(SIZE)
    once, again, other = (transform(picture, boxes_xyxy, texts, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(once.image, again.image)
    assert torch.equal(once.letterbox, again.letterbox)
    assert not torch.equal(once.image, other.image)


def test_a_zoom_in_stops_at_the_targets():
    boxes_xyxy = torch.tensor([[0.0, 0.0, 20.0, 20.0], [180.0, 130.0, 200.0, 150.0]])  # opposite corners
    transform = TrainTransform(SIZE, scale=(3.0, 3.0), translate=0.4)
    view = transform(smooth_picture((200, 150)), boxes_xyxy, ["a", "b"], seeded())
    assert view.letterbox[0] == pytest.approx(SIZE / 200, rel=0.01)


def test_a_box_that_overhangs_by_a_pixel_is_no_obstacle():
    boxes_xyxy = torch.tensor([[-0.9, -0.9, 200.9, 150.9]])
    for seed in range(20):
        view = TrainTransform(SIZE)(smooth_picture((200, 150)), boxes_xyxy, ["all"], seeded(seed))
        corners = corners_in_square(view)
        assert corners.min() > -1
        assert corners.max() < SIZE + 1


def test_no_boxes_keeps_the_whole_picture():
    view = TrainTransform(SIZE, scale=(2.0, 2.0))(smooth_picture((200, 150)), torch.zeros(0, 4), [], seeded())
    assert view.letterbox[0] == pytest.approx(SIZE / 200, rel=0.01)


@pytest.mark.parametrize("size_wh", [(1, 300), (300, 1), (6000, 40), (1, 1)])
def test_training_on_extreme_pictures(size_wh):
    boxes_xyxy = torch.tensor([[0.0, 0.0, size_wh[0], size_wh[1]]])
    for seed in range(10):
        view = TrainTransform(SIZE)(Image.new("RGB", size_wh), boxes_xyxy, ["all"], seeded(seed))
        corners = corners_in_square(view)
        assert corners.min() >= -1e-3
        assert corners.max() <= SIZE + 1e-3


def test_colours_change_and_the_padding_does_not():
    transform = TrainTransform(SIZE, **{**PLAIN, "jitter": 0.4})
    picture, boxes_xyxy = smooth_picture((200, 100)), torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    view = transform(picture, boxes_xyxy, ["a"], seeded(3))
    plain = EvalTransform(SIZE)(picture)
    assert (view.image[:, 30:60].float() - plain.image[:, 30:60].float()).abs().mean() > 3
    assert torch.equal(view.image[:, :20], plain.image[:, :20])


def test_other_colours_are_a_turn_of_the_wheel_and_a_fading():
    colors = random_colors(600, seeded(2))
    grey = torch.full((3,), 0.4)
    torch.testing.assert_close(colors @ grey, grey.expand(600, 3))
    turned = colors @ torch.tensor([0.6, 0.4, 0.2])
    torch.testing.assert_close(turned.mean(1), torch.full((600,), 0.4))  # as light as it was
    distance = (turned - 0.4).norm(dim=1) / math.sqrt(0.08)  # from grey, as a share of what it was
    assert distance.max() <= 1 + 1e-5
    assert 0.25 < (distance < 1e-5).float().mean() < 0.42
    red, green, blue = turned[distance > 0.1].T
    hues = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
    assert torch.histc(hues, bins=8, min=-math.pi, max=math.pi).min() > 20
    picture = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(change_colors(picture, torch.eye(3)), picture)
    assert change_colors(picture, 9 * colors[:2]).max() == 1


def test_a_picture_in_other_colours_is_otherwise_the_same_view():
    picture, boxes_xyxy = smooth_picture((200, 100)), torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    transform, greys = TrainTransform(SIZE, recolor=1.0), torch.full((3, 3), 1 / 3)
    plain, view = (transform(picture, boxes_xyxy, ["a"], seeded(3), colors) for colors in (None, greys))
    assert torch.equal(view.letterbox, plain.letterbox)
    padding = (plain.image == torch.tensor(PADDING_RGB).view(3, 1, 1)).all(0)
    assert padding.any()
    assert torch.equal(view.image[:, padding], plain.image[:, padding])
    inside, original = view.image[:, ~padding].float(), plain.image[:, ~padding].float()
    assert (inside == inside[0]).all()
    assert (original.amax(0) - original.amin(0)).max() > 20
    torch.testing.assert_close(inside[0], original.mean(0), atol=1.5, rtol=0)


# --- mirror image ------------------------------------------------------------------------------


def test_a_flip_mirrors_picture_boxes_and_phrases():
    picture = picture_with_rectangle((SIZE, SIZE), (10, 20, 40, 50))
    boxes_xyxy = torch.tensor([[10.0, 20.0, 40.0, 50.0]])
    transform = TrainTransform(SIZE, **{**PLAIN, "flip": 1.0})
    once = transform(picture, boxes_xyxy, ["the bright box on the left"], seeded())
    assert once.boxes_xyxy.tolist() == [[56, 20, 86, 50]]
    assert once.texts == ["the bright box on the right"]
    assert (once.image[0, 20:50, 56:86] == 250).all()
    assert (once.image[0] == 250).sum() == 30 * 30

    mirrored = Image.fromarray(once.image.permute(1, 2, 0).numpy())
    twice = transform(mirrored, once.boxes_xyxy, once.texts, seeded())
    assert torch.equal(twice.image, EvalTransform(SIZE)(picture).image)
    assert torch.equal(twice.boxes_xyxy, boxes_xyxy)
    assert twice.texts == ["the bright box on the left"]


def test_one_phrase_that_cannot_be_mirrored_keeps_the_picture():
    picture, boxes_xyxy = smooth_picture((64, 48)), torch.tensor([[1.0, 1.0, 9.0, 9.0]] * 2)
    texts = ["the left dog", "the sign that says stop"]
    view = TrainTransform(SIZE, **{**PLAIN, "flip": 1.0})(picture, boxes_xyxy, texts, seeded())
    assert view.texts == texts
    assert torch.equal(view.boxes_xyxy, boxes_xyxy)
    assert torch.equal(view.image, EvalTransform(SIZE)(picture).image)


# --- decoding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    picture = smooth_picture((50, 40)).convert(mode)
    file = tmp_path / ("a.jpg" if mode in ("L", "CMYK") else "a.png")
    picture.save(file)
    for source in (picture, file, str(file)):
        decoded = decode(source, 32)
        assert decoded.picture.mode == "RGB"
        assert decoded.size_wh == (50, 40)
        assert EvalTransform(32)(source).image.shape == (3, 32, 32)


def test_a_turned_jpeg_is_drawn_upright_also_at_a_reduced_scale(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by a quarter to see it upright"
    upright = picture_with_rectangle((400, 800), (0, 0, 400, 400))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert decode(tmp_path / "a.jpg", SIZE).shrink > 1
    view, plain = EvalTransform(SIZE)(tmp_path / "a.jpg"), EvalTransform(SIZE)(upright)
    assert view.size_wh == (400, 800)
    assert torch.equal(view.letterbox, plain.letterbox)
    assert (view.image.float() - plain.image.float()).abs().mean() < 2  # grey levels


def test_a_damaged_file_is_named(tmp_path):
    content = io.BytesIO()
    smooth_picture((300, 200)).save(content, "JPEG")
    for name, data in {
        "cut.jpg": content.getvalue()[:900],
        "text.jpg": b"<html>not found</html>",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            EvalTransform(SIZE)(tmp_path / name)
    with pytest.raises(DataError, match=r"no such file"):
        EvalTransform(SIZE)(tmp_path / "absent.jpg")


@pytest.mark.parametrize("size_wh", [(641, 479), (1001, 333), (6000, 40), (40, 6001)])
def test_a_reduced_decode_is_drawn_in_the_same_place(size_wh, tmp_path):
    width, height = size_wh
    box = (width // 4, height // 4, width // 2, height // 2)
    picture_with_rectangle(size_wh, box).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert decode(tmp_path / "a.jpg", SIZE).shrink > 1 or min(size_wh) == 40
    full = EvalTransform(SIZE)(Image.open(tmp_path / "a.jpg"))
    reduced = EvalTransform(SIZE)(tmp_path / "a.jpg")
    assert torch.equal(full.letterbox, reduced.letterbox)
    assert (full.image.float() - reduced.image.float()).abs().mean() < 2  # grey levels


def test_shrink_leaves_enough_pixels(tmp_path):
    smooth_picture((640, 480)).save(tmp_path / "a.jpg")
    for size, shrink in [(448, 1), (320, 1), (224, 2), (112, 4), (32, 8)]:
        decoded = decode(tmp_path / "a.jpg", size)
        assert decoded.shrink == shrink
        assert decoded.size_wh == (640, 480)
        assert decoded.picture.size == (640 // shrink, 480 // shrink)
        assert shrink == 1 or decoded.picture.width >= 1.4 * size


def test_reduced_decode_of_photographs_is_close_to_the_full_one():
    files = sorted(PHOTOS.glob("*.jpg"))[:20]
    if not files:
        pytest.skip(f"needs the photographs in {PHOTOS}, found none")
    differences = []
    for file in files:
        full = EvalTransform(224)(Image.open(file)).image
        differences.append((full.float() - EvalTransform(224)(file).image.float()).abs().mean().item())
    assert np.mean(differences) < 2  # grey levels of 256
    assert max(differences) < 3
