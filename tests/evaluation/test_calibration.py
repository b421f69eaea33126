"""Temperatures: known ones are found again, and a calibrated model means what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import TOKENIZER, copy_of
from vg_utils.config import set_fields
from vg_utils.evaluation.calibration import COLDEST, HOTTEST, calibrate, fit_temperature
from vg_utils.evaluation.confidence import expected_calibration_error
from vg_utils.evaluation.rows import eval_batches, predict_rows
from vg_utils.models import build_model
from vg_utils.training.loaders import load_split


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def cross_entropy(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    scaled = torch.from_numpy(logits) / temperature
    return torch.nn.functional.binary_cross_entropy_with_logits(scaled, torch.from_numpy(targets)).item()


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 2.5, 9.0])
def test_a_known_temperature_is_found(temperature):
    logits = np.random.default_rng(0).normal(0.5, 3, 1000)
    soft = sigmoid(logits / temperature)
    assert fit_temperature(logits, soft) == pytest.approx(temperature, rel=1e-6)
    hard = np.random.default_rng(1).random((1000, 40)) < soft[:, None]
    assert fit_temperature(logits.repeat(40), hard.ravel()) == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_temperature_is_better(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, 300)
    targets = np.clip(sigmoid(logits / 3) + rng.normal(0, 0.2, 300), 0, 1)
    fitted = fit_temperature(logits, targets)
    least = cross_entropy(logits, targets, fitted)
    assert all(least <= cross_entropy(logits, targets, t) + 1e-12 for t in np.geomspace(0.05, 20, 400))


def test_what_no_temperature_fits_ends_at_a_bound():
    logits = np.array([-1.0, 2.0, 3.0])
    assert fit_temperature(logits, logits > 0) == pytest.approx(COLDEST, rel=1e-6)  # never sure enough
    assert fit_temperature(logits, logits < 0) == pytest.approx(HOTTEST, rel=1e-6)  # always wrong
    assert fit_temperature([0.0, 0.0], [1, 0]) == 1  # nothing to divide
    assert fit_temperature([1e6, -1e6, 5.0], [1, 0, 0.7]) > COLDEST  # no overflow


@pytest.mark.parametrize(
    ("logits", "targets", "said"),
    [
        ([], [], "N > 0"),
        ([1.0], [1.0, 0.0], r"\(1,\) and \(2,\)"),
        ([np.inf], [1.0], "finite"),
        ([1.0], [1.5], r"\[0, 1\]"),
        ([1.0], [np.nan], r"\[0, 1\]"),
    ],
)
def test_bad_logits_are_refused(logits, targets, said):
    with pytest.raises(ValueError, match=said):
        fit_temperature(logits, targets)


@pytest.fixture
def model(tiny_config):
    """`dense-grounder`, untrained, as sure of itself as a trained one."""
    torch.manual_seed(0)
    model = build_model("dense-grounder", set_fields(tiny_config, model__name="dense-grounder").model)
    with torch.no_grad():
        model.judge[-1].weight.mul_(30)
    return model


def answers_on_val(model, config):
    val, size = load_split(config, "val"), config.model.image_size
    rows, _, absent = predict_rows(model, val, eval_batches(val, size, TOKENIZER, absent=None), size, "cpu")
    return rows, absent


def test_calibrating_sets_the_temperatures_and_nothing_else(model, tiny_config):
    answers, before = answers_on_val(model, tiny_config), copy_of(model)
    found = calibrate(model, *answers)
    assert model.temperatures.tolist() == pytest.approx(
        [found["score_temperature"], found["presence_temperature"]]
    )
    assert model.temperatures.tolist() != [1, 1]
    assert model.temperatures.dtype == torch.float32
    others = {name: value for name, value in copy_of(model).items() if name != "temperatures"}
    assert all(torch.equal(value, before[name]) for name, value in others.items())
    assert calibrate(model, *answers_on_val(model, tiny_config)) == found  # from the logits, whatever is set


def test_temperatures_are_those_of_the_logits(model, tiny_config):
    found = calibrate(model, *answers_on_val(model, tiny_config))
    rows, absent = answers_on_val(model, tiny_config)
    assert found["score_temperature"] == pytest.approx(fit_temperature(rows["score_logit"], rows["iou"]))
    logits = np.concatenate([rows["presence_logit"], absent["presence_logit"]])
    there = np.arange(len(logits)) < len(rows)
    assert found["presence_temperature"] == pytest.approx(fit_temperature(logits, there))
    for frame in (rows, absent):
        for name in ("score", "presence"):
            scaled = sigmoid(frame[f"{name}_logit"] / found[f"{name}_temperature"])
            assert frame[name].tolist() == pytest.approx(scaled.tolist(), abs=1e-5)
    logits, ious = (rows[name].to_numpy(np.float64) for name in ("score_logit", "iou"))
    assert cross_entropy(logits, ious, found["score_temperature"]) < cross_entropy(logits, ious, 1.0)
    for when, temperature in (("before", 1.0), ("after", found["score_temperature"])):
        error = expected_calibration_error(sigmoid(logits / temperature), ious)
        assert found[f"ece_{when}"] == pytest.approx(error)


def test_without_absent_phrases_presence_stays_as_it_is(model, tiny_config):
    rows, absent = answers_on_val(model, tiny_config)
    found = calibrate(model, rows, absent[:0])
    assert set(found) == {"score_temperature", "presence_temperature", "ece_before", "ece_after"}
    assert model.temperatures[1] == found["presence_temperature"] == 1


def test_other_models_are_left_alone(tiny_config):
    model = build_model("text-only", tiny_config.model)
    before = copy_of(model)
    assert calibrate(model, *answers_on_val(model, tiny_config)) == {}
    assert all(torch.equal(value, before[name]) for name, value in copy_of(model).items())
