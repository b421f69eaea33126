"""How RefScenes is made up, and what can be scored on it without reading.

Run `python -m experiments.refscenes_statistics ROOT [CHECKPOINT]` on a folder of `vg_utils prepare scenes`.
Prints one line of JSON for each split. The answers that need no language bound what a number on RefScenes
means: a constant box (chosen on train), the largest object of the image, and an object drawn at random;
with a checkpoint also that model, asked the phrases of other images. So does a bag of words, trained on
train to tell the phrases that fit nothing from the others without seeing an image.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from vg_utils.data import load_examples
from vg_utils.data.refer_files import read_absent, read_instances, read_refs
from vg_utils.pipeline import evaluate_run


def describe(root: Path | str) -> dict[str, dict]:
    """Statistics of every split.

    Args:
        root: folder written by `vg_utils.refscenes.scenes.write_scenes`.

    Returns:
        split to: `images`, `expressions`, `expressions_per_image`, `objects_per_image`, `words` (fewest,
        mean, most), `box_area` (smallest, median, largest of the referred boxes, as shares of the image),
        `object_area_median`, `same_shape` (share of expressions with another object of that shape),
        `families` (shares), `constant_miou` and `constant_acc`, `largest_acc` and `random_acc` (Acc@0.5),
        `absent_per_image`, `absent_families` (shares), `absent_words` (fewest, mean, most) and
        `absent_told_by_words` (area under the ROC curve of a bag of words; 0.5 is chance).
    """
    root = Path(root)
    instances = read_instances(root / "annotations" / "instances.json")
    refs = read_refs(root / "annotations" / "refs(umd).p")
    side = instances["info"]["size"]
    objects = defaultdict(list)
    for annotation in instances["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    by_id = {annotation["id"]: annotation for annotation in instances["annotations"]}
    boxes = {i: corners([o["bbox"] for o in found]) / side for i, found in objects.items()}

    absent = read_absent(root / "annotations" / "absent(umd).p")
    told = told_by_words(refs, absent)
    constant = best_constant(expression_boxes([r for r in refs if r["split"] == "train"], by_id) / side)
    table = {}
    for split in dict.fromkeys(ref["split"] for ref in refs):
        of_split = [ref for ref in refs if ref["split"] == split]
        images = {ref["image_id"] for ref in of_split}
        targets = expression_boxes(of_split, by_id) / side
        area = box_area(targets)
        rows = [(ref, sentence) for ref in of_split for sentence in ref["sentences"]]
        largest, random, doubles = 0.0, 0.0, 0
        for (ref, _), target in zip(rows, targets, strict=True):
            candidates = boxes[ref["image_id"]]
            right = box_iou(target[None], candidates)[0] >= 0.5
            largest += right[box_area(candidates).argmax()].item()
            random += right.float().mean().item()
            same = [o for o in objects[ref["image_id"]] if o["category_id"] == ref["category_id"]]
            doubles += len(same) > 1
        sentences = [sentence for _, sentence in rows]
        fit_nothing = [phrase for phrase in absent if phrase["split"] == split]
        iou = box_iou(constant[None], targets)[0]
        table[split] = {
            "images": len(images),
            "expressions": len(rows),
            "expressions_per_image": round(len(rows) / len(images), 2),
            "objects_per_image": round(sum(len(objects[i]) for i in images) / len(images), 2),
            "words": word_counts(sentences),
            "box_area": [round(v, 4) for v in (area.min().item(), area.median().item(), area.max().item())],
            "object_area_median": round(box_area(torch.cat([boxes[i] for i in images])).median().item(), 4),
            "same_shape": round(doubles / len(rows), 3),
            "families": family_shares(sentences),
            "constant_miou": round(iou.mean().item(), 3),
            "constant_acc": round((iou >= 0.5).float().mean().item(), 3),
            "largest_acc": round(largest / len(rows), 3),
            "random_acc": round(random / len(rows), 3),
            "absent_per_image": round(len(fit_nothing) / len(images), 2),
            "absent_families": family_shares(fit_nothing),
            "absent_words": word_counts(fit_nothing),
            "absent_told_by_words": round(told[split], 3),
        }
    return table


def word_counts(sentences: list[dict]) -> list[float]:
    """Fewest, mean and most words."""
    words = [len(sentence["tokens"]) for sentence in sentences]
    return [min(words), round(sum(words) / len(words), 2), max(words)]


def family_shares(sentences: list[dict]) -> dict[str, float]:
    """The share of each family."""
    families = Counter(sentence["family"] for sentence in sentences)
    return {name: round(count / len(sentences), 3) for name, count in sorted(families.items())}


def told_by_words(refs: list[dict], absent: list[dict]) -> dict[str, float]:
    """How well words alone tell which phrases fit nothing, by split: the area under the ROC curve.

    Logistic regression on the counts of words, with both kinds weighing the same, learned on train.
    """
    rows = [(ref["split"], sentence["tokens"], False) for ref in refs for sentence in ref["sentences"]]
    rows += [(phrase["split"], phrase["tokens"], True) for phrase in absent]
    columns = {word: i for i, word in enumerate(sorted({word for _, words, _ in rows for word in words}))}
    counts = torch.zeros(len(rows), len(columns))  # (phrases, words)
    for row, (_, words, _) in zip(counts, rows, strict=True):
        row.index_add_(0, torch.tensor([columns[word] for word in words]), torch.ones(len(words)))
    is_absent = torch.tensor([absent for _, _, absent in rows])
    of_split = {split: torch.tensor([s == split for s, _, _ in rows]) for split in {s for s, _, _ in rows}}
    train = of_split["train"]
    weights = logistic_regression(counts[train], is_absent[train])
    return {split: auroc(counts[rows] @ weights, is_absent[rows]) for split, rows in of_split.items()}


def logistic_regression(features: Tensor, labels: Tensor) -> Tensor:
    """(features,) weights for (rows, features) and bool (rows,), both labels weighing the same."""
    weights = torch.zeros(features.shape[1] + 1, requires_grad=True)  # the last is the constant
    optimizer = torch.optim.LBFGS([weights], max_iter=100)
    rarity = (~labels).sum() / labels.sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:-1] + weights[-1]
        loss = F.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=rarity)
        loss = loss + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights[:-1].detach()


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: how often a true row has the higher score than a false one; ties are half."""
    higher, lower = scores[labels].sort().values, scores[~labels].sort().values
    below = torch.searchsorted(lower, higher)  # of each true row, the false ones that it beats
    ties = torch.searchsorted(lower, higher, right=True) - below
    return ((below + ties / 2).sum() / (len(higher) * len(lower))).item()


