"""The shape of every grounding model here: encode each image once, each phrase once, then fuse.

A referring-expression data set has about 3.7 phrases an image. Encoding images by themselves means that a
training step runs the image backbone once for them all, that the encodings of frozen backbones can be written
to disk, and that a demo answers the second question about an image at the cost of the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vg_utils.data.batches import Tokenizer

Features = dict[str, Tensor]


class GroundingModel(nn.Module):
    """Image and phrase in, one box and its score out. Subclasses write the four steps.

    Attributes:
        loss_weights: weight of each loss that `losses` names; they come from the config.
        learns_presence: whether it also learns from phrases that fit nothing in the image. Their rows
            of true boxes are zeros, and `forward` returns `presence` (N,) in [0, 1].
        ranks_boxes: whether it weighs several boxes for a phrase, see `candidates`.
        smallest_batch: images that a training batch has to hold: 2 where batch normalisation sees one value
            of each.
        parts: the fields of `ModelConfig`, beside `clip`, whose settings it reads.
    """

    loss_weights: dict[str, float]
    learns_presence = False
    ranks_boxes = False
    smallest_batch = 1
    parts: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the backbone that reads the texts: texts -> int64 (N, L), padding 0."""
        return self.backbones()["clip"].tokenizer

    def unknown_words(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Of each text the words that mean nothing to that backbone, see `Backbone.unknown_words`."""
        return self.backbones()["clip"].unknown_words(texts)

    def encode_images(self, images: Tensor) -> Features:
        """(B, 3, S, S), uint8 or float in [0, 1], letterboxed -> tensors with first dimension B."""
        raise NotImplementedError

    def prepare_images(self, image_features: Features) -> Features:
        """What the head makes of images before a phrase comes in, once however many are asked.

        Unlike `encode_images` it is learned and no part of a cache. `forward` takes its outcome as well as
        what `encode_images` gave; of the outcome it makes nothing more.
        """
        return image_features

    def encode_texts(self, tokens: Tensor) -> Features:
        """(N, L) int64 of the tokenizer, padding 0 -> tensors with first dimension N."""
        raise NotImplementedError

    def forward(self, image_features: Features, text_features: Features, image_index: Tensor) -> Features:
        """Fuse. Row i of the phrases belongs to image `image_index[i]`.

        Returns:
            at least `boxes_cxcywh` (N, 4) in [0, 1] of the model's square input and `score` (N,) in [0, 1].
        """
        raise NotImplementedError

    def candidates(self, outputs: Features) -> tuple[Tensor, Tensor]:
        """What else the model weighed for each phrase, where it `ranks_boxes`.

        Returns:
            `boxes_cxcywh` (N, K, 4) as in `forward`, and their scores (N, K) in [0, 1], none above the
            answer's; 0 where there is no box.
        """
        raise NotImplementedError

    def losses(self, outputs: Features, target_boxes_cxcywh: Tensor) -> Features:
        """Named scalar losses, unweighted, of `forward`'s outputs against (N, 4) true boxes."""
        raise NotImplementedError

    def predict(self, images: Tensor | Features, texts: Tensor | Features, image_index: Tensor) -> Features:
        """The three steps in a row, from images and tokens or, where a cache has them, their features."""
        image_features = images if isinstance(images, dict) else self.encode_images(images)
        text_features = texts if isinstance(texts, dict) else self.encode_texts(texts)
        return self(image_features, text_features, image_index)

    def backbones(self) -> dict[str, nn.Module]:
        """The pretrained parts by name: they have their own learning rate, and may be frozen."""
        return {}

    def train(self, mode: bool = True) -> GroundingModel:
        """As in torch, but what is frozen stays in evaluation mode (BatchNorm would go on learning)."""
        super().train(mode)
        if mode:
            for backbone in self.backbones().values():
                _evaluate_frozen(backbone)
        return self


def _evaluate_frozen(module: nn.Module) -> None:
    """Put the largest parts whose parameters are all frozen into evaluation mode, as wholes."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for part in module.children():
        _evaluate_frozen(part)


def per_expression(features: Tensor, image_index: Tensor) -> Tensor:
    """Rows of (B, ...) image features repeated for the phrases that point at them: (N, ...)."""
    return features.index_select(0, image_index)


class EndToEnd(nn.Module):
    """The three steps of a model as one call, for what wraps `forward` (DistributedDataParallel, compile)."""

    def __init__(self, model: GroundingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor | Features, texts: Tensor | Features, image_index: Tensor) -> Features:
        """See `GroundingModel.predict`."""
        return self.model.predict(images, texts, image_index)
