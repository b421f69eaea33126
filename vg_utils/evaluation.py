"""From a model and a split to `rows`, one an expression, and from rows to results.

Models that encode go through `predict_rows`, in batches, each picture encoded once; whatever else can point
at a box (a constant, a detector with CLIP) goes through `ask`. Both end in the same table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from vg_utils.boxes import boxes_to_image, paired_iou
from vg_utils.confidence import confidence_of
from vg_utils.config import ModelConfig
from vg_utils.data.batches import Batch, GroundingDataset, make_loader
from vg_utils.data.examples import Expression, GroundingExample, load_image
from vg_utils.data.text import tokenize
from vg_utils.data.transforms import EvalTransform
from vg_utils.losses import present
from vg_utils.metrics import PROPOSAL_COUNTS, category_hits, crop_regions, summarise
from vg_utils.models.backbones import ClipBackbone, WeightsError
from vg_utils.models.base import Features, GroundingModel

CROPS_AT_ONCE = 256  # through CLIP
CONFIDENCES = ("presence", "score_logit", "presence_logit")  # outputs (N,) of some models; logits at T = 1


class Predicted(NamedTuple):
    """A model's answers on a split.

    Attributes:
        rows: of the expressions that have a box (see `vg_utils.metrics`), with the columns of `CONFIDENCES`
            that the model gives.
        loss: mean weighted loss a phrase.
        absent: of the phrases in the batches that fit nothing in their picture: `image_id, sent_id, text,
            family`, the predicted `x1, y1, x2, y2` in pixels of the original picture, `score`, and the
            columns of `CONFIDENCES` that the model gives.
    """

    rows: pd.DataFrame
    loss: float
    absent: pd.DataFrame


class Evaluation(NamedTuple):
    """What `evaluate_model` gives: rows, results for JSON, and rows of absent phrases where it asked any."""

    rows: pd.DataFrame
    results: dict
    absent: pd.DataFrame | None = None


def eval_batches(
    examples: Sequence[GroundingExample],
    image_size: int,
    batch_images: int = 64,
    workers: int = 0,
    absent: int | None = 0,
) -> Iterable[Batch]:
    """The plain letterboxed pictures of a split with all their expressions, in order.

    With `absent` so many of each picture's absent phrases as well; None: all of them.
    """
    dataset = GroundingDataset(examples, EvalTransform(image_size), absent=absent)
    return make_loader(dataset, batch_images, shuffle=False, workers=workers)


@torch.no_grad()
def predict_rows(
    model: GroundingModel,
    examples: Sequence[GroundingExample],
    batches: Iterable[Batch],
    image_size: int,
    device: torch.device | str,
) -> Predicted:
    """Run a model over `batches` of `examples`, which have to be in the same order."""
    model = model.eval().to(device)
    families = {(e.image_id, phrase.sent_id): phrase.family for e in examples for phrase in e.absent}
    found, absent, loss_sum, count = [], [], 0.0, 0
    for batch in batches:
        batch = batch.to(device)
        with autocast(device):
            outputs = model.predict(batch.images, batch.tokens, batch.image_index)
            losses = model.losses(outputs, batch.target_boxes_cxcywh)
        n = len(batch.image_index)
        loss_sum += sum(w * losses[name].item() for name, w in model.loss_weights.items()) * n
        count += n
        columns = _columns(outputs, batch, image_size)
        has_box = present(batch.target_boxes_cxcywh).cpu()
        found.append({name: values[has_box] for name, values in columns.items()})
        absent.append(_absent_rows(batch, columns, ~has_box, families))
    columns = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    rows = make_rows(examples, columns.pop("boxes_xyxy"), columns.pop("score"))
    rows = rows.assign(**{name: values.numpy() for name, values in columns.items()})
    return Predicted(rows, loss_sum / count, pd.concat(absent, ignore_index=True))


def _columns(outputs: Features, batch: Batch, image_size: int) -> dict[str, Tensor]:
    """Of each phrase, on the CPU: `boxes_xyxy` (N, 4), and (N,) each of what becomes a column of its name."""
    columns = {"boxes_xyxy": _boxes_in_picture(outputs["boxes_cxcywh"], batch, image_size)}
    columns |= {name: outputs[name].float() for name in ("score", *CONFIDENCES) if name in outputs}
    if "proposals_cxcywh" in outputs:
        ious = proposal_ious(outputs["proposals_cxcywh"], batch, image_size).unbind(dim=1)
        columns |= {f"proposal_iou@{k}": best for k, best in zip(PROPOSAL_COUNTS, ious, strict=True)}
    return {name: values.cpu() for name, values in columns.items()}


def _absent_rows(batch: Batch, columns: dict[str, Tensor], chosen: Tensor, families: dict) -> pd.DataFrame:
    """`Predicted.absent` of one batch, whose (N,) chosen phrases fit nothing."""
    index = chosen.nonzero().flatten().tolist()
    image_ids = [batch.image_ids[i] for i in batch.image_index[chosen.to(batch.image_index.device)].tolist()]
    sent_ids = [batch.sent_ids[i] for i in index]
    table = {"image_id": image_ids, "sent_id": sent_ids, "text": [batch.texts[i] for i in index]}
    table["family"] = [families[key] for key in zip(image_ids, sent_ids, strict=True)]
    table |= dict(zip(("x1", "y1", "x2", "y2"), columns["boxes_xyxy"][chosen].numpy().T, strict=True))
    names = [name for name in ("score", *CONFIDENCES) if name in columns]
    return pd.DataFrame(table | {name: columns[name][chosen].numpy() for name in names})


def _boxes_in_picture(boxes_cxcywh: Tensor, batch: Batch, image_size: int) -> Tensor:
    """(N, 4) or (N, K, 4) boxes of the square, as corners in original pixels, clipped to the picture."""
    per_box = (len(boxes_cxcywh), *[1] * (boxes_cxcywh.ndim - 2), 4)
    letterboxes = batch.letterboxes[batch.image_index].view(per_box)
    limits = batch.sizes_wh[batch.image_index].repeat(1, 2).view(per_box)
    return boxes_to_image(boxes_cxcywh.float(), letterboxes, image_size).clamp(min=0).minimum(limits)


def proposal_ious(proposals_cxcywh: Tensor, batch: Batch, image_size: int) -> Tensor:
    """Best IoU with the truth among the first k proposals of each expression, for each k of PROPOSAL_COUNTS.

    Args:
        proposals_cxcywh: (N, K, 4) of the model's square, the best first, filled up with zeros.
        batch: where they come from.
        image_size: side of the square in pixels.

    Returns:
        (N, len(PROPOSAL_COUNTS)) of boxes in original pixels, clipped to the picture.
    """
    n, count = proposals_cxcywh.shape[:2]
    boxes_xyxy = _boxes_in_picture(proposals_cxcywh, batch, image_size)  # (N, K, 4)
    truth = batch.target_boxes_xyxy.repeat_interleave(count, dim=0)  # (N * K, 4)
    ious = paired_iou(boxes_xyxy.flatten(0, 1), truth).view(n, count)
    best = ious.cummax(dim=1).values  # (N, K)
    return best[:, [min(k, count) - 1 for k in PROPOSAL_COUNTS]]


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 where the GPU has it, plain float32 elsewhere."""
    device = torch.device(device)
    return torch.autocast(
        device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported()
    )


