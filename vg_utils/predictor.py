"""Ask a trained model about a picture: what notebooks, command line, metrics and demo all call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vg_utils.boxes import boxes_to_image, boxes_to_model
from vg_utils.checkpoints import find_checkpoint, load_best
from vg_utils.config import Config
from vg_utils.data.examples import DataError
from vg_utils.data.text import clean_text, tokenize
from vg_utils.data.transforms import EvalTransform
from vg_utils.evaluation import autocast
from vg_utils.models import build_model
from vg_utils.models.base import GroundingModel


@dataclass(frozen=True)
class Prediction:
    """Where a phrase points.

    Attributes:
        phrase: as it was asked.
        box_xyxy: corners in pixels of the original picture, inside it.
        score: the model's confidence in [0, 1]; what it means is the model's (see its docstring).
        presence: probability that the phrase fits anything in the picture; None where the model cannot say.
        heatmap: float32 (H, W) in [0, 1], where the model sees what the phrase means; a coarse map of the
            whole picture, without the letterbox's padding, H / W about as its sides. None where it has none.
            Two predictions may be equal whatever their maps.
    """

    phrase: str
    box_xyxy: tuple[float, float, float, float]
    score: float
    presence: float | None = None
    heatmap: Tensor | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict:
        """Plain data for JSON: `phrase, box_xyxy, score`, and `presence` where it is known."""
        corners = [round(v, 2) for v in self.box_xyxy]
        plain = {"phrase": self.phrase, "box_xyxy": corners, "score": round(self.score, 4)}
        return plain if self.presence is None else plain | {"presence": round(self.presence, 4)}

    def is_found(self, threshold: float | None) -> bool:
        """Whether the phrase is taken to fit something: its presence is not below the threshold.

        Always where there is no threshold, or the model says nothing about presence.
        """
        return threshold is None or self.presence is None or self.presence >= threshold


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Grounder:
    """A model that is shown a picture once and then answers any number of phrases.

    >>> grounder = Grounder.load("runs/scenes")                              # doctest: +SKIP
    >>> grounder.set_image("scene.jpg").ground(["the red cube"])[0].box_xyxy  # doctest: +SKIP
    (12.5, 40.1, 80.9, 117.3)

    Args:
        model: any grounding model.
        config: the settings it was trained with.
        device: where it runs; by default a GPU if there is one.
    """

    def __init__(
        self, model: GroundingModel, config: Config, device: torch.device | str | None = None
    ) -> None:
        self.device = torch.device(device) if device else default_device()
        self.model = model.eval().to(self.device)
        self.config = config
        self._image_features: dict | None = None

    @classmethod
    def load(cls, checkpoint: str | Path, device: torch.device | str | None = None) -> Grounder:
        """From a run directory, or a shipped checkpoint by its name.

        Raises:
            CheckpointError: there is none, or its weights do not fit.
            WeightsError: a public backbone that the checkpoint builds on cannot be had.
        """
        directory = find_checkpoint(checkpoint)
        config = Config.load(directory / "config.json")
        model = build_model(config.model.name, config.model)
        load_best(directory, model)
        return cls(model, config, device)

    @torch.inference_mode()
    def set_image(self, image: Image.Image | Path | str) -> Grounder:
        """Encode a picture (a file, or one in memory of any mode); returns self.

        Raises:
            DataError: a file that is missing or does not decode.
        """
        view = EvalTransform(self.config.model.image_size)(image)
        with autocast(self.device):
            self._image_features = self.model.encode_images(view.image[None].to(self.device))
        self._letterbox, self._size_wh = view.letterbox, view.size_wh
        return self

    @torch.inference_mode()
    def ground(self, phrases: Sequence[str] | str) -> list[Prediction]:
        """The box of each phrase in the picture that was set last.

        Raises:
            ValueError: no picture was set.
            DataError: a phrase is empty.
        """
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        if self._image_features is None:
            raise ValueError("no picture to look at: call set_image(image) before ground(phrases)")
        cleaned = [clean_text(phrase) for phrase in phrases]
        if not all(cleaned):
            raise DataError(f"expected phrases with at least one word, got {phrases}")
        if not cleaned:
            return []
        tokens = tokenize(cleaned, trim=True).to(self.device)
        index = torch.zeros(len(phrases), dtype=torch.long, device=self.device)
        with autocast(self.device):
            outputs = self.model(self._image_features, self.model.encode_texts(tokens), index)
        boxes = outputs["boxes_cxcywh"].float().cpu()
        boxes = boxes_to_image(boxes, self._letterbox, self.config.model.image_size, self._size_wh)
        scores = outputs["score"].float().tolist()
        unknown = [None] * len(phrases)
        presence = outputs["presence"].float().tolist() if "presence" in outputs else unknown
        heatmaps = self._of_picture(outputs["heatmap"]) if "heatmap" in outputs else unknown
        return [
            Prediction(phrase, tuple(box), *rest)
            for phrase, box, *rest in zip(phrases, boxes.tolist(), scores, presence, heatmaps, strict=True)
        ]

    def _of_picture(self, maps: Tensor) -> Tensor:
        """(N, G, G) maps of the model's square -> float32 (N, H, W) of the picture in it, on the CPU.

        Sampled where the cells of the smaller map are (bilinear): the picture's edges seldom are cells'.
        """
        corners = torch.tensor([[0.0, 0.0, *self._size_wh]])
        picture = boxes_to_model(corners, self._letterbox, self.config.model.image_size)[0]
        x, y, width, height = picture.tolist()  # shares of the square
        rows, columns = (max(1, round(maps.shape[-1] * side)) for side in (height, width))
        # torch counts the square's places from -1 to 1
        placed = torch.tensor([[[width, 0.0, 2 * x - 1], [0.0, height, 2 * y - 1]]])
        places = F.affine_grid(placed, [1, 1, rows, columns], align_corners=False)  # (1, rows, columns, 2)
        maps = maps.float().cpu()[None]  # the phrases are the channels of one picture
        return F.grid_sample(maps, places, padding_mode="border", align_corners=False)[0].clamp(0, 1)
