"""The moving average of the weights, and runs that keep one or hold their images in memory, resumed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.maps import SMALL, build_small
from tests.tiny import copy_of, weights_of, without_clocks
from vg_utils.config import ConfigError, set_fields
from vg_utils.models import build_model
from vg_utils.models.checkpoints import load_weights
from vg_utils.training.averages import MovingAverage
from vg_utils.training.engine import fit


def step(model: nn.Module, size: float) -> None:
    """What an optimizer might do, and BatchNorm beside it."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter += size * (1 + number)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer += size


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_the_average_is_the_closed_form(decay):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    average, seen = MovingAverage(model, decay), [copy_of(model)]
    for size in (1.0, -3.0, 0.5, 2.0):
        step(model, size)
        average.update()
        seen.append(copy_of(model))
    n = len(seen) - 1
    shares = [decay**n] + [(1 - decay) * decay ** (n - k) for k in range(1, n + 1)]
    assert sum(shares) == pytest.approx(1)
    for name, parameter in average.model.named_parameters():
        expected = sum(share * state[name] for share, state in zip(shares, seen, strict=True))
        torch.testing.assert_close(parameter.detach(), expected)
    for name, buffer in average.model.named_buffers():
        assert torch.equal(buffer, seen[-1][name]), name


def test_what_is_frozen_stays_to_the_bit_and_the_model_is_left_alone():
    model = build_small("dense-grounder", model__clip__tuning="last")
    average = MovingAverage(model, 0.999)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    for _ in range(5):
        step(model, 0.1)
        before = copy_of(model)
        average.update()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    averaged = dict(average.model.named_parameters())
    assert all(torch.equal(averaged[name], value) for name, value in frozen.items())
    current = dict(model.named_parameters())
    assert not any(torch.equal(averaged[name], current[name]) for name in current.keys() - frozen.keys())
    pointers = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not any(tensor.data_ptr() in pointers for tensor in average.model.state_dict().values())


class _Stop(Exception):
    """The kill, after an epoch."""


def stopped_and_resumed(config, run_dir) -> list[dict]:
    def stop(epoch: dict) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        fit(config, run_dir, progress=False, on_epoch=stop)
    torch.randn(1000)  # the state of the global generator must not matter
    return fit(config, run_dir, resume=True, progress=False)


@pytest.mark.parametrize(
    ("name", "changes", "files"),
    [
        ("clip-hrnet", {"train__ema": 0.8}, ("last", "model", "average")),
        ("clip-hrnet", {"data__resident": True}, ("last", "model")),
        (
            "dense-grounder",
            {"train__ema": 0.8, "data__resident": True, "model__clip__text_tuning": "lora"} | SMALL,
            ("last", "model", "average"),
        ),
    ],
)
def test_a_run_stopped_after_an_epoch_ends_as_an_uninterrupted_one(
    tiny_config, tmp_path, name, changes, files
):
    config = set_fields(tiny_config, model__name=name, train__similarity_images=0, **changes)
    whole = fit(config, tmp_path / "whole", progress=False)
    resumed = stopped_and_resumed(config, tmp_path / "cut")
    assert len(whole) == config.train.epochs == 2
    assert str(without_clocks(resumed)) == str(without_clocks(whole))  # NaN, of no similarity, is not equal
    for file in files:
        left, right = (weights_of(tmp_path / run, file) for run in ("whole", "cut"))
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == [], file
    exists = (tmp_path / "whole" / "checkpoint" / "average.safetensors").exists()
    assert exists == ("average" in files)
    if exists:  # the average is neither the weights nor what they were, and it is what was scored
        last, average = (weights_of(tmp_path / "whole", file) for file in ("last", "average"))
        assert any(not torch.equal(last[key], average[key]) for key in last)
        best = weights_of(tmp_path / "whole", "model")
        if whole[1]["val_miou"] > whole[0]["val_miou"]:
            assert all(torch.equal(best[key], average[key]) for key in best)
        assert name != "dense-grounder" or (best["temperatures"] != 1).all()  # it is calibrated
        load_weights(
            tmp_path / "whole" / "checkpoint" / "average.safetensors", build_model(name, config.model)
        )


def test_resident_and_cached_together_cannot_be(tiny_config, tmp_path):
    config = set_fields(tiny_config, data__resident=True, train__cached=True)
    with pytest.raises(ConfigError, match=r"data\.resident and train\.cached"):
        fit(config, tmp_path / "run", progress=False)
