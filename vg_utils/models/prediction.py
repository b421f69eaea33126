"""What a model says about one phrase."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from vg_utils.models.checkpoints import CheckpointError


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

    Raises:
        CheckpointError: a number that is NaN or infinite.
    """

    phrase: str
    box_xyxy: tuple[float, float, float, float]
    score: float
    presence: float | None = None
    heatmap: Tensor | None = field(default=None, repr=False, compare=False)
    unknown_words: tuple[str, ...] = ()

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
