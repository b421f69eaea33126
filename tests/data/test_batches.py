"""Items as pure functions of (seed, epoch, number), batches, loaders, and their sharing out by Accelerate."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image

from tests.tiny import TOKENIZER
from vg_utils.boxes import boxes_to_image, boxes_to_model
from vg_utils.data.batches import Batch, EpochSampler, GroundingDataset, collate, make_loader
from vg_utils.data.examples import AbsentPhrase, DataError, Expression, GroundingExample
from vg_utils.data.transforms import EvalTransform, TrainTransform
from vg_utils.models.clip import tokenize

SIZE = 32


def make_examples(count):
    """Images with 1, 2, 3, 4, 1, 2 ... expressions; sentence 10 * i + j is the j-th of image i."""
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        width, height = int(rng.integers(20, 60)), int(rng.integers(20, 60))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expressions = tuple(
            Expression(
                f"thing {'on the left ' * j}", (1.0 + j, 2.0, 12.0 + j, 15.0), sent_id=10 * i + j, ref_id=i
            )
            for j in range(i % 4 + 1)
        )
        examples.append(GroundingExample(Image.fromarray(pixels), 100 + i, expressions, (width, height)))
    return examples


def train_set(count=10, seed=0, max_expressions=None):
    return GroundingDataset(make_examples(count), TrainTransform(SIZE), seed, max_expressions)


def same(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def image_ids(batches):
    return [image_id for batch in batches for image_id in batch.image_ids]


# --- items -------------------------------------------------------------------------------------


def test_an_item_is_a_function_of_seed_epoch_and_number():
    dataset = train_set()
    once = dataset[(3, 5)]
    dataset[(0, 1)], dataset[(7, 5)]  # what was asked between does not matter
    torch.manual_seed(123)
    again = train_set()
    again.set_epoch(3)
    assert same(collate([once], TOKENIZER), collate([again[5]], TOKENIZER))
    for other in (dataset[(4, 5)], train_set(seed=1)[(3, 5)]):
        assert not same(collate([once], TOKENIZER), collate([other], TOKENIZER))


def test_more_expressions_than_allowed_are_drawn_anew_in_each_epoch():
    dataset = train_set(max_expressions=2)
    drawn = [tuple(dataset[(epoch, 3)].sent_ids) for epoch in range(40)]
    assert all(len(set(ids)) == 2 and list(ids) == sorted(ids) for ids in drawn)
    assert len(set(drawn)) == 6  # all pairs of four
    assert dataset[(0, 0)].sent_ids == [0]
    assert len(train_set()[(0, 3)].sent_ids) == 4
    with pytest.raises(ValueError, match="max_expressions"):
        train_set(max_expressions=0)


def test_box_and_text_of_a_drawn_expression_stay_together():
    dataset = GroundingDataset(make_examples(4), EvalTransform(SIZE), max_expressions=2)
    for epoch in range(10):
        item = dataset[(epoch, 3)]
        for sent_id, text, box in zip(item.sent_ids, item.view.texts, item.view.boxes_xyxy, strict=True):
            assert text.count("left") == sent_id - 30 == box[0] - 1


def test_a_picture_of_another_size_than_recorded_is_refused():
    example = dataclasses.replace(make_examples(1)[0], size_wh=(640, 480))
    with pytest.raises(DataError, match=r"image 100 .*\(640, 480\)"):
        GroundingDataset([example], EvalTransform(SIZE))[0]


# --- batches -----------------------------------------------------------------------------------


def test_collate():
    dataset = GroundingDataset(make_examples(4), EvalTransform(SIZE))
    batch = collate([dataset[i] for i in range(4)], TOKENIZER)
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.uint8
    assert batch.image_index.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert batch.sent_ids == [0, 10, 11, 20, 21, 22, 30, 31, 32, 33]
    assert batch.image_ids == [100, 101, 102, 103]
    assert batch.sizes_wh.tolist() == [list(example.size_wh) for example in dataset.examples]
    assert torch.equal(batch.tokens, tokenize(batch.texts, trim=True))
    letterboxes = batch.letterboxes[batch.image_index]
    expected = boxes_to_model(batch.target_boxes_xyxy, letterboxes, SIZE)
    torch.testing.assert_close(batch.target_boxes_cxcywh, expected)
    back = boxes_to_image(batch.target_boxes_cxcywh, letterboxes, SIZE)
    torch.testing.assert_close(back, batch.target_boxes_xyxy, atol=1e-3, rtol=0)
    assert batch.tokens.dtype == batch.image_index.dtype == batch.sizes_wh.dtype == torch.int64
    assert batch.target_boxes_cxcywh.dtype == batch.target_boxes_xyxy.dtype == torch.float32
    assert batch.letterboxes.dtype == torch.float32


def test_to_moves_all_tensors_and_keeps_the_rest():
    batch = collate([train_set()[0], train_set()[1]], TOKENIZER)
    moved = batch.to("meta")
    for name, value in vars(moved).items():
        assert (
            value.device.type == "meta" if isinstance(value, torch.Tensor) else value == getattr(batch, name)
        )
    assert batch.images.device.type == "cpu"
    assert batch.to("cpu").images.is_contiguous()
    assert batch.to("cpu", channels_last=True).images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("per_epoch", [1, 3, 7, 10, 20])
def test_epochs_of_any_length_go_through_whole_passes_one_after_the_other(shuffle, per_epoch):
    dataset = GroundingDataset(make_examples(7), EvalTransform(SIZE))
    drawn, passes = [], []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sampler = EpochSampler(dataset, shuffle, seed=5, per_epoch=per_epoch)
        pairs = list(sampler)
        assert len(pairs) == len(sampler) == per_epoch
        assert {e for e, _ in pairs} == {epoch}
        drawn += [number for _, number in pairs]
        passes += [number for _, number in EpochSampler(dataset, shuffle, seed=5)]
    assert drawn[: len(passes)] == passes[: len(drawn)]


# --- absent phrases ----------------------------------------------------------------------------


def with_absent(count=6, number=3, text="gone from the left"):
    """The same images, each with so many phrases that fit nothing, ids from 1000 on."""
    return [
        dataclasses.replace(
            example,
            absent=tuple(AbsentPhrase(text, 1000 + 10 * i + j) for j in range(number)),
        )
        for i, example in enumerate(make_examples(count))
    ]


def test_absent_phrases_come_after_the_expressions_with_boxes_of_zeros():
    dataset = GroundingDataset(with_absent(2, 2), EvalTransform(SIZE), absent=None)
    batch = collate([dataset[0], dataset[1]], TOKENIZER)
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch.sent_ids == [0, 1000, 1001, 10, 11, 1010, 1011]
    assert [text.startswith("gone") for text in batch.texts] == [False, True, True, False, False, True, True]
    assert len(batch.tokens) == 7
    absent = torch.tensor([text.startswith("gone") for text in batch.texts])
    plain = collate([GroundingDataset(make_examples(2), EvalTransform(SIZE))[i] for i in range(2)], TOKENIZER)
    for name in ("target_boxes_cxcywh", "target_boxes_xyxy"):
        boxes = getattr(batch, name)
        assert torch.equal(boxes[absent], torch.zeros(4, 4))
        assert torch.equal(boxes[~absent], getattr(plain, name))


@pytest.mark.parametrize("absent", [1, 2, 7, None])
def test_views_are_the_same_with_absent_phrases(absent):
    plain = train_set(6, max_expressions=2)
    dataset = GroundingDataset(with_absent(), TrainTransform(SIZE), 0, 2, absent)
    flipped = 0
    for key in [(epoch, number) for epoch in range(6) for number in range(6)]:
        expected, item = plain[key], dataset[key]
        shown = len(expected.sent_ids)
        assert torch.equal(item.view.image, expected.view.image)
        assert torch.equal(item.view.letterbox, expected.view.letterbox)
        assert torch.equal(item.view.boxes_xyxy[:shown], expected.view.boxes_xyxy)
        assert item.view.texts[:shown] == expected.view.texts
        assert item.sent_ids[:shown] == expected.sent_ids
        assert len(item.sent_ids) - shown == min(3, absent or 3)
        sides = {"right" in text for text in item.view.texts[shown:]}
        assert len(sides) == 1, "all of them are swapped, or none"
        flipped += sides.pop()
    assert 0 < flipped < 36


def test_absent_phrases_are_drawn_anew_in_each_epoch():
    dataset = GroundingDataset(with_absent(), EvalTransform(SIZE), absent=1)
    assert {dataset[(epoch, 0)].sent_ids[-1] for epoch in range(40)} == {1000, 1001, 1002}
    assert GroundingDataset(with_absent(), EvalTransform(SIZE))[0].sent_ids == [0]
    with pytest.raises(ValueError, match="absent of 0 or more"):
        GroundingDataset(with_absent(), EvalTransform(SIZE), absent=-1)


def test_an_absent_phrase_that_cannot_be_swapped_prevents_the_flip():
    examples = with_absent(1, 1, "the sign that says left")
    dataset = GroundingDataset(examples, TrainTransform(SIZE, flip=1.0), absent=None)
    assert dataset[0].view.texts[-1] == "the sign that says left"
    plain = GroundingDataset(make_examples(1), TrainTransform(SIZE, flip=0.0))
    assert torch.equal(dataset[0].view.image, plain[0].view.image)


def test_an_absent_phrase_has_words():
    with pytest.raises(DataError, match=r"image 100, absent sentence 1000: expected a sentence, got ' '"):
        with_absent(1, 1, " ")


def colored_examples(count=8):
    """Images with an expression that names a colour and one that does not, and an absent phrase of each."""
    texts = ("the red thing", "the thing on the left")
    absent = (AbsentPhrase("a blue thing", 5000), AbsentPhrase("a round thing", 5001))
    return [
        dataclasses.replace(
            example,
            expressions=tuple(
                Expression(text, (1.0, 2.0, 12.0, 15.0), sent_id=10 * i + j, ref_id=i)
                for j, text in enumerate(texts)
            ),
            absent=absent,
        )
        for i, example in enumerate(make_examples(count))
    ]


def test_phrases_that_name_a_colour_stay_away_from_pictures_in_others():
    plain, always, sometimes = (
        GroundingDataset(colored_examples(), TrainTransform(SIZE, recolor=share), absent=None)
        for share in (0.0, 1.0, 0.4)
    )
    changed = 0
    for key in [(epoch, number) for epoch in range(8) for number in range(8)]:
        before, after, item = plain[key], always[key], sometimes[key]
        assert [sent_id % 10 for sent_id in before.sent_ids] == [0, 1, 0, 1]
        assert [sent_id % 10 for sent_id in after.sent_ids] == [1, 1]
        assert torch.equal(after.view.letterbox, before.view.letterbox)
        assert not torch.equal(after.view.image, before.view.image)
        expected = after if len(item.sent_ids) == 2 else before
        assert torch.equal(item.view.image, expected.view.image)
        assert item.sent_ids == expected.sent_ids
        changed += expected is after
    assert 10 < changed < 42


def test_a_picture_keeps_its_colours_where_all_expressions_name_one():
    examples = [
        dataclasses.replace(example, expressions=example.expressions[:1]) for example in colored_examples(4)
    ]
    plain, always = (
        GroundingDataset(examples, TrainTransform(SIZE, recolor=share), absent=None) for share in (0.0, 1.0)
    )
    for number in range(4):
        assert torch.equal(plain[number].view.image, always[number].view.image)
        assert plain[number].sent_ids == always[number].sent_ids


# --- loaders -----------------------------------------------------------------------------------


def test_workers_change_nothing_and_learn_of_the_epoch():
    alone = make_loader(train_set(max_expressions=2), TOKENIZER, 3, shuffle=True, workers=0, seed=7)
    shared = make_loader(train_set(max_expressions=2), TOKENIZER, 3, shuffle=True, workers=2, seed=7)
    assert shared.persistent_workers
    epochs = []
    for epoch in (0, 1, 5, 1):  # the workers of the first epoch serve them all
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        epochs.append(list(alone))
        assert all(same(a, b) for a, b in zip(epochs[-1], shared, strict=True))
    assert image_ids(epochs[0]) != image_ids(epochs[1])
    assert all(same(a, b) for a, b in zip(epochs[1], epochs[3], strict=True))
    assert all(sorted(image_ids(batches)) == list(range(100, 110)) for batches in epochs)


def test_an_epoch_left_early_does_not_leak_into_the_next():
    loader = make_loader(train_set(), TOKENIZER, 2, shuffle=True, workers=2)
    loader.set_epoch(1)
    next(iter(loader))
    loader.set_epoch(2)
    found = list(loader)
    fresh = make_loader(train_set(), TOKENIZER, 2, shuffle=True)
    fresh.set_epoch(2)
    assert all(same(a, b) for a, b in zip(found, fresh, strict=True))


def test_the_last_batch_is_short_or_dropped():
    dataset = train_set(10)
    assert [len(b.image_ids) for b in make_loader(dataset, TOKENIZER, 4, shuffle=False)] == [4, 4, 2]
    assert [len(b.image_ids) for b in make_loader(dataset, TOKENIZER, 4, shuffle=False, drop_last=True)] == [
        4,
        4,
    ]
    assert len(make_loader(dataset, TOKENIZER, 4, shuffle=False)) == 3
    assert image_ids(make_loader(dataset, TOKENIZER, 4, shuffle=False)) == list(range(100, 110))


def test_the_order_depends_on_the_seed():
    orders = [
        image_ids(make_loader(train_set(), TOKENIZER, 4, shuffle=True, seed=seed)) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


# --- Accelerate --------------------------------------------------------------------------------


def test_prepared_by_accelerate_the_batches_are_the_same():
    accelerator = Accelerator(cpu=True)
    plain = make_loader(train_set(), TOKENIZER, 3, shuffle=True)
    prepared = accelerator.prepare(make_loader(train_set(), TOKENIZER, 3, shuffle=True))
    for epoch in (0, 1, 4):
        plain.set_epoch(epoch)
        prepared.set_epoch(epoch)
        expected = list(plain)
        assert all(same(a, b) for a, b in zip(expected, prepared, strict=True))
        skipped = skip_first_batches(prepared, 2)
        skipped.set_epoch(epoch)
        assert all(same(a, b) for a, b in zip(expected[2:], skipped, strict=True))


def deal_out(images, even_batches, drop_last=False):
    """The images that each of two processes sees, without starting any."""
    parts = []
    for process in range(2):
        loader = make_loader(train_set(images), TOKENIZER, 2, shuffle=True, drop_last=drop_last)
        part = prepare_data_loader(
            loader, num_processes=2, process_index=process, even_batches=even_batches, put_on_device=False
        )
        parts.append([batch.image_ids for batch in part])
    return parts


@pytest.mark.parametrize("images", [8, 10, 11])
def test_two_processes_see_each_picture_once(images):
    one, other = deal_out(images, even_batches=False)
    seen = [image_id for batch in one + other for image_id in batch]
    assert sorted(seen) == list(range(100, 100 + images))
    assert abs(len(one) - len(other)) <= 1


def test_even_batches_repeat_pictures_and_drop_last_does_not():
    one, other = deal_out(10, even_batches=True)
    assert len(one) == len(other) == 3
    assert {i for batch in one + other for i in batch} == set(range(100, 110))
    one, other = deal_out(10, even_batches=True, drop_last=True)
    seen = [i for batch in one + other for i in batch]
    assert len(one) == len(other) == 2
    assert len(seen) == len(set(seen)) == 8
