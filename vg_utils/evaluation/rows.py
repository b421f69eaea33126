"""From a model and a split to `rows`, one an expression.

Models that encode go through `predict_rows`, in batches, each image encoded once; whatever else can point
at a box (a constant, a detector with CLIP) goes through `ask`. Both end in the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from vg_utils.boxes import boxes_to_image, paired_iou
from vg_utils.data.batches import Batch, GroundingDataset, Tokenizer, make_loader
from vg_utils.data.examples import Expression, GroundingExample
from vg_utils.data.transforms import EvalTransform
from vg_utils.evaluation.metrics import PROPOSAL_COUNTS
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.losses import present
from vg_utils.models.precision import autocast

CONFIDENCES = ("presence", "score_logit", "presence_logit")  # outputs (N,) of some models; logits at T = 1


class Predicted(NamedTuple):
    """A model's answers on a split.

    Attributes:
        rows: of the expressions that have a box (see `evaluation.metrics`), with the columns of `CONFIDENCES`
            that the model gives.
        loss: mean weighted loss a phrase.
        absent: of the phrases in the batches that fit nothing in their image: `image_id, sent_id, text,
            family`, the predicted `x1, y1, x2, y2` in pixels of the original image, `score`, and the
            columns of `CONFIDENCES` that the model gives.
    """

    rows: pd.DataFrame
    loss: float
    absent: pd.DataFrame


def eval_batches(
    examples: Sequence[GroundingExample],
    image_size: int,
    tokenizer: Tokenizer,
    batch_images: int = 64,
    workers: int = 0,
    absent: int | None = 0,
) -> Iterable[Batch]:
    """The plain letterboxed images of a split with all their expressions, in order.

    With `absent` so many of each image's absent phrases as well; None: all of them.
    """
    dataset = GroundingDataset(examples, EvalTransform(image_size), absent=absent)
    return make_loader(dataset, tokenizer, batch_images, shuffle=False, workers=workers)


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
    """(N, 4) or (N, K, 4) boxes of the square, as corners in original pixels, clipped to the image."""
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
        (N, len(PROPOSAL_COUNTS)) of boxes in original pixels, clipped to the image.
    """
    n, count = proposals_cxcywh.shape[:2]
    boxes_xyxy = _boxes_in_picture(proposals_cxcywh, batch, image_size)  # (N, K, 4)
    truth = batch.target_boxes_xyxy.repeat_interleave(count, dim=0)  # (N * K, 4)
    ious = paired_iou(boxes_xyxy.flatten(0, 1), truth).view(n, count)
    best = ious.cummax(dim=1).values  # (N, K)
    return best[:, [min(k, count) - 1 for k in PROPOSAL_COUNTS]]


def ask(
    answer: Callable[[GroundingExample], tuple[Tensor, Tensor]], examples: Sequence[GroundingExample]
) -> pd.DataFrame:
    """Rows of anything that gives boxes_xyxy (N, 4) in original pixels and scores (N,) for an example."""
    boxes, scores = zip(*(answer(example) for example in examples), strict=True)
    return make_rows(examples, torch.cat(boxes), torch.cat(scores))


def constant_answer(shares_xyxy: Sequence[float]) -> Callable[[GroundingExample], tuple[Tensor, Tensor]]:
    """The same box, in shares of the image's width and height, whatever is asked."""

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
