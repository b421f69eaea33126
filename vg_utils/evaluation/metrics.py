"""What a model scored: mIoU and Acc@t with intervals, CLIP similarity of what it found, where it errs.

Everything starts from `rows`, the pandas table that evaluation produces, one row an expression:

- `image_id, sent_id, ref_id, text, category, family, distractors` (missing where unknown), `n_words`;
- `x1, y1, x2, y2` the prediction and `tx1, ty1, tx2, ty2` the truth, corners in pixels of the original image;
- `width, height` of the image in pixels, `score`, and `iou` in [0, 1];
- where CLIP was asked: `semantic_similarity` (predicted crop to true crop) and `text_similarity` (predicted
  crop to phrase), cosines in [-1, 1]; `category_hit`, whether zero-shot CLIP names the predicted crop
  correctly (missing where the true category is unknown);
- where a model says so: `presence`, the probability that the phrase fits anything in the image, and
  `score_logit, presence_logit`, before temperature;
- where a model proposes boxes: `proposal_iou@k`, the best IoU among its first k proposals: 1, 5 and 20,
  or `all` that a detector found.

A mean is always a sum over all rows divided once by their number, never a mean of the means of batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

THRESHOLDS = (0.5, 0.75, 0.9)  # an expression counts as found at t where its IoU is at least t
PROPOSAL_COUNTS = (1, 5, 20)  # first proposals among which a box with IoU 0.5 or more is looked for
LENGTH_EDGES, LENGTH_LABELS = (5, 9, 13), ("1-4 words", "5-8 words", "9-12 words", "13+ words")
SIZE_EDGES, SIZE_LABELS = (0.02, 0.08, 0.20), ("below 2%", "2-8%", "8-20%", "20% and more")
DISTRACTOR_EDGES, DISTRACTOR_LABELS = (1, 2, 3), ("0", "1", "2", "3+")
UNKNOWN = "unknown"
# column of rows -> name of its mean in a summary
OPTIONAL_MEANS = {
    "semantic_similarity": "semantic_similarity",
    "text_similarity": "text_similarity",
    "category_hit": "category_recall",
}
_DRAWN_AT_ONCE = 4_000_000  # resampled images held in memory at a time by the bootstrap (32 MB of indices)


def summarise(rows: pd.DataFrame) -> dict:
    """The numbers of one evaluation, ready for JSON; shares are in [0, 1].

    `category_recall` is the share of expressions whose predicted crop zero-shot CLIP puts into the true
    category: one vote an expression (micro), not one a category, so that a category with three examples
    cannot move it much; expressions of unknown category have no vote. The intervals are `bootstrap_ci` over
    images.

    Args:
        rows: the table described at the top of this module.

    Returns:
        Dict of `n_images, n_expressions, miou, miou_ci95, acc@0.5, acc@0.5_ci95, acc@0.75, acc@0.9,
        semantic_similarity, text_similarity, category_recall`. The last three are None where their column is
        absent or holds nothing; an interval is `[low, high]`, `[None, None]` when there is a single image.
        Of a model that proposes boxes also `proposal_recall@1`, `@5` and `@20`, or `@all`: the share of
        expressions with a box of IoU 0.5 or more among so many. Far above `acc@0.5` it says that ranking
        fails, not boxes.

    Raises:
        ValueError: no rows, a column missing, a sentence counted twice, or an IoU not in [0, 1].
    """
    check_rows(rows)
    iou, images = rows["iou"].to_numpy(float), rows["image_id"].to_numpy()
    summary = {
        "n_images": int(rows["image_id"].nunique()),
        "n_expressions": len(rows),
        "miou": float(iou.mean()),
        "miou_ci95": _json_interval(bootstrap_ci(iou, images)),
    }
    for threshold in THRESHOLDS:
        summary[f"acc@{threshold}"] = float((iou >= threshold).mean())
    summary["acc@0.5_ci95"] = _json_interval(bootstrap_ci(iou >= 0.5, images))
    for column in rows:
        if column.startswith("proposal_iou@"):
            recall = float((rows[column] >= 0.5).mean())
            summary[column.replace("proposal_iou", "proposal_recall")] = recall
    return summary | {name: _optional_mean(rows, column) for column, name in OPTIONAL_MEANS.items()}


def check_rows(rows: pd.DataFrame, columns: Sequence[str] = ("image_id", "sent_id", "iou")) -> None:
    """Raise a ValueError that names the trouble unless `rows` can be summarised (see `summarise`)."""
    if len(rows) == 0:
        raise ValueError("expected at least one evaluated expression, got an empty table")
    missing = [column for column in columns if column not in rows]
    if missing:
        raise ValueError(f"expected the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    iou = rows["iou"].to_numpy(float)
    bad = ~((iou >= 0) & (iou <= 1))  # True for NaN too
    if bad.any():
        raise ValueError(
            f"expected IoU in [0, 1], got {iou[bad][0]} at sentence {rows['sent_id'][bad].iloc[0]}"
        )
    # Gathering from several processes pads the last batch with copies; counted twice, they bend every mean.
    twice = rows["sent_id"].duplicated()
    if twice.any():
        first = rows["sent_id"][twice].iloc[0]
        raise ValueError(f"expected each sentence once, got {int(twice.sum())} copies, first {first}")


def bootstrap_ci(
    values: ArrayLike, groups: ArrayLike, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, drawing whole images (cluster bootstrap).

    The expressions of an image share its difficulty, so drawing them one by one would give intervals that
    are too narrow. An image is drawn with all its expressions; a resampled mean is the sum of the drawn
    images' sums over the sum of their counts.

    Args:
        values: (N,) numbers or booleans.
        groups: (N,) the image of each value.
        n: number of resamples.
        seed: of the resampling; the same input and seed give the same interval.
        level: coverage aimed at, in (0, 1).

    Returns:
        (low, high). Both NaN with a single image: one image says nothing about how much images differ.

    Raises:
        ValueError: no values, or a different number of values and groups.
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if values.ndim != 1 or len(values) == 0 or values.shape != groups.shape:
        raise ValueError(
            f"expected (N,) values and (N,) groups, N > 0, got {values.shape} and {groups.shape}"
        )
    images, index = np.unique(groups, return_inverse=True)
    if len(images) == 1:
        return float("nan"), float("nan")
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    rng = np.random.default_rng(seed)
    means, chunk = [], max(1, _DRAWN_AT_ONCE // len(images))
    for start in range(0, n, chunk):
        drawn = rng.integers(0, len(images), size=(min(chunk, n - start), len(images)))  # (draws, images)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def breakdown(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Where the score comes from: the means of groups of expressions.

    Returns:
        Tables by name: "length" (words of the expression), "size" (share of the image that the true box
        covers), "distractors" (other objects of the same category) and, where any expression has one,
        "family". The index of a table is the group, only groups that occur; the columns are `n`, `miou`,
        `miou_low`, `miou_high` (95% interval over images, NaN with one image), `acc@0.5`, and of
        `semantic_similarity, text_similarity, category_recall` those that `rows` has. The `n` of a table
        sum to the number of rows.

    Raises:
        ValueError: as `summarise`.
    """
    corners = ["tx1", "ty1", "tx2", "ty2"]
    check_rows(rows, ["image_id", "sent_id", "iou", "n_words", *corners, "width", "height"])
    x1, y1, x2, y2 = (rows[name].to_numpy(float) for name in corners)
    share = (x2 - x1) * (y2 - y1) / (rows["width"].to_numpy(float) * rows["height"].to_numpy(float))
    groupings = {
        "length": (_bins(rows["n_words"].to_numpy(float), LENGTH_EDGES, LENGTH_LABELS), LENGTH_LABELS),
        "size": (_bins(share, SIZE_EDGES, SIZE_LABELS), SIZE_LABELS),
    }
    distractors = rows.get("distractors", pd.Series(np.nan, index=rows.index))
    distractors = pd.to_numeric(distractors).to_numpy(float, na_value=np.nan)
    groupings["distractors"] = (
        _bins(distractors, DISTRACTOR_EDGES, DISTRACTOR_LABELS),
        (*DISTRACTOR_LABELS, UNKNOWN),
    )
    if "family" in rows:
        family = rows["family"].astype(object).fillna("").replace("", UNKNOWN).to_numpy()
        if (family != UNKNOWN).any():
            groupings = {"family": (family, sorted(set(family)))} | groupings
    return {name: _group_means(rows, labels, order, name) for name, (labels, order) in groupings.items()}


