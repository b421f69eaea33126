"""Studies: what they keep, that they go on and repeat themselves, their report and their figures."""

import itertools
import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import event

from tests.tuning import tune_jobs
from tests.tuning.tune_jobs import open_study, search, told
from vg_utils import cli
from vg_utils.config import Config, ConfigError, set_fields
from vg_utils.data import DataError, load_examples
from vg_utils.data.jsonl import write_jsonl
from vg_utils.models.backbones import WeightsError
from vg_utils.pickles import read_pickle
from vg_utils.presets import preset
from vg_utils.tuning import search as tuning
from vg_utils.tuning.figures import draw_study
from vg_utils.tuning.report import compare, count_trials, summarise_seeds, trials_frame
from vg_utils.tuning.search import tune
from vg_utils.tuning.spaces import own_parameters, suggest
from vg_utils.tuning.storage import MAX_RETRIES, Storage

# ---- studies, with trainings that only look like some


@pytest.fixture
def quick(monkeypatch) -> Config:
    """The config of studies whose trainings take no time."""
    monkeypatch.setattr(tuning, "fit", tune_jobs.quick_fit)
    monkeypatch.setattr(tuning, "fill_cache", lambda config, progress: {})
    return set_fields(preset("scenes"), train__epochs=6)


def test_the_preset_comes_first_and_every_trial_is_kept(quick, tmp_path):
    study = search(set_fields(quick, train__seed=5), tmp_path, 4)
    assert study.trials[0].params == own_parameters(quick)
    for trial in study.trials:
        run_dir = tmp_path / "trials" / f"{trial.number:04d}"
        kept = Config.load(run_dir / "config.json")
        assert suggest(set_fields(quick, train__seed=5, train__similarity_images=0), trial_of(trial)) == kept
        assert trial.user_attrs["config"] == tuning.plain(kept)
        assert trial.user_attrs["seed"] == kept.train.seed == 5
        assert trial.values == [max(trial.user_attrs["curve"])]
        assert trial.user_attrs["run_dir"] == str(run_dir)


def trial_of(trial: optuna.trial.FrozenTrial) -> optuna.trial.FixedTrial:
    return optuna.trial.FixedTrial(trial.params)


def test_same_seed_same_trials_also_over_a_restart(quick, tmp_path):
    whole = told(search(quick, tmp_path / "a", 20))
    search(quick, tmp_path / "b", 7)
    assert told(search(quick, tmp_path / "b", 20)) == whole
    other = told(search(set_fields(quick, train__seed=1), tmp_path / "c", 5))
    assert other[0][3] == whole[0][3]  # the preset
    assert [t[3] for t in other[1:]] != [t[3] for t in whole[1:5]]


def test_no_two_trials_are_the_same(quick, tmp_path):
    for trials in (3, 6, 9):  # restarts, each with a sampler of its own
        study = search(quick, tmp_path, trials)
    assert len({json.dumps(t.params, sort_keys=True) for t in study.trials}) == len(study.trials) == 9


def test_bad_trials_are_pruned_and_finished_ones_are_not_lost(quick, tmp_path):
    study = search(quick, tmp_path, 25)
    counts = count_trials(study)
    assert counts["finished"] == 25 == counts["complete"] + counts["pruned"]
    assert counts["pruned"] > 0
    for trial in study.get_trials(states=[TrialState.PRUNED]):
        assert trial.number >= tuning.STARTUP_TRIALS
        assert 2 <= len(trial.user_attrs["curve"]) < 6  # not in the first third of the epochs
        assert list(trial.intermediate_values.values()) == trial.user_attrs["curve"]
    frame = trials_frame(study)
    assert list(frame["number"]) == list(range(25))
    assert set(frame["state"]) == {"COMPLETE", "PRUNED"}
    assert "train.lr" in frame


def test_failed_trials_keep_their_reason_and_do_not_stop_the_study(quick, tmp_path, monkeypatch):
    def fit(config, run_dir, **kwargs):
        if config.train.lr > 1e-3:
            raise RuntimeError(f"no training at {config.train.lr}")
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", fit)
    study = search(quick, tmp_path, 12)
    failed = study.get_trials(states=[TrialState.FAIL])
    assert len(study.trials) == 12
    assert 0 < len(failed) < 12
    for trial in failed:
        assert trial.user_attrs["error"] == f"RuntimeError: no training at {trial.params['train.lr']}"
        assert "Traceback" in (Path(trial.user_attrs["run_dir"]) / "error.txt").read_text()
    assert count_trials(study)["failed"] == len(failed)