def corners(boxes_xywh: list[list[float]]) -> Tensor:
    """(N, 4) corners x1, y1, x2, y2."""
    boxes = torch.tensor(boxes_xywh)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(N,) areas."""
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)


def expression_boxes(refs: list[dict], by_id: dict[int, dict]) -> Tensor:
    """(N, 4) corners in pixels, one row for each sentence."""
    return corners([by_id[ref["ann_id"]]["bbox"] for ref in refs for _ in ref["sentences"]])


def best_constant(boxes_xyxy: Tensor) -> Tensor:
    """(4,) the box with the highest mean IoU found: a coarse grid, then ever smaller steps of one side."""
    marks = torch.linspace(0, 1, 11)
    grid = torch.cartesian_prod(marks, marks, marks, marks)
    grid = grid[(grid[:, 2] > grid[:, 0]) & (grid[:, 3] > grid[:, 1])]
    best = grid[box_iou(grid, boxes_xyxy[:2000]).mean(1).argmax()]
    step = 0.05
    while step > 0.002:
        tries = torch.cat([best[None], best + step * torch.eye(4), best - step * torch.eye(4)])
        chosen = tries[box_iou(tries, boxes_xyxy).mean(1).argmax()]
        step = step / 2 if torch.equal(chosen, best) else step
        best = chosen
    return best


def with_shuffled_phrases(
    root: Path | str, checkpoint: Path | str, split: str = "test", seed: int = 0
) -> dict:
    """What a trained model scores when every image is asked the phrases of other images."""
    examples = load_examples(root, split)
    texts = [expression.text for example in examples for expression in example.expressions]
    Random(seed).shuffle(texts)
    others = iter(texts)
    examples = [
        replace(example, expressions=tuple(e._replace(text=next(others)) for e in example.expressions))
        for example in examples
    ]
    results = evaluate_run(checkpoint, examples, "RefScenes, phrases shuffled", split).results
    return {name: round(results[name], 3) for name in ("miou", "acc@0.5")}


if __name__ == "__main__":
    for split, numbers in describe(sys.argv[1]).items():
        print(json.dumps({"split": split, **numbers}))
    if len(sys.argv) > 2:
        print(json.dumps({"phrases shuffled": with_shuffled_phrases(sys.argv[1], sys.argv[2])}))