def ask(
    answer: Callable[[GroundingExample], tuple[Tensor, Tensor]], examples: Sequence[GroundingExample]
) -> pd.DataFrame:
    """Rows of anything that gives boxes_xyxy (N, 4) in original pixels and scores (N,) for an example."""
    boxes, scores = zip(*(answer(example) for example in examples), strict=True)
    return make_rows(examples, torch.cat(boxes), torch.cat(scores))


def constant_answer(shares_xyxy: Sequence[float]) -> Callable[[GroundingExample], tuple[Tensor, Tensor]]:
    """The same box, in shares of the picture's width and height, whatever is asked."""

    def answer(example: GroundingExample) -> tuple[Tensor, Tensor]:
        box = torch.tensor(shares_xyxy) * torch.tensor(example.size_wh * 2)
        n = len(example.expressions)
        return box.expand(n, 4), torch.full((n,), 0.5)

    return answer


def make_rows(examples: Sequence[GroundingExample], boxes_xyxy: Tensor, scores: Tensor) -> pd.DataFrame:
    """The table that all metrics start from.

    Args:
        examples: M of them with N expressions together.
        boxes_xyxy: (N, 4) predictions in original pixels, in the order of the expressions; clipped here.
        scores: (N,).
    """
    asked = expressions_of(examples)
    truth = torch.tensor([expression.box_xyxy for _, expression in asked], dtype=torch.float32)  # (N, 4)
    sizes = torch.tensor([example.size_wh for example, _ in asked], dtype=torch.float32)  # (N, 2)
    boxes = boxes_xyxy.float().clamp(min=0).minimum(sizes.repeat(1, 2))
    columns = {
        "image_id": [example.image_id for example, _ in asked],
        "sent_id": [expression.sent_id for _, expression in asked],
        "ref_id": [expression.ref_id for _, expression in asked],
        "text": [expression.text for _, expression in asked],
        "category": [expression.category for _, expression in asked],
        "family": [expression.family for _, expression in asked],
        "distractors": pd.array([expression.distractors for _, expression in asked], dtype="Int64"),
        "n_words": [len(expression.text.split()) for _, expression in asked],
    }
    for i, name in enumerate(("x1", "y1", "x2", "y2")):
        columns[name] = boxes[:, i].numpy()
        columns[f"t{name}"] = truth[:, i].numpy()
    columns |= {"width": sizes[:, 0].int().numpy(), "height": sizes[:, 1].int().numpy()}
    columns |= {"score": scores.float().numpy(), "iou": paired_iou(boxes, truth).numpy()}
    return pd.DataFrame(columns)


