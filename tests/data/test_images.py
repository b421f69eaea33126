"""Images as people have them: each is read as a viewer shows it, and a fault is one line with the file."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.data.samples import small_set, write_picture, write_set
from vg_utils.data import DataError, Report, load_examples, load_image
from vg_utils.data.batches import GroundingDataset, make_loader
from vg_utils.data.images import image_size
from vg_utils.data.transforms import EvalTransform
from vg_utils.models.clip import ClipTokenizer

SIDES = 60, 40


def photograph() -> Image.Image:
    """A smooth image whose corners differ, so that a turned one is another, and JPEG changes little."""
    across, down = np.meshgrid(np.linspace(0, 255, SIDES[0]), np.linspace(0, 255, SIDES[1]))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


def differs(one: Image.Image, other: Image.Image) -> float:
    assert one.mode == other.mode == "RGB"
    assert one.size == other.size
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    photograph().save(path, exif=exif, quality=95)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    assert image_size(path) == expected.size == (SIDES if orientation < 5 else SIDES[::-1])
    upright = load_image(path)
    assert differs(upright, expected) == 0
    assert differs(load_image(upright), expected) == 0, "turned once"
    assert differs(load_image(Image.open(path)), expected) == 0
    assert EvalTransform(32)(path).size_wh == expected.size


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("size_wh", [(1, 1), (640, 3), (70, 900)])
def test_the_size_from_the_header_is_that_of_the_pixels(tmp_path, suffix, size_wh):
    path = tmp_path / f"a.{suffix}"
    for options in ({}, {"progressive": True, "comment": b"x" * 6000, "icc_profile": b"y" * 9000}):
        photograph().resize(size_wh).save(path, **options)
        assert image_size(path) == load_image(path).size == size_wh


def test_sixteen_bits_are_scaled(tmp_path):
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tif"):
        Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
        grey = np.asarray(load_image(tmp_path / f"a.{suffix}"))[..., 0]
        assert np.abs(grey.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    floats = Image.fromarray((levels / 65535).astype(np.float32))
    assert np.abs(np.asarray(load_image(floats))[..., 0].astype(int) - grey).max() <= 1
    assert np.asarray(load_image(Image.fromarray(np.full((2, 2), 200, np.int32)))).max() == 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_white(tmp_path, mode):
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[..., 0] = 200  # red, where nobody sees it
    pixels[10:30, 10:30] = (0, 0, 200, 255)
    image = Image.fromarray(pixels)
    image = image.convert("P") if mode == "P" else image.convert("LA" if "A" in mode[1:] else mode)
    image.save(tmp_path / "a.png")
    seen = np.asarray(load_image(tmp_path / "a.png"))
    assert (seen[0, 0] == 255).all()
    assert seen[20, 20, 0] < 60


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("RGB", SIDES, color) for color in ("red", "blue")]
    for suffix in ("gif", "png", "webp", "tif"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert differs(load_image(tmp_path / f"a.{suffix}"), frames[0]) < 3


def test_arrays_tensors_and_file_objects(tmp_path):
    image = photograph()
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    image.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        sources = [array, tensor, tensor / 255, file, io.BytesIO((tmp_path / "a.png").read_bytes())]
        for source in sources:
            assert differs(load_image(source), image) == 0
    assert load_image(array[..., 0]).size == load_image(tensor[:1]).size == SIDES


@pytest.mark.parametrize(
    "source",
    [np.zeros((3, 4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8), 7, None, [[1]]],
)
def test_what_is_no_image_is_said(source):
    with pytest.raises(DataError, match=r"expected .*an image"):
        load_image(source)


def damaged(tmp_path) -> list:
    """Files that make Pillow raise errors of several kinds."""
    content = io.BytesIO()
    photograph().resize((600, 400)).save(content, "PNG")
    png = content.getvalue()
    contents = {
        "cut.png": png[: len(png) // 2],
        "wide.png": png[:16] + b"\x7f\xff\xff\xff" * 2 + png[24:],
        "text.jpg": b"<html>not found</html>",
        "empty.jpg": b"",
        "zero.bmp": b"BM" + bytes(200),
        "short.tif": b"II*\0\x08\0\0\0\xff\xff",
        "short.dds": b"DDS " + b"\x7c\0\0\0" + bytes(200),
        "short.gif": b"GIF89a\x10\0\x10\0\0\0\0,",
        "short.psd": b"8BPS\0\1" + bytes(40),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return [tmp_path / name for name in contents] + [
        tmp_path / "none.jpg",
        tmp_path,
        f"{tmp_path}/{'a' * 999}",
    ]


def test_every_fault_is_one_line_with_the_file(tmp_path):
    for path in damaged(tmp_path):
        for read in (load_image, EvalTransform(32)):
            with pytest.raises(DataError) as error:
                read(path)
            assert str(error.value).startswith(str(path)[:300])
            assert "\n" not in str(error.value)
        with pytest.raises(DataError):
            load_image(io.BytesIO(path.read_bytes()) if path in list(tmp_path.iterdir()) else path)


@pytest.fixture
def root(tmp_path):
    """Two images of train, of which the second does not decode, and one of val with another size."""
    instances, refs = small_set()
    for reference in refs:
        reference["split"] = "train"
    root = write_set(tmp_path, instances, refs)
    whole = (root / "images" / "COCO_train2014_000000000008.jpg").read_bytes()
    (root / "images" / "COCO_train2014_000000000008.jpg").write_bytes(whole[: len(whole) // 2])
    write_picture(root / "images" / "COCO_train2014_000000000009.jpg", (48, 64))
    return root


def test_images_that_cannot_be_used_are_left_out_or_an_error(root):
    report = Report()
    examples = load_examples(root, "train", strict=False, report=report, check_images=True)
    assert [example.image_id for example in examples] == [7]
    assert report.counts == {"image does not decode": 1, "image of another size": 1}
    with pytest.raises(DataError, match=r"COCO_train2014_000000000008\.jpg: expected an image that decodes"):
        load_examples(root, "train", strict=True, check_images=True)


def test_an_image_that_is_gone_later_is_one_line_from_a_worker_too(root):
    examples = [dataclasses.replace(e, size_wh=(64, 48)) for e in load_examples(root, "train")][1:2]
    loader = make_loader(GroundingDataset(examples, EvalTransform(32)), ClipTokenizer(), 1, False, workers=1)
    with pytest.raises(DataError, match=r"^/[^\n]*0008\.jpg: expected an image that decodes[^\n]*$"):
        list(loader)


def test_boxes_of_own_data_are_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph().save(tmp_path / "a.jpg", exif=exif)
    box = [1, 1, 39, 59]  # as high as only the upright image is
    line = {"image": "a.jpg", "expressions": [{"text": "all of it", "box_xyxy": box}]}
    (tmp_path / "val.jsonl").write_text(json.dumps(line))
    (example,) = load_examples(tmp_path, "val", check_images=True)
    assert example.size_wh == SIDES[::-1]
