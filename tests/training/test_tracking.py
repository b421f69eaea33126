"""The log of a training: every epoch once, under its number, over kills and resumed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vg_utils.cli import main
from vg_utils.config import Config, set_fields
from vg_utils.training import tracking
from vg_utils.training.engine import _Run, fit

REASON = "a log wants the package that shows it"


@pytest.fixture
def cut_off(tiny_config, tmp_path, monkeypatch):
    """Train three epochs with a log; the first try dies between the second one's log and its checkpoint."""

    def train(log: str) -> tuple[Path, list[dict]]:
        config = set_fields(tiny_config, train__log=log, train__epochs=3, data__limit_images=6)
        finish = _Run.finish_epoch

        def dies(run: _Run, epoch: dict) -> None:
            if epoch["epoch"] == 2:
                raise KeyboardInterrupt
            finish(run, epoch)

        with monkeypatch.context() as patch:
            patch.setattr(_Run, "finish_epoch", dies)
            with pytest.raises(KeyboardInterrupt):
                fit(config, tmp_path / "run", progress=False)
        return tmp_path / "run", fit(config, tmp_path / "run", resume=True, progress=False)

    return train


def test_tensorboard_shows_the_history(cut_off):
    pytest.importorskip("tensorboard", reason=REASON)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, history = cut_off("tensorboard")
    shown = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert set(shown.Tags()["scalars"]) == history[0].keys()
    for name in ("epoch", "train_loss", "val_miou", "val_acc@0.5"):
        points = [(event.step, event.value) for event in shown.Scalars(name)]
        assert points == [(epoch["epoch"], pytest.approx(epoch[name], rel=1e-6)) for epoch in history]


def test_wandb_goes_on_in_the_same_run(cut_off, monkeypatch):
    pytest.importorskip("wandb", reason=REASON)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir, history = cut_off("wandb")
    parts = sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(parts) == 2
    assert len({part.name for part in parts}) == 1  # which is the run's
    for part, epochs in zip(parts, (history[:2], history[1:]), strict=True):
        assert [e["epoch"] for e in history if repr(e["val_loss"]).encode() in part.read_bytes()] == [
            e["epoch"] for e in epochs
        ]


def test_a_missing_package_is_one_line_and_leaves_nothing(tiny_config: Config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    words = ["train", "--out", str(tmp_path / "run"), "--data", tiny_config.data.root, "--log", "wandb"]
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == "vg_utils train: train.log: expected the package wandb: pip install wandb\n"
    )
    assert not (tmp_path / "run").exists()
