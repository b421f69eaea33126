"""A model made ready to answer: images encoded once, then phrases, at the speed of the device.

On a GPU the steps run as CUDA graphs (`vg_utils.models.graphs`) of a copy that only answers
(`vg_utils.models.inference`). A graph has one shape, so a few phrases are padded to the next of a few counts
and lengths, which changes no answer; more than that keep a GPU busy without graphs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.graphs import Graphed
from vg_utils.models.inference import inference_copy
from vg_utils.models.precision import autocast

COUNTS = (1, 2, 4, 8, 16, 32)  # of phrases
LENGTHS = (16, 32, 77)  # in tokens, the last as many as our text encoders read
OUTPUTS = ("boxes_cxcywh", "score", "presence", "heatmap")  # what an answer is made of


class Answerer:
    """Encodes images and answers phrases about them, see `GroundingModel` for the shapes.

    Args:
        model: in evaluation mode, on the device.
        device: where it runs.
        fast: on a GPU, make a copy of the model as it is at the first image, and record CUDA graphs; False
            calls the model itself, step by step, as on a processor.
        outputs: which of the model's outputs are wanted.
    """

    def __init__(
        self,
        model: GroundingModel,
        device: torch.device,
        fast: bool = True,
        outputs: Sequence[str] = OUTPUTS,
    ) -> None:
        self.device, self.fast, self.outputs = device, fast and device.type == "cuda", outputs
        self.given = model
        self.shapes: dict[str, torch.Size] = {}  # of a row of each output that the model has
        self._encode, self._ask = Graphed(self._encoded, device), Graphed(self._asked, device)

    @cached_property
    def model(self) -> GroundingModel:
        """What answers: the model that was given, or the copy of it."""
        return inference_copy(self.given, self.device) if self.fast else self.given

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Features:
        """(B, 3, S, S), letterboxed, on any device -> what phrases are asked of, on the device."""
        encode = self._encode if self.fast and len(images) == 1 else self._encoded
        return encode({"images": images.to(self.device, non_blocking=True)})

    @torch.inference_mode()
    def answer(
        self,
        image_features: Features,
        tokens: Tensor,
        image_index: Tensor | None = None,
        others: bool = False,
    ) -> Features:
        """Ask phrases.

        Args:
            image_features: what `encode` gave for B images.
            tokens: int64 (N, L) of the model's tokenizer, N of 1 or more.
            image_index: int64 (N,), the image of each phrase; by default there is but one.
            others: the other boxes that a phrase may mean as well, see `GroundingModel.candidates`.

        Returns:
            those of `outputs` that the model has, float32 on the CPU. The GPU is waited for here, once.
            With `others` also `other_boxes_cxcywh` (N, K, 4) and `other_scores` (N, K).
        """
        of_one = image_index is None
        inputs = {**image_features, "tokens": tokens} | ({} if of_one else {"image_index": image_index})
        if others:
            return {name: x.float().cpu() for name, x in self._given(_on(self.device, inputs), True).items()}
        if self.fast and of_one and len(tokens) <= COUNTS[-1]:
            inputs["tokens"] = padded(tokens, COUNTS, LENGTHS)
            rows = self._ask(_on(self.device, inputs))
        else:
            rows = self._asked(_on(self.device, inputs))
        answers = rows["outputs"][: len(tokens)].cpu()
        parts = answers.split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(len(tokens), *shape) for (name, shape), part in named}

    def _encoded(self, inputs: Features) -> Features:
        with autocast(self.device):
            return self.model.prepare_images(self.model.encode_images(inputs["images"]))

    def _asked(self, inputs: Features) -> Features:
        """What `_given` gives, side by side in one tensor: (N, W)."""
        wanted = {name: x.float() for name, x in self._given(inputs).items()}
        self.shapes = {name: x.shape[1:] for name, x in wanted.items()}
        return {"outputs": torch.cat([x.reshape(len(x), -1) for x in wanted.values()], dim=1)}

    def _given(self, inputs: Features, others: bool = False) -> Features:
        """Features of images, `tokens` and perhaps `image_index` -> those of `outputs` that there are."""
        image_features = dict(inputs)
        tokens = image_features.pop("tokens")
        index = image_features.pop("image_index", None)
        if index is None:
            index = torch.zeros(len(tokens), dtype=torch.long, device=self.device)
        with autocast(self.device):
            given = self.model(image_features, self.model.encode_texts(tokens), index)
        wanted = {name: given[name] for name in self.outputs if name in given}
        if others:
            wanted["other_boxes_cxcywh"], wanted["other_scores"] = self.model.candidates(given)
        return wanted


def _on(device: torch.device, tensors: Features) -> Features:
    return {name: x.to(device, non_blocking=True) for name, x in tensors.items()}


def padded(tokens: Tensor, counts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Tokens (N, L) with rows and columns up to the next of the counts and lengths; more stay as they are.

    The rows that are added repeat the first, the columns are padding.
    """
    count, length = (_next(n, steps) for n, steps in zip(tokens.shape, (counts, lengths), strict=True))
    wider = F.pad(tokens, (0, length - tokens.shape[1]))
    return torch.cat([wider, wider[:1].expand(count - len(wider), -1)])


def _next(value: int, steps: Sequence[int]) -> int:
    place = bisect_left(steps, value)
    return steps[place] if place < len(steps) else value