def _bins(values: np.ndarray, edges: Sequence[float], labels: Sequence[str]) -> np.ndarray:
    """Label of each value: labels[i] for edges[i - 1] <= value < edges[i], UNKNOWN for NaN."""
    return np.where(np.isnan(values), UNKNOWN, np.array(labels, dtype=object)[np.digitize(values, edges)])


def _group_means(rows: pd.DataFrame, labels: np.ndarray, order: Sequence[str], name: str) -> pd.DataFrame:
    """One line for each label of `order` that occurs (and for UNKNOWN, last)."""
    table = {}
    for label in dict.fromkeys([*order, UNKNOWN]):
        group = rows[labels == label]
        if len(group) == 0:
            continue
        iou = group["iou"].to_numpy(float)
        low, high = bootstrap_ci(iou, group["image_id"].to_numpy())
        table[label] = {"n": len(group), "miou": iou.mean(), "miou_low": low, "miou_high": high}
        table[label]["acc@0.5"] = (iou >= 0.5).mean()
        for column, mean_name in OPTIONAL_MEANS.items():
            if column in rows:
                table[label][mean_name] = _optional_mean(group, column)
    frame = pd.DataFrame.from_dict(table, orient="index").astype({"n": int})
    return frame.astype({column: float for column in frame if column != "n"}).rename_axis(name)


def _optional_mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean of the values present; None where there are none."""
    if column not in rows:
        return None
    values = rows[column].astype("Float64").dropna()
    return float(values.mean()) if len(values) else None


def _json_interval(interval: tuple[float, float]) -> list[float | None]:
    """NaN is not JSON: an interval that cannot be given is written as nulls."""
    return [None if np.isnan(bound) else bound for bound in interval]
