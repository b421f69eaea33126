"""How near predicted crops are to the true crop, the phrase and the category, by a pretrained backbone."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from vg_utils.config import ModelConfig
from vg_utils.data.examples import GroundingExample
from vg_utils.data.images import load_image
from vg_utils.data.transforms import crop_regions
from vg_utils.models.backbones import Backbone, WeightsError, build_backbone
from vg_utils.models.base import GroundingModel

CROPS_AT_ONCE = 256  # held in memory


def judge_for(
    model: GroundingModel | None, config: ModelConfig, device: torch.device | str
) -> Backbone | None:
    """The CLIP that compares crops: the pretrained one, the same for all systems, not one bent by training.

    A model's own CLIP serves where it is frozen, and where there are no pretrained weights (random
    initialisation); None where there is none at all.
    """
    own = getattr(model, "clip", None)
    if own is not None and not any(p.requires_grad for p in own.parameters()):
        return own
    if config.clip.weights == "random":
        return own
    try:
        return build_backbone(config.clip, config.image_size).eval().to(device)
    except WeightsError:
        return own


@torch.no_grad()
def add_clip_similarity(
    rows: pd.DataFrame, examples: Sequence[GroundingExample], judge: Backbone, device: torch.device | str
) -> pd.DataFrame:
    """The rows with what CLIP makes of the predicted crops.

    Adds `semantic_similarity`, cosine with the true crop; `text_similarity`, cosine with the phrase; and
    `category_hit`, whether the crop is nearer to its own category's name than to any other's that occurs
    (missing where the category is unknown).
    """
    judge = judge.eval().to(device)
    predicted = torch.tensor(rows[["x1", "y1", "x2", "y2"]].to_numpy("float32"))
    true = torch.tensor(rows[["tx1", "ty1", "tx2", "ty2"]].to_numpy("float32"))
    crops, start = [], 0
    embedded: list[Tensor] = []
    for example in examples:
        n = len(example.expressions)
        both = torch.cat([predicted[start : start + n], true[start : start + n]])  # (2n, 4)
        crops.append(crop_regions(load_image(example.image), both, judge.image_size))
        start += n
        if sum(map(len, crops)) >= CROPS_AT_ONCE:
            embedded.append(judge.embed_images(torch.cat(crops)))
            crops = []
    if crops:
        embedded.append(judge.embed_images(torch.cat(crops)))
    vectors = torch.cat(embedded)  # for each image, its n predicted crops, then its n true ones
    counts = [len(example.expressions) for example in examples]
    pairs = [part.chunk(2) for part in vectors.split([2 * n for n in counts])]
    found, wanted = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))  # (N, D) each
    phrases = judge.embed_texts(list(rows["text"]))
    names = sorted(set(rows["category"]) - {"unknown"})
    rows = rows.assign(
        semantic_similarity=(found * wanted).sum(1).numpy(), text_similarity=(found * phrases).sum(1).numpy()
    )
    if len(names) > 1:
        texts = judge.embed_texts([f"a photo of a {name}" for name in names])
        index = {name: i for i, name in enumerate(names)}
        known = rows["category"] != "unknown"
        truth = torch.tensor([index.get(name, 0) for name in rows["category"]])
        hits = pd.array(category_hits(found, texts, truth).tolist(), dtype="boolean")
        rows = rows.assign(category_hit=pd.Series(hits, index=rows.index).where(known))
    return rows


def category_hits(crop_embeddings: Tensor, category_text_embeddings: Tensor, true_index: Tensor) -> Tensor:
    """Whether zero-shot CLIP puts each crop into its true category.

    Args:
        crop_embeddings: (N, D) image embeddings of the predicted crops, normalised or not.
        category_text_embeddings: (C, D) text embeddings of "a photo of a NAME", normalised or not.
        true_index: int (N,) row of the true category. Leave out crops whose category is unknown.

    Returns:
        bool (N,).

    Raises:
        ValueError: an index outside [0, C).
    """
    count = len(category_text_embeddings)
    if ((true_index < 0) | (true_index >= count)).any():
        raise ValueError(f"expected category indices in [0, {count}), got {true_index.tolist()[:8]}")
    categories = F.normalize(category_text_embeddings.float(), dim=-1)
    similarity = crop_embeddings.float() @ categories.T  # (N, C); its order ignores the crop's norm
    return similarity.argmax(dim=-1) == true_index
