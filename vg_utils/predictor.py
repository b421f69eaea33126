"""Ask a trained model about an image: what notebooks, command line, metrics and demo all call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vg_utils.boxes import boxes_to_image, boxes_to_model
from vg_utils.config import Config
from vg_utils.data.examples import DataError
from vg_utils.data.gpu_decoding import read_image
from vg_utils.data.text import clean_text
from vg_utils.models.answering import Answerer
from vg_utils.models.base import GroundingModel
from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT, find_checkpoint, load_model, origin
from vg_utils.models.prediction import Prediction

# Presence that each word unknown to the model leaves. Below a half: what was sure is then taken as not found.
UNKNOWN_WORD_LEAVES = 0.4


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Grounder:
    """A model that is shown an image once and then answers any number of phrases.

    >>> grounder = Grounder.load()                                        # doctest: +SKIP
    >>> grounder.set_image("coffee.jpg").ground(["the cup"])[0].box_xyxy  # doctest: +SKIP
    (152.1, 60.2, 428.8, 271.0)

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
        self.device = torch.device(device) if device else default_device()
        self.model = model.eval().to(self.device)
        self.config = config
        self.origin = origin or config.model.name
        self._answerer = Answerer(self.model, self.device, fast)
        self._image_features: dict | None = None

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = DEFAULT_CHECKPOINT,
        device: torch.device | str | None = None,
        fast: bool = True,
    ) -> Grounder:
        """From a run directory, or a shipped checkpoint by its name; by default the one for photographs.

        Raises:
            CheckpointError: there is none, or its weights do not fit.
            WeightsError: a public backbone that the checkpoint builds on cannot be had.
        """
        directory = find_checkpoint(checkpoint)
        model, config = load_model(directory)
        return cls(model, config, device, origin(checkpoint), fast)

    @torch.inference_mode()
    def set_image(self, image: Image.Image | Path | str) -> Grounder:
        """Encode an image (a file, or one in memory of any mode); returns self.

        Raises:
            DataError: a file that is missing or does not decode.
        """
        self._image_features = None  # should this image fail, nothing answers about the one before
        view = read_image(image, self.config.model.image_size, self.device if self._answerer.fast else "cpu")
        self._image_features = self._answerer.encode(view.image[None])
        self._letterbox, self._size_wh = view.letterbox, view.size_wh
        return self

    @torch.inference_mode()
    def ground(self, phrases: Sequence[str] | str) -> list[Prediction]:
        """The box of each phrase in the image that was set last.

        Of a phrase with words that mean nothing to the model the presence is lowered, to 0.4 times for each
        of them: the rest of the phrase may well fit something, but that is not what was asked.

        Raises:
            ValueError: no image was set.
            DataError: a phrase is empty.
        """
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if self._image_features is None:
            raise ValueError("no image to look at: call set_image(image) before ground(phrases)")
        cleaned = [clean_text(phrase) for phrase in phrases]
        if not all(cleaned):
            raise DataError(f"expected phrases with at least one word, got {phrases}")
        if not cleaned:
            return []
        outputs = self._answerer.answer(self._image_features, self.model.tokenizer(cleaned))
        boxes = boxes_to_image(
            outputs["boxes_cxcywh"], self._letterbox, self.config.model.image_size, self._size_wh
        )
        scores = outputs["score"].tolist()
        nothing, unknown = [None] * len(phrases), self.model.unknown_words(cleaned)
        presence = nothing
        if "presence" in outputs:
            there = outputs["presence"].tolist()
            presence = [p * UNKNOWN_WORD_LEAVES ** len(u) for p, u in zip(there, unknown, strict=True)]
        heatmaps = self._of_picture(outputs["heatmap"]) if "heatmap" in outputs else nothing
        answers = zip(phrases, boxes.tolist(), scores, presence, heatmaps, unknown, strict=True)
        return [Prediction(phrase, tuple(box), *rest) for phrase, box, *rest in answers]

    def _of_picture(self, maps: Tensor) -> Tensor:
        """(N, G, G) maps of the model's square -> (N, H, W) of the image in it.

        Sampled where the cells of the smaller map are (bilinear): the image's edges seldom are cells'.
        """
        corners = torch.tensor([[0.0, 0.0, *self._size_wh]])
        picture = boxes_to_model(corners, self._letterbox, self.config.model.image_size)[0]
        x, y, width, height = picture.tolist()  # shares of the square
        rows, columns = (max(1, round(maps.shape[-1] * side)) for side in (height, width))
        # torch counts the square's places from -1 to 1
        placed = torch.tensor([[[width, 0.0, 2 * x - 1], [0.0, height, 2 * y - 1]]])
        places = F.affine_grid(placed, [1, 1, rows, columns], align_corners=False)  # (1, rows, columns, 2)
        maps = maps[None]  # the phrases are the channels of one image
        return F.grid_sample(maps, places, padding_mode="border", align_corners=False)[0].clamp(0, 1)