def expressions_of(examples: Sequence[GroundingExample]) -> list[tuple[GroundingExample, Expression]]:
    """Every expression with its example, in order."""
    return [(example, expression) for example in examples for expression in example.expressions]


def judge_for(
    model: GroundingModel | None, config: ModelConfig, device: torch.device | str
) -> ClipBackbone | None:
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
        return ClipBackbone(config.clip, config.image_size).eval().to(device)
    except WeightsError:
        return own


@torch.no_grad()
def add_clip_similarity(
    rows: pd.DataFrame, examples: Sequence[GroundingExample], judge: ClipBackbone, device: torch.device | str
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
            embedded.append(_embed_crops(judge, crops, device))
            crops = []
    if crops:
        embedded.append(_embed_crops(judge, crops, device))
    vectors = torch.cat(embedded)  # for each picture, its n predicted crops, then its n true ones
    counts = [len(example.expressions) for example in examples]
    pairs = [part.chunk(2) for part in vectors.split([2 * n for n in counts])]
    found, wanted = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))  # (N, D) each
    phrases = embed_texts(judge, list(rows["text"]), device)
    names = sorted(set(rows["category"]) - {"unknown"})
    rows = rows.assign(
        semantic_similarity=(found * wanted).sum(1).numpy(), text_similarity=(found * phrases).sum(1).numpy()
    )
    if len(names) > 1:
        texts = embed_texts(judge, [f"a photo of a {name}" for name in names], device)
        index = {name: i for i, name in enumerate(names)}
        known = rows["category"] != "unknown"
        truth = torch.tensor([index.get(name, 0) for name in rows["category"]])
        hits = pd.array(category_hits(found, texts, truth).tolist(), dtype="boolean")
        rows = rows.assign(category_hit=pd.Series(hits, index=rows.index).where(known))
    return rows


def embed_texts(judge: ClipBackbone, texts: list[str], device: torch.device | str) -> Tensor:
    """Unit vectors (N, D) of phrases, each different phrase encoded once."""
    unique = list(dict.fromkeys(texts))
    vectors = [
        judge.encode_texts(tokenize(unique[i : i + CROPS_AT_ONCE], trim=True).to(device)).pooled.float().cpu()
        for i in range(0, len(unique), CROPS_AT_ONCE)
    ]
    index = {text: i for i, text in enumerate(unique)}
    return F.normalize(torch.cat(vectors), dim=1)[[index[text] for text in texts]]


def _embed_crops(judge: ClipBackbone, crops: list[Tensor], device: torch.device | str) -> Tensor:
    with autocast(device):
        vectors = judge.encode_images(torch.cat(crops).to(device))
    return F.normalize(vectors.float(), dim=1).cpu()


def results_of(
    rows: pd.DataFrame,
    model: str,
    dataset: str,
    split: str,
    seconds: float,
    absent: pd.DataFrame | None = None,
) -> dict:
    """The object that `evaluate --json` writes; shares are in [0, 1], seconds those of predicting."""
    return {
        "model": model,
        "dataset": dataset,
        "split": split,
        **summarise(rows),
        **confidence_of(rows, absent),
        "seconds": round(seconds, 3),
    }


def evaluate_model(
    model: GroundingModel,
    examples: Sequence[GroundingExample],
    config: ModelConfig,
    dataset: str,
    split: str,
    device: torch.device | str,
    workers: int = 0,
    similarity: bool = True,
    batches: Iterable[Batch] | None = None,
) -> Evaluation:
    """Rows and results of a model on a split; `similarity` also asks CLIP about the crops.

    A model that says whether a phrase fits anything is asked the absent phrases of the pictures as well.
    `batches` are those of `examples`, in order, where they are at hand already (`ResidentPictures.loader`).
    """
    started = time.perf_counter()
    if batches is None:
        all_or_none = None if model.learns_presence else 0
        batches = eval_batches(examples, config.image_size, workers=workers, absent=all_or_none)
    rows, _, absent = predict_rows(model, examples, batches, config.image_size, device)
    seconds = time.perf_counter() - started
    judge = judge_for(model, config, device) if similarity else None
    if judge is not None:
        rows = add_clip_similarity(rows, examples, judge, device)
    results = results_of(rows, config.name, dataset, split, seconds, absent)
    return Evaluation(rows, results, absent if model.learns_presence else None)
