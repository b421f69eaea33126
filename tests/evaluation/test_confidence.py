"""Measures of confidence against hand-made cases, and against slower ways to compute the same."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from vg_utils.evaluation.confidence import (
    auroc,
    auroc_ci,
    confidence_of,
    expected_calibration_error,
    presence_by_family,
    presence_outcomes,
    reliability,
    risk_coverage,
    target_accuracy,
)


def numbers(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(n).round(2), rng.random(n)  # rounded: ties, and values on the bins' edges


# reliability and expected calibration error


def test_calibration_error_by_hand():
    # bin [0, 0.5): mean 0.2 against 0.5; bin [0.5, 1]: mean 0.8 against 1 -> (2 * 0.3 + 3 * 0.2) / 5
    confidence, outcome = [0.1, 0.3, 0.5, 0.9, 1.0], [0, 1, 1, 1, 1]
    assert expected_calibration_error(confidence, outcome, bins=2) == pytest.approx(0.24)
    table = reliability(confidence, outcome, bins=2)
    assert table["n"].tolist() == [2, 3]
    assert table["confidence"].tolist() == pytest.approx([0.2, 0.8])
    assert table["outcome"].tolist() == pytest.approx([0.5, 1.0])
    assert expected_calibration_error([0.25], [0.75], bins=1) == pytest.approx(0.5)  # soft


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_what_a_loop_over_bins_gives(bins, seed):
    confidence, outcome = numbers(seed)
    expected = 0.0
    for i in range(bins):
        mine = (confidence * bins >= i) & ((confidence * bins < i + 1) | (i == bins - 1))
        if mine.any():
            expected += mine.mean() * abs(confidence[mine].mean() - outcome[mine].mean())
    assert expected_calibration_error(confidence, outcome, bins) == pytest.approx(expected)


def test_a_calibrated_confidence_has_no_error():
    share = np.repeat(np.arange(1, 10) / 10, 10)  # 0.1 ten times, and so on
    outcome = np.concatenate([np.arange(10) < k for k in range(1, 10)])  # right so often
    assert expected_calibration_error(share, outcome) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(share, share) == 0  # an IoU predicted exactly
    drawn = np.random.default_rng(0).random(200_000)
    assert expected_calibration_error(drawn, np.random.default_rng(1).random(200_000) < drawn) < 0.01


def test_reliability_keeps_every_value_and_says_where_none_is():
    table = reliability([0.0, 1.0, 1.0], [0.0, 1.0, 0.5], bins=4)
    assert table["n"].tolist() == [1, 0, 0, 2]
    assert table["confidence"].isna().tolist() == [False, True, True, False]
    assert table[["low", "high"]].to_numpy().tolist() == [[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]


@pytest.mark.parametrize(
    ("confidence", "outcome", "bins", "said"),
    [
        ([], [], 15, "confidence.*N > 0"),
        ([0.5, 1.5], [0, 1], 15, r"confidence.*1\.5"),
        ([0.5, np.nan], [0, 1], 15, "confidence.*nan"),
        ([0.5], [-0.1], 15, r"outcome.*-0\.1"),
        ([0.5], [0, 1], 15, "1 confidences, 2 outcomes"),
        ([0.5], [1], 0, "0 bins"),
        ([[0.5]], [1], 15, r"shape \(1, 1\)"),
    ],
)
def test_bad_confidences_are_refused(confidence, outcome, bins, said):
    with pytest.raises(ValueError, match=said):
        expected_calibration_error(confidence, outcome, bins)


# risk and coverage


def test_risk_and_coverage_by_hand():
    table, area = risk_coverage([0.9, 0.1, 0.5, 0.7], [True, False, False, True])
    assert table["coverage"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert table["risk"].tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert area == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)


def test_risk_rises_for_the_best_order_and_falls_for_the_worst():
    correct = np.arange(50) % 3 > 0
    best, least = risk_coverage(correct, correct)
    worst, most = risk_coverage(~correct, correct)
    assert best["risk"].is_monotonic_increasing
    assert worst["risk"].is_monotonic_decreasing
    for seed in range(5):
        assert least <= risk_coverage(np.random.default_rng(seed).random(50), correct)[1] <= most


def test_equal_scores_know_nothing_whatever_their_order():
    correct = np.array([True, True, False, True])
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        table, area = risk_coverage(np.ones(4), correct[order])
        assert table["risk"].tolist() == pytest.approx([0.25] * 4)
        assert area == pytest.approx(0.25)
    score, share = numbers(0)
    shuffled = np.random.default_rng(1).permutation(len(score))
    area = risk_coverage(score, share)[1]
    assert risk_coverage(score[shuffled], share[shuffled])[1] == pytest.approx(area)
    assert risk_coverage(7 * score - 3, share)[1] == pytest.approx(area)  # the order is all that counts


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="finite"):
        risk_coverage([0.5, np.nan], [True, False])
    with pytest.raises(ValueError, match="N = 2"):
        risk_coverage([0.5], [True, False])
    with pytest.raises(ValueError, match="N > 0"):
        risk_coverage([], [])


# area under the ROC curve


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(2, 9, 40) / 8, rng.integers(0, 7, 30) / 8  # many ties
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert auroc(negative, positive) == pytest.approx(1 - np.mean(pairs))


def test_presence_is_compared_within_a_family():
    rows = pd.DataFrame({"family": ["name", "name", "order"], "presence": [0.9, 0.4, 0.2]})
    families = ["name", "name", "order", "place"]  # of a place no expression fits: compared with all
    absent = pd.DataFrame({"family": families, "presence": [0.3, 0.5, 0.6, 0.1]})
    found = presence_by_family(rows, absent)
    assert found.index.tolist() == ["order", "name", "place"]
    assert found["n_absent"].tolist() == [1, 2, 1]
    assert found["auroc"].tolist() == [0, 0.75, 1]
    assert found["presence"].tolist() == pytest.approx([0.6, 0.4, 0.1])


def test_auroc_of_clear_cases():
    assert auroc([0.8, 0.9], [0.1, 0.2, 0.3]) == 1
    assert auroc([0.5, 0.5], [0.5]) == 0.5
    assert auroc([0.1], [0.2]) == 0
    for positive, negative in (([], [0.5]), ([0.5], []), ([np.nan], [0.5])):
        with pytest.raises(ValueError, match="positive and negative"):
            auroc(positive, negative)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_auroc_draws_whole_images(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(2, 9, 12) / 8, rng.integers(0, 7, 40) / 8
    of_positive, of_negative = rng.integers(0, 6, 12), rng.integers(0, 8, 40)
    found = auroc_ci(positive, of_positive, negative, of_negative, n=300, seed=seed)
    images = np.unique([*of_positive, *of_negative])
    drawn = np.random.default_rng(seed).multinomial(len(images), [1 / len(images)] * len(images), size=300)
    slow = []
    for times in drawn:
        chosen = np.repeat(images, times)
        some, others = (
            np.concatenate([values[groups == image] for image in chosen])
            for values, groups in ((positive, of_positive), (negative, of_negative))
        )
        slow += [auroc(some, others)] if len(some) and len(others) else []
    assert found == pytest.approx(np.quantile(slow, [0.025, 0.975]))
    assert found[0] < auroc(positive, negative) < found[1]


def test_one_image_has_no_interval():
    assert np.isnan(auroc_ci([0.9, 0.8], [1, 1], [0.1], [1])).all()


# of an evaluation


@pytest.mark.parametrize(
    ("threshold", "n_acc", "t_acc"), [(0, 0, 1), (0.5, 0.5, 0.75), (0.6, 0.75, 0.75), (1, 1, 0.25)]
)
def test_whether_there_is_a_target(threshold, n_acc, t_acc):
    rows = pd.DataFrame({"presence": [0.9, 0.6, 0.2, 1.0]})
    absent = pd.DataFrame({"presence": [0.1, 0.5, 0.3, 0.7]})
    found = target_accuracy(rows, absent, threshold)
    assert found == {"n_acc": n_acc, "t_acc": t_acc, "presence_threshold": threshold}
    assert target_accuracy(rows, absent.iloc[:0], threshold) == target_accuracy(rows, None, threshold) == {}
    assert target_accuracy(rows.drop(columns="presence"), absent, threshold) == {}


def test_what_an_evaluation_says_of_its_confidence():
    rows = pd.DataFrame({"score": [0.9, 0.2], "iou": [0.8, 0.4], "presence": [0.9, 0.6]})
    absent = pd.DataFrame({"presence": [0.1, 0.7, 0.3]})
    found = confidence_of(rows, absent)
    assert found == json.loads(json.dumps(found))
    assert found == {
        "ece": pytest.approx((0.1 + 0.2) / 2),
        "aurc": pytest.approx((0 + 0.5) / 2),
        "n_absent": 3,
        "presence_auroc": pytest.approx(5 / 6),
        "presence_ece": pytest.approx((0.1 + 0.4 + 0.1 + 0.7 + 0.3) / 5),
    }
    presence, there = presence_outcomes(rows, absent)
    assert presence.tolist() == [0.9, 0.6, 0.1, 0.7, 0.3]
    assert there.tolist() == [1, 1, 0, 0, 0]


def test_what_means_nothing_is_not_said():
    rows = pd.DataFrame({"score": [0.5, 0.5], "iou": [0.8, 0.4]})
    assert confidence_of(rows) == {}  # a constant score ranks nothing
    ranked = rows.assign(score=[0.5, 0.6])
    assert set(confidence_of(ranked, pd.DataFrame({"score": [0.5]}))) == {"ece", "aurc"}
    assert set(confidence_of(ranked.assign(presence=1.0), pd.DataFrame())) == {"ece", "aurc"}
