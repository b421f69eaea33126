"""Images that stay on the device: the files' batches to the bit, and boxes that follow the image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image, ImageDraw

from tests.tiny import TOKENIZER, wide_example
from vg_utils.boxes import boxes_to_model, to_xyxy
from vg_utils.data import load_examples
from vg_utils.data.batches import Batch, GroundingDataset, make_loader
from vg_utils.data.examples import AbsentPhrase, DataError, Expression, GroundingExample
from vg_utils.data.resident import ResidentPictures
from vg_utils.data.text import names_color, swap_left_right
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.models.clip import tokenize

SIZE = 64


@pytest.fixture(scope="module")
def examples(tiny_scenes) -> list[GroundingExample]:
    """Squares of RefScenes with absent phrases, one wide and one high image."""
    scenes = load_examples(str(tiny_scenes), "train", None, False)[:6]
    wide = wide_example()
    high = GroundingExample(
        Image.effect_noise((31, 90), 50).convert("RGB"),
        8,
        (Expression("the sign that says left", (3.0, 10.0, 20.0, 80.0), 80, 3),),
        (31, 90),
    )
    return [*scenes[:3], wide, high, *scenes[3:]]


@pytest.fixture(scope="module")
def resident(examples) -> ResidentPictures:
    return ResidentPictures(examples, SIZE, TOKENIZER, "cpu")


def augmented(resident: ResidentPictures, epoch: int = 0, batch_images: int = 4, **settings) -> list[Batch]:
    transform = TrainTransform(SIZE, **settings)
    loader = resident.loader(batch_images, transform, shuffle=True, seed=3, absent=None)
    loader.set_epoch(epoch)
    return list(loader)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    for field in dataclasses.fields(Batch):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "tokens":  # the mirrored twin of a phrase may be longer
            length = theirs.shape[1]
            assert not mine[:, length:].any()
            mine = mine[:, :length]
        if isinstance(theirs, torch.Tensor):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0, msg=field.name)
        else:
            assert mine == theirs, field.name


# --- plain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [0, None])
@pytest.mark.parametrize("shuffle", [False, True])
def test_plain_batches_are_those_of_the_files(examples, resident, absent, shuffle):
    plain = EvalTransform(SIZE)
    files = make_loader(
        GroundingDataset(examples, plain, absent=absent), TOKENIZER, 3, shuffle=shuffle, seed=5
    )
    held = resident.loader(3, plain, shuffle=shuffle, seed=5, absent=absent)
    for epoch in (0, 1):
        files.set_epoch(epoch)
        held.set_epoch(epoch)
        expected, found = list(files), list(held)
        assert len(found) == len(expected) == len(held) == 3
        for mine, theirs in zip(found, expected, strict=True):
            assert_same_batch(mine, theirs)
    no_box = sum(int((batch.target_boxes_cxcywh[:, 2] == 0).sum()) for batch in found)
    assert no_box == (0 if absent == 0 else sum(len(example.absent) for example in examples))


def test_a_last_short_batch_can_be_left_out(resident):
    for drop_last, sizes in ((False, [3, 3, 2]), (True, [3, 3])):
        loader = resident.loader(3, EvalTransform(SIZE), shuffle=False, drop_last=drop_last)
        assert [len(batch.images) for batch in loader] == sizes


def test_a_picture_of_another_size_than_its_record_says_is_an_error():
    example = dataclasses.replace(wide_example(), size_wh=(121, 51))
    with pytest.raises(DataError, match=r"image 7.*expected an image of \(121, 51\).*got \(120, 50\)"):
        ResidentPictures([example], SIZE, TOKENIZER, "cpu")


# --- random ------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_epoch(resident):
    first = augmented(resident, 1)
    torch.rand(10)
    for mine, theirs in zip(augmented(resident, 1), first, strict=True):
        assert_same_batch(mine, theirs)
    other = augmented(resident, 2)
    assert [b.image_ids for b in other] != [b.image_ids for b in first]
    loader = resident.loader(8, TrainTransform(SIZE), shuffle=False, seed=3)
    views = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        views.append(next(iter(loader)))
    assert views[0].image_ids == views[1].image_ids
    assert not torch.allclose(views[0].images, views[1].images, atol=1e-2)
    assert not torch.allclose(views[0].letterboxes, views[1].letterboxes)
    seeds = [next(iter(resident.loader(8, TrainTransform(SIZE), shuffle=False, seed=s))) for s in (3, 4)]
    assert_same_batch(seeds[0], views[0])
    assert not torch.allclose(seeds[1].letterboxes, seeds[0].letterboxes)


def flat_example(number: int, size_wh: tuple[int, int], box: tuple[int, int, int, int]) -> GroundingExample:
    """A magenta block on green."""
    picture = Image.new("RGB", size_wh, (30, 160, 60))
    x1, y1, x2, y2 = box
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(250, 10, 240))
    expression = Expression("the block on the left", tuple(map(float, box)), number, number)
    absent = (AbsentPhrase("the left ball", 100 + number),)
    return GroundingExample(picture, number, (expression,), size_wh, absent=absent)


def test_boxes_follow_the_picture_wherever_it_goes():
    places = [((128, 128), (10, 20, 50, 100)), ((200, 90), (120, 8, 190, 60)), ((70, 160), (5, 90, 40, 155))]
    places += [((128, 128), (0, 0, 128, 40)), ((101, 57), (60, 20, 100, 57))]
    examples = [flat_example(i, *place) for i, place in enumerate(places)]
    resident = ResidentPictures(examples, SIZE, TOKENIZER, "cpu")
    zooms, flips, moved = [], 0, 0
    for epoch in range(12):
        for batch in augmented(resident, epoch, 5, jitter=0.0, scale=(0.6, 1.8), translate=0.2):
            assert batch.images.is_floating_point()
            assert ((batch.images >= 0) & (batch.images <= 1)).all()
            there = batch.target_boxes_cxcywh[:, 2] > 0
            assert (~there).sum() == len(batch.images)
            assert not batch.target_boxes_cxcywh[~there].any()
            assert not batch.target_boxes_xyxy[~there].any()
            corners = to_xyxy(batch.target_boxes_cxcywh[there]) * SIZE
            assert ((corners > -1e-3) & (corners < SIZE + 1e-3)).all()
            for image, box in zip(batch.images, corners.tolist(), strict=True):
                red, green, blue = image
                block = (red > 0.5) & (green < 0.35) & (blue > 0.5)
                rows, columns = block.any(1).nonzero().flatten(), block.any(0).nonzero().flatten()
                seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert [float(v) for v in seen] == pytest.approx(box, abs=2.0)
            of_row = batch.letterboxes[batch.image_index]
            by_letterbox = boxes_to_model(batch.target_boxes_xyxy, of_row, SIZE)[there]
            torch.testing.assert_close(by_letterbox, batch.target_boxes_cxcywh[there], atol=1e-5, rtol=0)
            plain = resident.pictures.letterboxes[batch.image_ids]
            zooms += (batch.letterboxes[:, 0] / plain[:, 0]).tolist()
            moved += int((batch.letterboxes[:, 2:] != plain[:, 2:]).any(1).sum())
            flips += sum("right" in text for text in batch.texts)
    assert min(zooms) < 0.7
    assert max(zooms) > 1.3
    assert moved > 50
    assert 60 * 2 * 0.3 < flips < 60 * 2 * 0.7


def test_a_flip_swaps_left_and_right_in_texts_and_tokens_and_some_pictures_are_never_flipped(resident):
    original = dict(zip(resident.phrases.sent_ids, resident.phrases.texts, strict=True))
    flipped = {image_id: 0 for image_id in resident.pictures.image_ids}
    for epoch in range(8):
        for batch in augmented(resident, epoch, flip=0.6):
            tokens = tokenize(batch.texts, trim=True)
            assert torch.equal(batch.tokens[:, : tokens.shape[1]], tokens)
            assert not batch.tokens[:, tokens.shape[1] :].any()
            plain = dict(zip(resident.phrases.sent_ids, resident.phrases.boxes_xyxy.tolist(), strict=True))
            for number, image_id in enumerate(batch.image_ids):
                rows = (batch.image_index == number).nonzero().flatten().tolist()
                was = [original[batch.sent_ids[row]] for row in rows]
                texts = [batch.texts[row] for row in rows]
                width = int(batch.sizes_wh[number, 0])
                boxes = torch.tensor([plain[batch.sent_ids[row]] for row in rows])
                there = boxes.any(1)
                turned = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
                turned = torch.where(there[:, None], turned, 0.0)
                found = batch.target_boxes_xyxy[rows]
                mirrored = not torch.allclose(found, boxes)
                torch.testing.assert_close(found, turned if mirrored else boxes)
                assert texts == ([swap_left_right(text) for text in was] if mirrored else was)
                flipped[image_id] += mirrored
    assert flipped[8] == 0  # a sign that says left
    assert not resident.pictures.can_mirror[resident.pictures.image_ids.index(8)]
    assert all(count > 0 for image_id, count in flipped.items() if image_id != 8)
    assert not any("right" in text for batch in augmented(resident.first(4), flip=0.0) for text in batch.texts
                   if text not in original.values())  # fmt: skip


def test_colours_jitter_about_what_they_were(resident):
    still = {"flip": 0.0, "scale": (1.0, 1.0), "translate": 0.0}
    loader = {jitter: resident.loader(8, TrainTransform(SIZE, jitter=jitter, **still), False, seed=1)
              for jitter in (0.0, 0.3)}  # fmt: skip
    plain, jittered = (next(iter(some)).images for some in loader.values())
    torch.testing.assert_close(plain, resident.pictures.images.float() / 255, atol=2e-3, rtol=0)
    change = (jittered - plain).abs().mean((1, 2, 3))
    assert (change > 1e-3).all()
    assert change.max() < 0.3


def test_pictures_in_other_colours_have_phrases_that_name_none(resident):
    still = {"flip": 0.0, "scale": (1.0, 1.0), "translate": 0.0, "jitter": 0.0}
    shown = {batch.image_ids[0]: batch for batch in augmented(resident, batch_images=1, **still)}
    seen = {True: 0, False: 0}
    for batch in augmented(resident, batch_images=1, recolor=1.0, **still):
        plain = shown[batch.image_ids[0]]
        can = resident.pictures.can_recolor[resident.pictures.image_ids.index(batch.image_ids[0])].item()
        assert batch.texts == [text for text in plain.texts if not (can and names_color(text))]
        grey = (batch.images.amax(1) - batch.images.amin(1)).max() < 5e-3  # it may have been so before
        assert torch.allclose(batch.images, plain.images, atol=5e-3) != can or grey
        seen[can] += 1
    assert seen[True] > 3
    some = augmented(resident, recolor=0.5, epoch=2)
    assert all(set(batch.image_index.tolist()) == set(range(len(batch.image_ids))) for batch in some)


@pytest.mark.parametrize(("most", "absent"), [(2, 1), (1, 0), (None, None), (3, None)])
def test_limits_hold_and_other_phrases_are_drawn_in_other_epochs(examples, resident, most, absent):
    loader = resident.loader(4, EvalTransform(SIZE), shuffle=False, max_expressions=most, absent=absent)
    drawn, by_id = {}, {example.image_id: example for example in examples}
    for epoch in range(5):
        loader.set_epoch(epoch)
        for batch in loader:
            assert (batch.image_index.diff() >= 0).all()
            for number, image_id in enumerate(batch.image_ids):
                rows = (batch.image_index == number).nonzero().flatten().tolist()
                example, ids = by_id[image_id], [batch.sent_ids[row] for row in rows]
                order = [p.sent_id for p in (*example.expressions, *example.absent)]
                assert ids == sorted(ids, key=order.index)  # in their order, absent ones last
                with_box = sum(bool(batch.target_boxes_cxcywh[row, 2] > 0) for row in rows)
                counts = len(example.expressions), len(example.absent)
                assert with_box == min(counts[0], counts[0] if most is None else most)
                assert len(rows) - with_box == min(counts[1], counts[1] if absent is None else absent)
                drawn.setdefault(image_id, set()).add(tuple(ids))
    some_left = [e for e in examples if most is not None and len(e.expressions) > most]
    assert bool(some_left) == (most is not None)
    assert all(len(drawn[example.image_id]) > 1 for example in some_left)
    if most is None:
        assert all(len(ids) == 1 for ids in drawn.values())


# --- parts and copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 8, 20])
def test_the_first_few_are_those_of_the_first_examples(examples, resident, count):
    part, alone = resident.first(count), ResidentPictures(examples[:count], SIZE, TOKENIZER, "cpu")
    assert part.pictures.images.data_ptr() == resident.pictures.images.data_ptr()
    assert len(part.examples) == min(count, len(examples))
    for transform in (EvalTransform(SIZE), TrainTransform(SIZE)):
        loaders = [some.loader(3, transform, True, seed=2, absent=None) for some in (part, alone)]
        for mine, theirs in zip(*loaders, strict=True):
            assert_same_batch(mine, theirs)


def test_other_phrases_of_the_same_pictures(examples, resident):
    fewer = [
        dataclasses.replace(example, expressions=example.expressions[:1], absent=()) for example in examples
    ]
    other, alone = resident.with_examples(fewer), ResidentPictures(fewer, SIZE, TOKENIZER, "cpu")
    assert other.pictures.images.data_ptr() == resident.pictures.images.data_ptr()
    batches = [next(iter(some.loader(8, EvalTransform(SIZE), False, absent=None))) for some in (other, alone)]
    assert_same_batch(*batches)
    assert len(batches[0].texts) == len(examples)
    assert len(resident.phrases.texts) > len(other.phrases.texts)  # those of the first are as they were


def test_on_another_device_only_what_is_large_moves(resident):
    moved = resident.to("meta")
    on_device = (moved.pictures.images, moved.phrases.tokens, moved.phrases.mirrored_tokens)
    assert {tensor.device.type for tensor in on_device} == {"meta"}
    assert moved.device == torch.device("meta")
    assert resident.pictures.images.device.type == resident.device.type == "cpu"
    assert moved.phrases.boxes_cxcywh is resident.phrases.boxes_cxcywh
    same = resident.to("cpu")
    batches = [next(iter(some.loader(8, EvalTransform(SIZE), False))) for some in (same, resident)]
    assert_same_batch(*batches)