def test_a_study_in_which_everything_fails_ends(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "fit", lambda *args, **kwargs: 1 / 0)
    study = search(quick, tmp_path, 3)
    assert {trial.user_attrs["error"] for trial in study.trials} == {"ZeroDivisionError: division by zero"}
    assert len(study.trials) == 3
    assert draw_study(study, tmp_path / "figures", "t") == []


def test_timeout(quick, tmp_path):
    study = search(quick, tmp_path, 50, timeout=0.0)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]  # the preset, next time


def test_two_objectives_prune_nothing_and_have_a_front(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning, "second_objective", lambda name, run: float(Config.load(run / "config.json").train.warmup)
    )
    study = search(quick, tmp_path, 12, objective="latency")
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert "latency" in trials_frame(study)
    assert 0 < len(study.best_trials) < 12
    assert "pareto.png" in draw_study(study, tmp_path / "figures", "a study")


def test_a_study_is_not_mixed_with_another(quick, tmp_path):
    search(quick, tmp_path, 1)
    with pytest.raises(ConfigError, match=r"of other settings: train.epochs is 6 there, 7 here"):
        search(set_fields(quick, train__epochs=7), tmp_path, 2)
    with pytest.raises(ConfigError, match="objective is None there, 'latency' here"):
        search(quick, tmp_path, 2, objective="latency")
    with pytest.raises(ConfigError, match="has the trials of another study"):
        search(quick, tmp_path, 2, study="other")
    elsewhere = {"data__root": "elsewhere", "data__features": str(tmp_path / "there")}
    search(set_fields(quick, **elsewhere), tmp_path, 2)  # as on another machine
    of_others = {"model__transvg__layers": 2, "model__pyramid__blocks": 3}
    search(set_fields(quick, **of_others), tmp_path, 3)  # as with a later preset of another model
    with pytest.raises(ConfigError, match=r"model.clip_hrnet.hidden is 256 there, 64 here"):
        search(set_fields(quick, model__clip_hrnet__hidden=64), tmp_path, 4)
    with pytest.raises(ConfigError, match="of other settings"):
        search(set_fields(quick, model__name="transvg"), tmp_path, 4)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://localhost", "expected the path of a journal file"),
        ("sqlite://", "names no file"),
        ("postgresql://u:secret@127.0.0.1:1/x", "--storage postgresql"),
    ],
)
def test_storages_that_cannot_be(url, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        Storage(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("study", "objective"), [("a/b", None), ("s", "speed")])
def test_wrong_names(quick, tmp_path, study, objective):
    with pytest.raises(ConfigError, match=r"--study: expected|--objective: expected latency or parameters"):
        tune(quick, study, tmp_path, objective=objective)


def test_sqlite(quick, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    search(quick, tmp_path, 3, storage=url)
    study = search(quick, tmp_path, 6, storage=url)
    assert count_trials(study)["finished"] == 6


def test_sqlite_on_a_full_disk_again_and_again_makes_no_trial_count(quick, tmp_path, monkeypatch):
    """More often than a trial may kill its worker; in the end the same trials as on a large enough disk."""
    whole = search(quick, tmp_path / "whole", 3)
    url = f"sqlite:///{tmp_path}/study.db"
    search(quick, tmp_path / "a", 1, storage=url)

    def little_room(connection, _):
        (used,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {used + 1}")

    def endless(config, run_dir, on_epoch, **kwargs):
        for epoch in itertools.count(1):
            on_epoch({"epoch": epoch, "val_miou": 0.1})

    for number in range(MAX_RETRIES + 2):
        with monkeypatch.context() as patched:
            patched.setattr(tuning, "fit", endless)
            event.listen(sqlalchemy.pool.Pool, "connect", little_room)
            try:
                with pytest.raises(OSError, match="No space left"):
                    search(quick, tmp_path / "a", 3, storage=url)
            finally:
                event.remove(sqlalchemy.pool.Pool, "connect", little_room)
        assert count_trials(open_study(url))["finished"] == 1, f"time {number}"
    study = search(quick, tmp_path / "a", 3, storage=url)
    counts = count_trials(study)
    assert (counts["finished"], counts["failed"]) == (3, 0)
    assert counts["lost"] > 0
    assert [t[1:4] for t in told(study) if t[2]] == [t[1:4] for t in told(whole)]


# ---- real trainings


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model__hrnet__weights": "no/file.pt"}, WeightsError),
        ({"data__root": "no/where"}, DataError),
        ({"train__batch_images": 1}, ConfigError),
        ({"train__cached": True, "data__resident": True}, ConfigError),
    ],
)
def test_a_refused_study_leaves_its_name_to_the_corrected_one(tiny_config, tmp_path, wrong, error):
    with pytest.raises(error):
        tune(set_fields(tiny_config, **wrong), "s", tmp_path / "out", trials=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_study_whose_report_has_no_test_split_is_refused_before_its_trials(tiny_config, tmp_path):
    for split in ("train", "val"):
        write_jsonl(tmp_path / "own" / f"{split}.jsonl", load_examples(tiny_config.data.root, split))
    config = set_fields(tiny_config, data__root=str(tmp_path / "own"))
    with pytest.raises(DataError, match=r"test\.jsonl"):
        tune(config, "s", tmp_path / "out", trials=1, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_from_the_command_line(tiny_config, tiny_scenes, tmp_path, capsys):
    """Search, retraining and test; called again it goes on, and the same elsewhere gives the same."""
    arguments = ["tune", "--fast", "--data", str(tiny_scenes), "--model.image-size", "64", "--seed", "3"]
    arguments += ["--data.features", tiny_config.data.features, "--train.cache-views", "1"]
    arguments += ["--train.epochs", "1", "--data.limit-images", "8", "--study", "s"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a"), "--trials", "1"]) == 0
    assert cli.main([*arguments, "--out", str(tmp_path / "a"), "--trials", "2"]) == 0
    assert cli.main([*arguments, "--out", str(tmp_path / "b"), "--trials", "2", "--no-report"]) == 0
    one, other = (open_study(str(tmp_path / name / "journal.log")) for name in "ab")
    assert told(one) == told(other)
    results = read_pickle(tmp_path / "a" / "results.pkl")
    assert results["best"]["val_miou"] == max(trial.value for trial in one.trials)
    assert results["counts"]["finished"] == len(results["trials"]["number"]) == 2
    for name in ("preset", "tuned"):
        assert len(set(results["test"][name]["miou_by_seed"])) == 3
    kept = {path.parent.parent.name for path in (tmp_path / "a" / "retrained").glob("preset/*/checkpoint/*")}
    assert kept == {"seed-4", "seed-5", "seed-6"}  # other ones than the search's
    assert not list((tmp_path / "a").rglob("state.pt"))
    assert {path.name for path in (tmp_path / "a" / "figures").iterdir()} == {"history.png", "curves.png"}
    assert "over seeds" in capsys.readouterr().out
    assert cli.main([*arguments, "--out", str(tmp_path / "a"), "--trials", "0"]) == 2
    assert cli.main([*arguments, "--out", str(tmp_path / "a"), "--train.lr", "1"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "low", "high"), [("latency", 0.1, 5000), ("parameters", 0.5, 50)])
def test_a_second_objective_of_a_real_training(tiny_config, tmp_path, objective, low, high):
    config = set_fields(
        tiny_config, train__cached=True, train__cache_views=1, train__epochs=1, train__ema=0.5
    )
    study = search(config, tmp_path, 1, objective=objective)
    miou, cost = study.trials[0].values
    assert miou == max(study.trials[0].user_attrs["curve"])
    assert low < cost < high
    assert [path.name for path in (tmp_path / "trials").glob("*/checkpoint/*")] == ["model.safetensors"]


def test_summary_over_seeds():
    tables = [
        pd.DataFrame({"image_id": [1, 1, 2, 3], "sent_id": range(4), "iou": [0.2, 0.4, 0.6, 0.8 + shift]})
        for shift in (0.0, 0.1, 0.2)
    ]
    summary = summarise_seeds(tables)
    assert summary["miou_by_seed"] == pytest.approx([0.5, 0.525, 0.55])
    assert summary["miou"] == pytest.approx(0.525)
    low, high = summary["miou_seeds_ci95"]  # 0.525 -+ 4.303 * 0.025 / sqrt(3)
    assert (low, high) == pytest.approx((0.4629, 0.5871), abs=1e-3)
    better = [table.assign(iou=table["iou"] + 0.05) for table in tables]
    gain = compare(better, tables)
    assert gain["miou"] == pytest.approx(0.05)
    assert gain["miou_ci95"] == pytest.approx([0.05, 0.05])  # paired: the same gain on every image


def test_figures(quick, tmp_path):
    study = search(quick, tmp_path, 14)
    names = draw_study(study, tmp_path / "figures", "study s: clip-hrnet on RefScenes")
    assert names == [
        f"{n}.png" for n in ("history", "curves", "importances", "slices", "contour", "parallel")
    ]
    from matplotlib import pyplot

    assert not pyplot.get_fignums()
