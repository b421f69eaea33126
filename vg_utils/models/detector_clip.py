"""`detector-clip`, the training-free system of the ClipRPN project: a detector proposes, CLIP picks.

Nothing is trained and nothing regressed: the answer is one of the proposals, so the share of phrases for
which any proposal fits (`proposal_recall@all`) is the ceiling of its accuracy, and reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.transforms.v2 import functional as TF

from vg_utils.boxes import boxes_to_model, to_xyxy
from vg_utils.config import ModelConfig
from vg_utils.data.examples import GroundingExample
from vg_utils.data.images import load_image
from vg_utils.data.text import clean_text
from vg_utils.data.transforms import EvalTransform, crop_regions
from vg_utils.models.backbones import Backbone, build_backbone
from vg_utils.models.detectors import ProposalSource, build_source
from vg_utils.models.prediction import Prediction, Predictions, check_phrases
from vg_utils.models.spatial import Parsed, log_factor, parse_phrase

PICTURES_AT_ONCE = 16  # whose proposals go through CLIP together


class Looked(NamedTuple):
    """What is kept of an image: its proposals and their unit vectors."""

    boxes_xyxy: Tensor  # (n, 4) in original pixels; n may be 0
    size_wh: tuple[int, int]
    crops: Tensor  # (n, D)
    contexts: (
        Tensor  # (n, D), of the image blurred around each proposal; (0, D) where the mode has no use for it
    )


class Answers(NamedTuple):
    """One row an expression."""

    boxes_xyxy: Tensor  # (N, 4) in original pixels
    scores: Tensor  # (N,) in [0, 1]
    proposal_iou: (
        Tensor  # (N,) best IoU of any proposal (of the whole image, if there was none) with the truth
    )


class DetectorClip:
    """Proposals ranked by CLIP, with the same two calls as `Grounder`.

    The modes (`model.detector-clip.mode`), with c the unit vector of a proposal's crop, b that of the whole
    image with everything else blurred, s that of the phrase and n that of its head noun phrase:

    - `crop`: cos(c, s), as in the ClipRPN project;
    - `crop+blur`: the mean of cos(c, s) and cos(b, s) (ReCLIP, Subramanian et al. 2022, section 4.1);
    - `global-local`: the cosine of alpha b + (1 - alpha) c with beta s + (1 - beta) n (Yu, Seo, Son 2023,
      section 3; they mask with segments where we have boxes, and mix before normalising).

    A score is the winner's share of a softmax over the proposals at CLIP's own temperature, times the factors
    of the spatial prior (see `spatial.log_factor`): the probability that it is this proposal, given that it
    is one of them. Without a proposal the answer is the whole image, with score 0.

    Args:
        source: where proposals come from; see `detectors.py` for what that means for results.
        clip: the judge of images and phrases.
        config: which mode, prior and weights, and the side of CLIP's input.
        device: where CLIP runs.
    """

    def __init__(
        self,
        source: ProposalSource,
        clip: Backbone,
        config: ModelConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.source, self.clip, self.config = source, clip.eval().to(self.device), config
        self._looked: Looked | None = None

    def set_image(self, image: Image.Image | Path | str, boxes_xyxy: Tensor | None = None) -> DetectorClip:
        """Find and encode the proposals of an image, or encode those given (n, 4); returns self.

        Raises:
            DataError: a file that is missing or does not decode.
            ConfigError: the source is `oracle`, and no boxes were given.
        """
        self._looked = None  # should this image fail, nothing answers about the one before
        picture = load_image(image)
        if boxes_xyxy is None:
            boxes_xyxy = self.source.propose([picture])[0]
        self._looked = self._look([picture], [boxes_xyxy.float()])[0]
        return self

    def ground(self, phrases: Sequence[str] | str) -> Predictions:
        """The box of each phrase in the image that was set last.

        Raises:
            ValueError: no image was set.
            DataError: a phrase is empty.
        """
        if self._looked is None:
            raise ValueError("no image to look at: call set_image(image) before ground(phrases)")
        phrases = check_phrases(phrases)
        if not phrases:
            return Predictions()
        boxes, scores = self._choose([(self._looked, [clean_text(phrase) for phrase in phrases])])
        answers = zip(phrases, boxes.tolist(), scores.tolist(), strict=True)
        return Predictions(Prediction(phrase, tuple(box), score) for phrase, box, score in answers)

    def answer_examples(self, examples: Sequence[GroundingExample]) -> Answers:
        """Answers to all expressions of the examples, in order."""
        boxes, scores, best = [], [], []
        for start in range(0, len(examples), PICTURES_AT_ONCE):
            batch = examples[start : start + PICTURES_AT_ONCE]
            pictures = [load_image(example.image) for example in batch]
            looked = self._look(pictures, self.source.propose(pictures, batch))
            texts = [[clean_text(x.text) for x in example.expressions] for example in batch]
            batch_boxes, batch_scores = self._choose(list(zip(looked, texts, strict=True)))
            boxes.append(batch_boxes)
            scores.append(batch_scores)
            for seen, example in zip(looked, batch, strict=True):
                truth = torch.tensor([x.box_xyxy for x in example.expressions])
                candidates = seen.boxes_xyxy if len(seen.boxes_xyxy) else _whole(seen.size_wh)
                best.append(box_iou(truth, candidates).amax(dim=1))
        return Answers(torch.cat(boxes), torch.cat(scores), torch.cat(best))

    @torch.inference_mode()
    def _look(self, pictures: Sequence[Image.Image], proposals: Sequence[Tensor]) -> list[Looked]:
        """Encode all proposals of all images together."""
        size, settings = self.config.image_size, self.config.detector_clip
        views: list[Tensor] = []  # for each image its n crops, then its n blurred selves
        for picture, boxes in zip(pictures, proposals, strict=True):
            views.append(crop_regions(picture, boxes, size))
            if settings.mode != "crop":
                views.append(blur_around(picture, boxes, size, settings.blur))
        vectors = self.clip.embed_images(torch.cat(views))
        counts = [len(view) for view in views]
        parts = list(vectors.split(counts))
        crops, contexts = (parts, []) if settings.mode == "crop" else (parts[::2], parts[1::2])
        contexts = contexts or [vectors[:0]] * len(crops)
        return [
            Looked(clip_boxes_to_image(boxes, picture.size[::-1]), picture.size, crop, context)
            for picture, boxes, crop, context in zip(pictures, proposals, crops, contexts, strict=True)
        ]

    @torch.inference_mode()
    def _choose(self, asked: Sequence[tuple[Looked, list[str]]]) -> tuple[Tensor, Tensor]:
        """boxes_xyxy (N, 4) and scores (N,) of all phrases of all images; each text is embedded once."""
        parsed = {text: parse_phrase(text) for _, texts in asked for text in texts}
        needed = [*parsed]
        for phrase in parsed.values():
            needed += [phrase.head, *(r.anchor for r in phrase.relations if r.anchor)]
        needed = list(dict.fromkeys(needed))
        vectors = dict(zip(needed, self.clip.embed_texts(needed), strict=True))
        boxes, scores = [], []
        for looked, texts in asked:
            if len(looked.boxes_xyxy) == 0:
                boxes.append(_whole(looked.size_wh).expand(len(texts), 4))
                scores.append(torch.zeros(len(texts)))
                continue
            for text in texts:
                probability = self._rank(looked, text, parsed[text], vectors)  # (n,)
                best = probability.argmax()
                boxes.append(looked.boxes_xyxy[best][None])
                scores.append(probability[best][None])
        return torch.cat(boxes), torch.cat(scores)

    def _rank(self, looked: Looked, text: str, parsed: Parsed, vectors: dict[str, Tensor]) -> Tensor:
        """Probability (n,) of each proposal of an image for one phrase."""
        settings, temperature = self.config.detector_clip, self.clip.logit_scale.exp().cpu()
        sentence = vectors[text]
        if settings.mode == "crop":
            similarity = looked.crops @ sentence
        elif settings.mode == "crop+blur":
            similarity = (looked.crops @ sentence + looked.contexts @ sentence) / 2
        else:
            alpha, beta = settings.visual_global, settings.text_global
            visual = F.normalize(alpha * looked.contexts + (1 - alpha) * looked.crops, dim=1)
            similarity = visual @ F.normalize(beta * sentence + (1 - beta) * vectors[parsed.head], dim=0)
        logits = temperature * similarity  # (n,)
        if settings.spatial_prior and len(logits) > 1:
            for kind, anchor in parsed.relations:
                weights = (temperature * (looked.crops @ vectors[anchor or parsed.head])).softmax(dim=0)
                factor = log_factor(kind, looked.boxes_xyxy, looked.size_wh, weights, settings.spatial_floor)
                logits = logits + settings.spatial_weight * factor
        return logits.softmax(dim=0)


def build_detector_clip(config: ModelConfig, device: torch.device | str = "cpu") -> DetectorClip:
    """`detector-clip` as the config describes it, with its detector and CLIP loaded.

    Raises:
        ConfigError: no such detector, mode or CLIP.
        WeightsError: weights that cannot be had; the message names the ways out.
    """
    clip = build_backbone(config.clip, config.image_size)
    return DetectorClip(build_source(config.detector_clip, device), clip, config, device)


def blur_around(picture: Image.Image, boxes_xyxy: Tensor, size: int, blur: float) -> Tensor:
    """The whole image, letterboxed, once for each box, sharp inside the box and blurred everywhere else.

    Args:
        picture: the original.
        boxes_xyxy: (n, 4) in its pixels.
        size: side S of the square in pixels.
        blur: standard deviation of the Gaussian as a share of that side.

    Returns:
        uint8 (n, 3, S, S). Of a box, the pixels that it touches are sharp, at least one.
    """
    view = EvalTransform(size)(picture)
    sharp = view.image  # (3, S, S)
    sigma = blur * size
    radius = min(math.ceil(3 * sigma), size - 1)
    soft = sharp[None].float()
    for kernel in ([2 * radius + 1, 1], [1, 2 * radius + 1]):  # a Gaussian is one across after one down
        soft = TF.gaussian_blur(soft, kernel, [sigma, sigma])
    soft = soft.round().clamp(0, 255).to(torch.uint8)  # (1, 3, S, S)
    corners = to_xyxy(boxes_to_model(boxes_xyxy, view.letterbox, size)) * size  # (n, 4)
    low = corners[:, :2].add(1e-3).floor().clamp(0, size - 1)  # (n, 2)
    high = corners[:, 2:].sub(1e-3).ceil().clamp(max=size).maximum(low + 1)
    place = torch.arange(size)
    across = (place >= low[:, :1]) & (place < high[:, :1])  # (n, S)
    down = (place >= low[:, 1:]) & (place < high[:, 1:])
    inside = down[:, None, :, None] & across[:, None, None, :]  # (n, 1, S, S)
    return torch.where(inside, sharp, soft)


def _whole(size_wh: tuple[int, int]) -> Tensor:
    """The box of a whole image, (1, 4)."""
    return torch.tensor([[0, 0, *size_wh]], dtype=torch.float32)
