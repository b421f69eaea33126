"""From examples to batches: B images with all their N expressions, the same whoever computes them.

Item i of epoch e is a pure function of (seed, e, i), and the order of an epoch one of (seed, e). Neither
depends on the number of workers or processes, and a resumed run continues with exactly the batches that the
interrupted one would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vg_utils.boxes import boxes_to_model
from vg_utils.data.examples import DataError, GroundingExample
from vg_utils.data.images import wrong_size
from vg_utils.data.text import names_color
from vg_utils.data.transforms import EvalTransform, TrainTransform, View, random_colors
from vg_utils.processes import end_with_parent

__all__ = ["Batch", "EpochSampler", "GroundingDataset", "GroundingLoader", "Item", "Tokenizer", "collate"]
__all__ += ["make_loader", "whole_batch_loader"]

Tokenizer = Callable[[Sequence[str]], Tensor]  # texts -> int64 (N, L), padding 0, cut to the longest
SHUFFLE_STREAM = 2**32  # in an item's place, no item's number: the stream of random numbers for the order
ABSENT_STREAM = 1  # after an item's numbers: another stream, so that its view is the same with absent phrases
COLOR_STREAM = 2


class Item(NamedTuple):
    """One example after its transform: the view, and who it is.

    Absent phrases come after the expressions, with boxes of zeros.
    """

    view: View
    image_id: int
    sent_ids: list[int]


@dataclass
class Batch:
    """B images and their N phrases: expressions and, if asked for, phrases that fit nothing.

    A target box of four zeros means "fits nothing in the image", here and everywhere in this project. The
    rows of an image are its expressions, then its absent phrases.

    Attributes:
        images: uint8 (B, 3, S, S), RGB; the model normalises them.
        tokens: int64 (N, L), of the model's tokenizer, padding 0, cut to the longest phrase of the batch.
        image_index: int64 (N,), phrase i is asked of image `image_index[i]`. Never decreasing.
        target_boxes_cxcywh: float32 (N, 4) in [0, 1] of the square input; zeros where the phrase is absent.
        target_boxes_xyxy: float32 (N, 4) in pixels of the original image (of the mirrored one if flipped);
            zeros where the phrase is absent.
        letterboxes: float32 (B, 4), see `boxes.letterbox`.
        sizes_wh: int64 (B, 2), width and height of the original images.
        image_ids, sent_ids, texts: B, N and N of them.
    """

    images: Tensor
    tokens: Tensor
    image_index: Tensor
    target_boxes_cxcywh: Tensor
    target_boxes_xyxy: Tensor
    letterboxes: Tensor
    sizes_wh: Tensor
    image_ids: list[int]
    sent_ids: list[int]
    texts: list[str]

    def to(
        self, device: torch.device | str, non_blocking: bool = False, channels_last: bool | None = None
    ) -> Batch:
        """The batch with its tensors on the device; Accelerate's loaders call it by this name.

        Args:
            device: where to.
            non_blocking: copy beside the computation, from pinned memory.
            channels_last: memory format of the images; by default on CUDA only, where convolutions want it.
        """
        moved = {name: t.to(device, non_blocking=non_blocking) for name, t in self._tensors().items()}
        if torch.device(device).type == "cuda" if channels_last is None else channels_last:
            moved["images"] = moved["images"].contiguous(memory_format=torch.channels_last)
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; a DataLoader with `pin_memory` calls it by this name."""
        return replace(self, **{name: t.pin_memory() for name, t in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class GroundingDataset(Dataset):
    """Examples seen through a transform.

    An index is a number, seen in the epoch of the last `set_epoch`, or a pair (epoch, number). `EpochSampler`
    yields pairs, because workers that persist hold copies of the data set made before `set_epoch` was called.

    Args:
        examples: the records.
        transform: makes a `View` of an image, its boxes and its texts.
        seed: of all randomness, with the epoch and the number.
        max_expressions: of an image with more, so many are drawn anew in each epoch; None keeps all, as
            evaluation needs.
        absent: how many of an image's phrases that fit nothing go into its item: 0 none, k at most k, drawn
            anew in each epoch, None all, as evaluation needs. Images, boxes and expressions are the same
            whatever it is, but for images that are not mirrored because an absent phrase cannot be.

    Where the transform has a share `recolor`, so many of the images with an expression that names no colour
    are shown in other colours; their phrases that do name one are then left out.
    """

    def __init__(
        self,
        examples: Sequence[GroundingExample],
        transform: TrainTransform | EvalTransform,
        seed: int = 0,
        max_expressions: int | None = None,
        absent: int | None = 0,
    ) -> None:
        if max_expressions is not None and max_expressions < 1:
            raise ValueError(f"expected max_expressions of 1 or more, or None, got {max_expressions}")
        if absent is not None and absent < 0:
            raise ValueError(f"expected absent of 0 or more, or None, got {absent}")
        self.examples = examples
        self.transform = transform
        self.seed = seed
        self.max_expressions = max_expressions
        self.absent = absent
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's random numbers; a loader in use takes it up when it is next iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        """The item, a pure function of (seed, epoch, number).

        Raises:
            DataError: the image does not decode, or is not of the size that its record states.
        """
        epoch, number = index if isinstance(index, tuple) else (self.epoch, index)
        example = self.examples[number]
        generator = _generator(self.seed, epoch, number)
        colors = self._other_colors(example, epoch, number)
        fitting, absent = (
            [phrase for phrase in some if colors is None or not names_color(phrase.text)]
            for some in (example.expressions, example.absent)
        )
        expressions = _some(fitting, self.max_expressions, generator)
        absent = _some(absent, self.absent, _generator(self.seed, epoch, number, ABSENT_STREAM))
        phrases = [*expressions, *absent]
        boxes_xyxy = torch.tensor([e.box_xyxy for e in expressions], dtype=torch.float32)
        # The transform keeps boxes in sight and swaps words: it sees the boxes there are, and every text.
        other = {} if colors is None else {"colors": colors}
        texts = [phrase.text for phrase in phrases]
        view = self.transform(example.image, boxes_xyxy, texts, generator, **other)
        if view.size_wh != tuple(example.size_wh):  # else every box of it would be silently wrong
            raise DataError(wrong_size(example, view.size_wh))
        with_zeros = torch.cat([view.boxes_xyxy, torch.zeros(len(absent), 4)])
        return Item(
            view._replace(boxes_xyxy=with_zeros), example.image_id, [phrase.sent_id for phrase in phrases]
        )

    def _other_colors(self, example: GroundingExample, epoch: int, number: int) -> Tensor | None:
        """A matrix for the colours of the image, if it is to be shown in others."""
        share = getattr(self.transform, "recolor", 0.0)
        if not share:
            return None
        chance = _generator(self.seed, epoch, number, COLOR_STREAM)
        if torch.rand((), generator=chance) >= share:
            return None
        if all(names_color(expression.text) for expression in example.expressions):
            return None
        return random_colors(1, chance)[0]


class EpochSampler(Sampler):
    """Pairs (epoch, number) of the items of the data set's epoch.

    Passes through all items, each shuffled by (seed, pass) or in order, follow each other without end, and an
    epoch is the next `per_epoch` of them: by default one pass, so that epoch and pass are the same.
    """

    def __init__(self, dataset: GroundingDataset, shuffle: bool, seed: int, per_epoch: int = 0) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.per_epoch = per_epoch or len(dataset)

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, count = self.dataset.epoch, len(self.dataset)
        place, left = epoch * self.per_epoch, self.per_epoch
        while left:
            passing, start = divmod(place, count)
            order = range(count)
            if self.shuffle:
                chance = _generator(self.seed, passing, SHUFFLE_STREAM)
                order = torch.randperm(count, generator=chance).tolist()
            part = order[start : start + left]
            yield from ((epoch, number) for number in part)
            place, left = place + len(part), left - len(part)


class GroundingLoader(DataLoader):
    """A DataLoader with the `set_epoch` that one prepared by Accelerate has as well.

    Call `loader.set_epoch(epoch)` before each epoch, prepared or not, also on what `skip_first_batches`
    returns: Accelerate's loaders count their own epochs from 0 and set the data set's to that whenever they
    are iterated.
    """

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the random numbers of the next iteration."""
        self.dataset.set_epoch(epoch)


def collate(items: Sequence[Item], tokenizer: Tokenizer) -> Batch:
    """One batch of B items, with their phrases one after the other, and as the tokens of a model."""
    views = [item.view for item in items]
    images = torch.stack([view.image for view in views])  # (B, 3, S, S)
    letterboxes = torch.stack([view.letterbox for view in views])  # (B, 4)
    boxes_xyxy = torch.cat([view.boxes_xyxy for view in views])  # (N, 4)
    counts = torch.tensor([len(view.texts) for view in views])  # (B,)
    image_index = torch.arange(len(views)).repeat_interleave(counts)  # (N,)
    texts = [text for view in views for text in view.texts]
    boxes_cxcywh = boxes_to_model(boxes_xyxy, letterboxes[image_index], images.shape[-1])
    fits = boxes_xyxy.any(dim=1, keepdim=True)  # (N, 1): a letterbox would move the zeros of absent phrases
    return Batch(
        images=images,
        tokens=tokenizer(texts),
        image_index=image_index,
        target_boxes_cxcywh=torch.where(fits, boxes_cxcywh, 0.0),
        target_boxes_xyxy=boxes_xyxy,
        letterboxes=letterboxes,
        sizes_wh=torch.tensor([view.size_wh for view in views]),
        image_ids=[item.image_id for item in items],
        sent_ids=[sent_id for item in items for sent_id in item.sent_ids],
        texts=texts,
    )


def make_loader(
    dataset: GroundingDataset,
    tokenizer: Tokenizer,
    batch_images: int,
    shuffle: bool,
    workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    per_epoch: int = 0,
) -> GroundingLoader:
    """Batches of `batch_images` images and all their expressions, in an order that (seed, epoch) decides.

    Under Accelerate with several processes, batches are dealt out in turn, and by default the last ones
    repeat images of the first to make the count even. Train with `drop_last=True`; for evaluation prepare
    with `even_batches=False`, or drop what `sent_ids` shows twice. `gather_for_metrics` cannot tell, because
    it counts images, while there is a prediction for each expression.

    Args:
        tokenizer: that of the model, see `GroundingModel.tokenizer`.
        workers: processes that decode and transform, with one torch thread each; 0 does it in this one.
        per_epoch: images of an epoch; 0: all of them.
    """
    if workers:
        tokenizer([""])  # loads the vocabulary once, before the workers are forked, instead of once in each
    return GroundingLoader(
        dataset,
        batch_size=batch_images,
        sampler=EpochSampler(dataset, shuffle, seed, per_epoch),
        num_workers=workers,
        worker_init_fn=end_with_parent,
        collate_fn=partial(collate, tokenizer=tokenizer),
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def whole_batch_loader(
    dataset: Dataset,
    batch_images: int,
    shuffle: bool,
    seed: int = 0,
    drop_last: bool = False,
    per_epoch: int = 0,
) -> GroundingLoader:
    """Batches in the order of `make_loader`, of a data set whose `__getitems__` gives a batch at once.

    Its images are at hand, as features or decoded, so that no process has to prepare them.
    """
    sampler = EpochSampler(dataset, shuffle, seed, per_epoch)
    return GroundingLoader(
        dataset, batch_size=batch_images, sampler=sampler, collate_fn=_as_it_is, drop_last=drop_last
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _some(phrases: Sequence, most: int | None, generator: torch.Generator) -> Sequence:
    """At most so many of the phrases, in their order; all of them (None) need no random number."""
    if most is None or len(phrases) <= most:
        return phrases
    drawn = torch.randperm(len(phrases), generator=generator)[:most]
    return [phrases[i] for i in drawn.sort().values.tolist()]


def _generator(*key: int) -> torch.Generator:
    """A generator for the numbers, which SeedSequence mixes: (0, 1) and (1, 0) have nothing in common."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
