"""What a model says about phrases, and the forms in which other tools take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vg_utils.data.examples import DataError
from vg_utils.data.text import clean_text
from vg_utils.models.checkpoints import CheckpointError

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv


@dataclass(frozen=True)
class Prediction:
    """Where a phrase points.

    Attributes:
        phrase: as it was asked.
        box_xyxy: corners in pixels of the original image, inside it.
        score: the model's confidence in [0, 1]; what it means is the model's (see its docstring).
        presence: probability that the phrase fits anything in the image; None where the model cannot say.
        heatmap: float32 (H, W) in [0, 1], where the model sees what the phrase means; a coarse map of the
            whole image, without the letterbox's padding, H / W about as its sides. None where it has none.
            Two predictions may be equal whatever their maps.
        unknown_words: words of the phrase that mean nothing to the model, in order.
        rank: 0 for the answer, 1 for the best of the other boxes that were asked for, and so on.

    Raises:
        CheckpointError: a number that is NaN or infinite.
    """

    phrase: str
    box_xyxy: tuple[float, float, float, float]
    score: float
    presence: float | None = None
    heatmap: Tensor | None = field(default=None, repr=False, compare=False)
    unknown_words: tuple[str, ...] = ()
    rank: int = 0

    def __post_init__(self) -> None:
        numbers = (*self.box_xyxy, self.score, *([] if self.presence is None else [self.presence]))
        if not all(map(math.isfinite, numbers)):
            raise CheckpointError(
                f"{self.phrase!r:.80}: expected a finite answer of the model, got {numbers}: its weights are "
                "damaged, or of other settings"
            )

    def as_dict(self) -> dict:
        """Plain data for JSON: `phrase, box_xyxy, score`; `presence` and `unknown_words` where there are."""
        corners = [round(v, 2) for v in self.box_xyxy]
        plain = {"phrase": self.phrase, "box_xyxy": corners, "score": round(self.score, 4)}
        if self.presence is not None:
            plain["presence"] = round(self.presence, 4)
        return plain | ({"unknown_words": list(self.unknown_words)} if self.unknown_words else {})

    def is_found(self, threshold: float | None) -> bool:
        """Whether the phrase is taken to fit something: its presence is not below the threshold.

        Always where there is no threshold, or the model says nothing about presence.
        """
        return threshold is None or self.presence is None or self.presence >= threshold


class Predictions(list[Prediction]):
    """The predictions of one image: a list, phrase after phrase, of each phrase the best box first.

    >>> found = Predictions([Prediction("the cup", (10.0, 20.0, 40.0, 80.0), 0.7)])
    >>> found.boxes_xyxy
    tensor([[10., 20., 40., 80.]])
    >>> found.to_coco(image_id=7)[0]["bbox"]
    [10.0, 20.0, 30.0, 60.0]
    """

    @property
    def boxes_xyxy(self) -> Tensor:
        """float32 (N, 4), corners in pixels of the original image."""
        return torch.tensor([p.box_xyxy for p in self], dtype=torch.float32).reshape(-1, 4)

    @property
    def scores(self) -> Tensor:
        """float32 (N,) in [0, 1]."""
        return torch.tensor([p.score for p in self], dtype=torch.float32)

    def to_frame(self) -> pd.DataFrame:
        """A row a box: `phrase, rank, x1, y1, x2, y2, score, presence` (NaN where the model cannot say)."""
        import pandas as pd

        corners = dict(zip(("x1", "y1", "x2", "y2"), self.boxes_xyxy.double().T.tolist(), strict=True))
        asked = {"phrase": [p.phrase for p in self], "rank": [p.rank for p in self]}
        presence = pd.Series([p.presence for p in self], dtype="float64")
        return pd.DataFrame(asked | corners | {"score": [p.score for p in self], "presence": presence})

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict]:
        """COCO's results: `image_id, category_id, bbox` (x, y, width, height), `score`, and the `phrase`.

        Args:
            image_id: of the image in its data set.
            category_ids: one a box; by default the place of its phrase among the different ones, from 1.
        """
        numbers = {phrase: number for number, phrase in enumerate(dict.fromkeys(p.phrase for p in self), 1)}
        category_ids = [numbers[p.phrase] for p in self] if category_ids is None else category_ids
        results = []
        for p, category_id in zip(self, category_ids, strict=True):
            x1, y1, x2, y2 = p.box_xyxy
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": p.score, "phrase": p.phrase}
            results.append({"image_id": image_id, "category_id": category_id} | box)
        return results

    def to_supervision(self) -> sv.Detections:
        """For supervision's annotators and metrics, which has to be installed; phrases are class names."""
        import numpy as np
        import supervision as sv

        names = [p.phrase for p in self]
        numbers = {phrase: number for number, phrase in enumerate(dict.fromkeys(names))}
        return sv.Detections(
            xyxy=self.boxes_xyxy.numpy(),
            confidence=self.scores.numpy(),
            class_id=np.array([numbers[name] for name in names], dtype=int),
            data={"class_name": np.array(names, dtype=str)},
        )


def check_phrases(phrases: Sequence[str] | str) -> list[str]:
    """The phrases as a list, of a single text too.

    Raises:
        DataError: one that is no text, or without a word; the message says which.
    """
    phrases = [phrases] if isinstance(phrases, str) else list(phrases)
    for number, phrase in enumerate(phrases, 1):
        if not isinstance(phrase, str) or not clean_text(phrase):
            raise DataError(
                f"phrase {number} of {len(phrases)}: expected text with at least one word, got {phrase!r:.80}"
            )
    return phrases
