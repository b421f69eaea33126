"""What the backbone for photographs knows: names of crops, captions of images, and ImageNet's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.photo_corpus import Photos, crops, resized
from vg_utils.models.photo import PhotoBackbone

PROMPT = "a photo of a {}"
AT_ONCE = 128
RETRIEVED = 250  # images, of which the right one is to be found


@torch.no_grad()
def see(model: PhotoBackbone, images: Tensor) -> Tensor:
    """Images (N, 3, S, S) -> unit vectors (N, D)."""
    return F.normalize(
        torch.cat([model.encode_images(part) for part in images.split(AT_ONCE)]).float(), dim=1
    )


@torch.no_grad()
def read(model: PhotoBackbone, texts: Sequence[str]) -> Tensor:
    """N texts -> unit vectors (N, D)."""
    device, step = model.logit_scale.device, 4 * AT_ONCE
    parts = [model.tokenizer(texts[i : i + step]).to(device) for i in range(0, len(texts), step)]
    return F.normalize(torch.cat([model.encode_texts(part).pooled for part in parts]).float(), dim=1)


def name_scores(model: PhotoBackbone, photos: Photos, side: int) -> dict[str, float]:
    """Whether a crop is nearest to the name of its class (Radford et al. 2021, section 3.1)."""
    names = read(model, [PROMPT.format(name) for name in photos.classes])
    rows = torch.arange(len(photos.label), device=photos.label.device).split(AT_ONCE)
    vectors = torch.cat([see(model, crops(photos, part, side)) for part in rows])
    hits = (vectors @ names.T).argmax(1) == photos.label
    count = photos.label.bincount(minlength=len(names))
    of_class = photos.label.bincount(hits.float(), len(names))[count > 0] / count[count > 0]
    return {
        "crops": len(hits),
        "name@1": hits.float().mean().item(),
        "name@1_mean_of_classes": of_class.mean().item(),
    }


def caption_scores(model: PhotoBackbone, photos: Photos, side: int) -> dict[str, float]:
    """Captions for images, any of an image's own, and images for captions: recall at 1 and 5."""
    numbers = photos.captioned()[:RETRIEVED]
    texts = [text for number in numbers for text in photos.captions[number]]
    owner = [place for place, number in enumerate(numbers) for _ in photos.captions[number]]
    vectors = torch.cat(
        [see(model, resized(photos.images[part], side)) for part in torch.tensor(numbers).split(AT_ONCE)]
    )
    similarity = vectors @ read(model, texts).T  # (M, T)
    owner = torch.tensor(owner, device=similarity.device)
    own = owner[None] == torch.arange(len(numbers), device=owner.device)[:, None]
    found: dict[str, float] = {"pictures": len(numbers), "captions": len(texts)}
    for k in (1, 5):
        best = similarity.topk(min(k, len(texts)), dim=1).indices  # (M, k)
        found[f"image_to_text@{k}"] = own.gather(1, best).any(1).float().mean().item()
        best = similarity.topk(min(k, len(numbers)), dim=0).indices  # (k, T)
        found[f"text_to_image@{k}"] = (best == owner).any(0).float().mean().item()
    return found


def measure(model: PhotoBackbone, photos: Photos, crop_side: int, side: int) -> dict[str, float]:
    """All of it, on images that were held out."""
    return name_scores(model, photos, crop_side) | caption_scores(model, photos, side)
