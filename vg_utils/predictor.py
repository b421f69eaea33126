"""Ask a trained model about images: what notebooks, command line, metrics and demo all call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vg_utils.boxes import best_boxes, boxes_to_image, boxes_to_model
from vg_utils.config import Config, ConfigError
from vg_utils.data.examples import DataError
from vg_utils.data.gpu_decoding import read_image
from vg_utils.data.text import clean_text
from vg_utils.data.transforms import EvalTransform, View
from vg_utils.devices import find_device
from vg_utils.models.answering import Answerer
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.checkpoints import (
    DEFAULT_CHECKPOINT,
    CheckpointError,
    find_checkpoint,
    load_model,
    origin,
)
from vg_utils.models.inference import inference_copy
from vg_utils.models.prediction import Prediction, Predictions, check_phrases
from vg_utils.sharing import download, push_to_hub, save_pretrained

# Presence that each word unknown to the model leaves. Below a half: what was sure is then taken as not found.
UNKNOWN_WORD_LEAVES = 0.4
BATCH_IMAGES = 16  # that go through a GPU together, with their phrases
PHRASES_AT_ONCE = {"cpu": 32}  # which bounds the memory, however many are asked; a GPU wants many
# On a processor the copy that answers takes 0.15 s to make, and a third to a half less for each image.
COPY_FROM = 4


@dataclass(frozen=True)
class Encoded:
    """An image as a model sees it: what `Grounder.encode` gives, and any number of questions can be put to.

    Attributes:
        features: of the model's `encode_images`, first dimension 1, on the model's device.
        letterbox: float32 (4,), see `boxes.letterbox`.
        size_wh: width and height of the image in pixels.
    """

    features: Features
    letterbox: Tensor
    size_wh: tuple[int, int]


class Grounder:
    """A model that encodes an image once and then answers any number of phrases.

    >>> grounder = Grounder.load()                                # doctest: +SKIP
    >>> coffee = grounder.encode("coffee.jpg")                    # doctest: +SKIP
    >>> grounder.ground(["the cup"], coffee)[0].box_xyxy          # doctest: +SKIP
    (152.1, 60.2, 428.8, 271.0)

    Threads may share one: an encoded image is a value, and nothing is kept beside what `set_image` set last.

    Args:
        model: any grounding model.
        config: the settings it was trained with.
        device: where it runs; by default a GPU if there is one.
        origin: which model it is and what it was trained on, in a line; by default the model's name.
        fast: on a GPU, read JPEGs there and record CUDA graphs of a copy of the model in half precision (see
            `vg_utils.models.answering`); False does everything step by step, as on a processor.
    """

    def __init__(
        self,
        model: GroundingModel,
        config: Config,
        device: torch.device | str | None = None,
        origin: str = "",
        fast: bool = True,
    ) -> None:
        self.device = find_device(device)
        self.model = model.eval().to(self.device)
        self.config = config
        self.origin = origin or config.model.name
        self._answerer = Answerer(self.model, self.device, fast)
        self._encoded: Encoded | None = None

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = DEFAULT_CHECKPOINT,
        device: torch.device | str | None = None,
        fast: bool = True,
    ) -> Grounder:
        """From a run directory, a folder of `save_pretrained`, or a shipped checkpoint by its name.

        By default it is the one for photographs.

        Raises:
            CheckpointError: there is none, or its weights do not fit.
            ConfigError: no such device.
            WeightsError: a public backbone that the checkpoint builds on cannot be had.
        """
        directory, device = find_checkpoint(checkpoint), find_device(device)
        model, config = load_model(directory)
        return cls(model, config, device, origin(checkpoint), fast)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: torch.device | str | None = None, revision: str | None = None
    ) -> Grounder:
        """From whatever `load` takes, a folder of `save_pretrained`, or else a model on the Hugging Face hub.

        Args:
            name: a folder, a shipped checkpoint, or `user/name`.
            device: where it runs.
            revision: branch, tag or commit on the hub.

        Raises:
            CheckpointError: there is none, or it cannot be had.
        """
        try:
            find_checkpoint(name)
        except CheckpointError:
            grounder = cls.load(download(str(name), revision), device)
            grounder.origin = f"{name}: {grounder.origin.partition(': ')[2]}"
            return grounder
        return cls.load(name, device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write settings, all weights and a card into a folder that can be given away."""
        save_pretrained(Path(folder), self.model, self.config, self.origin)

    def push_to_hub(self, repo_id: str, private: bool | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the address."""
        return push_to_hub(repo_id, self.model, self.config, self.origin, private)

    def encode(self, image: Image.Image | Path | str) -> Encoded:
        """Encode an image (a file, or one in memory of any mode), to ask about it with `ground`.

        Raises:
            DataError: a file that is missing or does not decode.
        """
        device = self.device if self._answerer.fast else "cpu"
        return self._encode([read_image(image, self.config.model.image_size, device)])[0]

    def set_image(self, image: Image.Image | Path | str) -> Grounder:
        """Encode an image and keep it for `ground`; returns self, and raises as `encode` does.

        There is one such image: threads that ask about different ones hand over what `encode` gave them.
        """
        self._encoded = None  # should this image fail, nothing answers about the one before
        self._encoded = self.encode(image)
        return self

    def ground(
        self, phrases: Sequence[str] | str, encoded: Encoded | None = None, top: int = 1
    ) -> Predictions:
        """The box of each phrase in an encoded image, by default the one that was set last.

        Of a phrase with words that mean nothing to the model the presence is lowered, to 0.4 times for each
        of them: the rest of the phrase may well fit something, but that is not what was asked.

        Args:
            phrases: any number; the memory that they take does not grow with it.
            encoded: of `encode`.
            top: so many boxes a phrase, best first, or fewer where the model sees fewer that differ. The
                first is the answer; the score of the others says how they rank, not how well they fit.

        Raises:
            ValueError: no image was set.
            DataError: a phrase is empty.
            ConfigError: more than one box of a model that has but one.
        """
        encoded = encoded or self._encoded
        if encoded is None:
            raise ValueError("no image to look at: call set_image(image) before ground(phrases)")
        self._check_top(top)
        return self._answer([encoded], [check_phrases(phrases)], top)[0]

    def ground_batch(
        self, images: Sequence[Image.Image | Path | str], phrases: Sequence[Sequence[str]], top: int = 1
    ) -> list[Predictions]:
        """The same for many images, each with its own phrases.

        A GPU encodes and is asked in batches, while threads decode the next. A processor takes as long for
        each of many images as for one, but has several cores: each works on an image of its own.

        Args:
            images: files or images in memory.
            phrases: a list for each image.
            top: see `ground`.

        Raises:
            DataError: as `encode` and `ground`, or not as many lists of phrases as images.
        """
        if len(images) != len(phrases):
            raise DataError(
                f"expected a list of phrases for each image, got {len(images)} images, {len(phrases)} lists"
            )
        self._check_top(top)
        checked = [check_phrases(texts) for texts in phrases]  # an empty one is an error before the work
        return (self._on_cores if self.device.type == "cpu" else self._in_batches)(images, checked, top)

    def _on_cores(
        self, images: Sequence[Image.Image | Path | str], phrases: Sequence[list[str]], top: int
    ) -> list[Predictions]:
        """Each image by itself, several side by side."""
        grounder = self
        if len(images) >= COPY_FROM:
            copy = inference_copy(self.model, self.device)
            grounder = Grounder(copy, self.config, self.device, self.origin)

        def answer(image: Image.Image | Path | str, texts: list[str]) -> Predictions:
            return grounder.ground(texts, grounder.encode(image), top)

        return _side_by_side(answer, images, phrases)

    def _in_batches(
        self, images: Sequence[Image.Image | Path | str], phrases: Sequence[list[str]], top: int
    ) -> list[Predictions]:
        """So many images at once as a GPU wants, decoded in threads while it computes."""
        asked, answers = iter(phrases), []
        for views in _ahead(self._view, images, BATCH_IMAGES):
            answers += self._answer(self._encode(views), [*islice(asked, len(views))], top)
        return answers

    def _view(self, image: Image.Image | Path | str) -> View:
        return EvalTransform(self.config.model.image_size)(image)

    def _encode(self, views: Sequence[View]) -> list[Encoded]:
        dtype = next(self.model.parameters()).dtype
        if dtype != torch.float32:
            raise ValueError(f"expected a model in float32 (a GPU halves it by itself), got one in {dtype}")
        features = self._answerer.encode(torch.stack([view.image for view in views]))
        return [
            Encoded({name: x[row : row + 1] for name, x in features.items()}, view.letterbox, view.size_wh)
            for row, view in enumerate(views)
        ]

    def _answer(self, images: list[Encoded], asked: list[list[str]], top: int) -> list[Predictions]:
        """The phrases of each image, so many at once as the memory may hold."""
        rows = [(number, one) for number, texts in enumerate(asked) for one in texts]
        answers = [Predictions() for _ in images]
        for part in _parts(rows, PHRASES_AT_ONCE.get(self.device.type, 256)):
            numbers, phrases = zip(*part, strict=True)
            first, last = numbers[0], numbers[-1]
            index = torch.tensor(numbers) - first
            found = self._predict(images[first : last + 1], index, phrases, top)
            for number, predictions in zip(numbers, found, strict=True):
                answers[number] += predictions
        return answers

    @torch.inference_mode()
    def _predict(
        self, images: Sequence[Encoded], index: Tensor, phrases: Sequence[str], top: int
    ) -> list[list[Prediction]]:
        """Ask N phrases, row i about image `index[i]`; of each the boxes, the best first."""
        cleaned = [clean_text(phrase) for phrase in phrases]
        features = {name: torch.cat([i.features[name] for i in images]) for name in images[0].features}
        of_one = len(images) == 1
        outputs = self._answerer.answer(
            features, self.model.tokenizer(cleaned), None if of_one else index, others=top > 1
        )
        boxes, scores = outputs["boxes_cxcywh"][:, None], outputs["score"][:, None]
        if top > 1:
            boxes = torch.cat([boxes, outputs["other_boxes_cxcywh"]], dim=1)
            scores = torch.cat([scores, outputs["other_scores"]], dim=1)
        letterboxes = torch.stack([i.letterbox for i in images])[index, None]  # (N, 1, 4)
        limits = torch.tensor([i.size_wh for i in images]).repeat(1, 2)[index, None]
        corners = boxes_to_image(boxes, letterboxes, self.config.model.image_size)
        corners = corners.clamp(min=0).minimum(limits)  # (N, K, 4)
        best = best_boxes(corners, scores, top)
        unknown, presence = self.model.unknown_words(cleaned), [None] * len(phrases)
        if "presence" in outputs:
            there = outputs["presence"].tolist()
            presence = [p * UNKNOWN_WORD_LEAVES ** len(u) for p, u in zip(there, unknown, strict=True)]
        heatmaps = [None] * len(phrases)
        if "heatmap" in outputs:
            maps = outputs["heatmap"]
            heatmaps = [m for i, image in enumerate(images) for m in self._of_image(maps[index == i], image)]
        about = zip(phrases, best, presence, heatmaps, unknown, strict=True)
        return [
            [Prediction(phrase, tuple(box), score, *rest, rank) for rank, (box, score) in enumerate(ranked)]
            for phrase, ranked, *rest in about
        ]

    def _check_top(self, top: int) -> None:
        if top < 1:
            raise ConfigError(f"top: expected 1 box a phrase or more, got {top}")
        if top > 1 and not self.model.ranks_boxes:
            raise ConfigError(
                f"top: expected a model that weighs several boxes, such as dense-grounder or "
                f"clip-rpn-attention; {self.config.model.name} has one a phrase"
            )

    def _of_image(self, maps: Tensor, image: Encoded) -> Tensor:
        """(N, G, G) maps of the model's square -> float32 (N, H, W) of the image in it, on the CPU.

        Sampled where the cells of the smaller map are (bilinear): the image's edges seldom are cells'.
        """
        corners = torch.tensor([[0.0, 0.0, *image.size_wh]])
        shown = boxes_to_model(corners, image.letterbox, self.config.model.image_size)[0]
        x, y, width, height = shown.tolist()  # shares of the square
        rows, columns = (max(1, round(maps.shape[-1] * side)) for side in (height, width))
        # torch counts the square's places from -1 to 1
        placed = torch.tensor([[[width, 0.0, 2 * x - 1], [0.0, height, 2 * y - 1]]])
        places = F.affine_grid(placed, [1, 1, rows, columns], align_corners=False)  # (1, rows, columns, 2)
        # The phrases are the channels of one image.
        return F.grid_sample(maps[None], places, padding_mode="border", align_corners=False)[0].clamp(0, 1)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _side_by_side(work: Callable[..., Any], *items: Sequence[Any]) -> list[Any]:
    """`work` of the items, in order, in threads that share out those that torch has.

    What one image or phrase takes is many short operations, and short ones gain little from a second thread.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(items[0])))
    settle = partial(torch.set_num_threads, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=settle) as pool:
            return list(pool.map(work, *items))
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself, threads that begin later start with


def _ahead(work: Callable[[Any], Any], items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """`work` of the items in threads, in lists of `size`, always one list ahead of what was taken."""
    with ThreadPoolExecutor() as pool:
        waiting: deque[list[Future]] = deque()
        for part in _parts(items, size):
            waiting.append([pool.submit(work, item) for item in part])
            if len(waiting) > 1:
                yield [done.result() for done in waiting.popleft()]
        for part in waiting:
            yield [done.result() for done in part]
