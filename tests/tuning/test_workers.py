"""Several workers on one study, and workers that die: no trial is lost and none is run to the end twice."""

import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.tuning import tune_jobs
from tests.tuning.tune_jobs import open_study, run_workers, search
from vg_utils.config import Config, set_fields
from vg_utils.presets import preset
from vg_utils.tuning import search as tuning
from vg_utils.tuning import storage as tuning_storage
from vg_utils.tuning.report import count_trials
from vg_utils.tuning.search import Worker
from vg_utils.tuning.storage import Storage


@pytest.fixture
def quick(monkeypatch) -> Config:
    """The config of studies whose trainings take no time."""
    monkeypatch.setattr(tuning, "fit", tune_jobs.quick_fit)
    monkeypatch.setattr(tuning, "fill_cache", lambda config, progress: {})
    return set_fields(preset("scenes"), train__epochs=6)


def assert_each_once(study: optuna.Study, trials: int, lost: int) -> None:
    """So many finished trials, none twice, the lost ones tried again."""
    counts = count_trials(study)
    assert (counts["finished"], counts["failed"], counts["lost"]) == (trials, 0, lost)
    assert not study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING])
    finished = [trial for trial in study.trials if trial.state != TrialState.FAIL]
    assert len({json.dumps(trial.params, sort_keys=True) for trial in finished}) == trials
    dead_ones = study.get_trials(states=[TrialState.FAIL])
    for dead in dead_ones:
        (again,) = [trial for trial in finished if trial.params == dead.params]
        # The second kill may hit the trial that takes the place of the one hit first: it is then of both.
        assert again.user_attrs["retry_of"] == [d.number for d in dead_ones if d.params == dead.params]
        assert again.user_attrs["worker"] != dead.user_attrs["worker"]


@pytest.mark.slow
def test_two_workers_on_a_journal_one_killed_in_mid_trial(tiny_config, tmp_path, forks):
    """Real trainings, one cache, one kill -9."""
    config = set_fields(tiny_config, train__cached=True, train__cache_views=1)
    config.save(tmp_path / "config.json")
    job = {
        "config": str(tmp_path / "config.json"),
        "study": "s",
        "out": str(tmp_path / "out"),
        "quick": False,
    }
    job |= {"storage": str(tmp_path / "out" / "journal.log"), "trials": 4, "killed_in": [2, 0]}
    assert forks.run(run_workers, job) == [-9, 0]
    study = open_study(job["storage"])
    assert_each_once(study, 4, lost=1)
    assert len(list(Path(config.data.features).glob("*.pt"))) == 2  # train and val: made once, for all
    for trial in study.get_trials(states=[TrialState.COMPLETE]):
        assert (Path(trial.user_attrs["run_dir"]) / "checkpoint" / "model.safetensors").exists()


@pytest.mark.slow
def test_four_workers_end_at_the_asked_total(quick, tmp_path, forks):
    quick.save(tmp_path / "config.json")
    job = {"config": str(tmp_path / "config.json"), "study": "s", "out": str(tmp_path / "out"), "quick": True}
    job |= {"storage": str(tmp_path / "out" / "journal.log"), "trials": 30, "killed_in": [0, 3, 0, 5]}
    assert forks.run(run_workers, job) == [0, -9, 0, -9]
    assert_each_once(open_study(job["storage"]), 30, lost=2)


@pytest.mark.slow
def test_two_workers_on_postgresql_one_killed_in_mid_trial(quick, tmp_path, postgresql, forks):
    quick.save(tmp_path / "config.json")
    job = {"config": str(tmp_path / "config.json"), "study": "s", "out": str(tmp_path / "out"), "quick": True}
    job |= {"storage": postgresql, "trials": 12, "killed_in": [3, 0]}
    assert forks.run(run_workers, job) == [-9, 0]
    assert_each_once(open_study(postgresql), 12, lost=1)


@pytest.fixture
def postgresql():
    """URL of a PostgreSQL server of this test's own; skipped, saying why, where none can be started."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []
    path = os.pathsep.join([*map(str, reversed(found)), os.environ["PATH"]])
    initdb, pg_ctl = (shutil.which(name, path=path) for name in ("initdb", "pg_ctl"))
    if not (initdb and pg_ctl):
        pytest.skip("no PostgreSQL here: initdb and pg_ctl are not found")
    if not any(importlib.util.find_spec(name) for name in ("psycopg", "psycopg2")):
        pytest.skip("no driver for PostgreSQL here: neither psycopg nor psycopg2 can be imported")
    user = {}
    if os.geteuid() == 0:  # initdb refuses to run as root
        users = {entry.pw_name: entry for entry in pwd.getpwall()}
        entry = users.get("postgres") or users.get("nobody")
        if entry is None:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres or nobody to run it as")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="vg_utils-pg-"))
    if user:
        os.chown(folder, user["user"], user["group"])
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]

    def call(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **user
        )

    data = str(folder / "data")
    made = call(initdb, "-D", data, "-U", "tester", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    if made.returncode == 0:
        made = call(pg_ctl, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL did not start: {made.stderr.strip()[-300:]}")
    driver = "psycopg" if importlib.util.find_spec("psycopg") else "psycopg2"
    yield f"postgresql+{driver}://tester@127.0.0.1:{port}/postgres"
    call(pg_ctl, "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def test_the_next_worker_may_choose_while_a_trial_runs(quick, tmp_path, monkeypatch):
    """The claim is given back before the training, not after it."""
    free = []

    def fit(config, run_dir, **kwargs):
        with Storage(str(tmp_path / "journal.log")).lock("s.claim", wait=False) as held:
            free.append(held)
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", fit)
    search(quick, tmp_path, 2)
    assert free == [True, True]


def test_a_journal_whose_dead_worker_was_on_another_machine(quick, tmp_path, monkeypatch):
    """So is a container that comes back under another name: only silence tells."""
    study = search(quick, tmp_path, 2)
    trial = study.ask()
    trial.set_user_attr("worker", "elsewhere:1:abc")
    running, storage = study.trials[2], Storage(str(tmp_path / "journal.log"))
    file = tmp_path / ".journal.log.workers" / "elsewhere-1-abc"
    file.touch()
    assert not storage.is_dead(running)
    os.utime(file, (0, 0))
    assert storage.is_dead(running)
    file.unlink()
    assert storage.is_dead(running)


def test_workers_leave_no_file_behind(quick, tmp_path):
    worker = Worker(quick, "s", tmp_path, str(tmp_path / "journal.log"))
    files = tmp_path / ".journal.log.workers"
    assert len(list(files.iterdir())) == 1
    worker.storage.close()
    assert not list(files.iterdir())


def test_a_worker_given_up_for_dead_does_not_spoil_the_study(quick, tmp_path, monkeypatch):
    """A laptop sleeps in mid-trial; others fail its trial; it wakes up and goes on."""
    journal = str(tmp_path / "journal.log")

    def fit(config, run_dir, **kwargs):
        if run_dir.name == "0001":
            open_study(journal).tell(1, state=TrialState.FAIL)
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", fit)
    study = search(quick, tmp_path, 4)
    assert study.trials[1].state == TrialState.FAIL
    assert study.trials[2].params == study.trials[1].params
    assert count_trials(study)["finished"] == 4


def test_a_worker_killed_while_it_chose(quick, tmp_path):
    """A trial without its worker's name is of one that died between asking and having its parameters."""
    study = search(quick, tmp_path, 2)
    study.ask()
    study = search(quick, tmp_path, 3)
    assert [trial.state for trial in study.trials][2:] == [TrialState.FAIL, TrialState.COMPLETE]
    assert len({json.dumps(t.params, sort_keys=True) for t in study.trials if t.values}) == 3


def test_a_trial_that_kills_every_worker_is_given_up(quick, tmp_path, monkeypatch):
    def fit(config, run_dir, **kwargs):
        if config.train.lr == quick.train.lr:  # the preset's
            raise KeyboardInterrupt
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", fit)
    for _ in range(1 + tuning_storage.MAX_RETRIES):
        with pytest.raises(KeyboardInterrupt):
            search(quick, tmp_path, 3)
    study = search(quick, tmp_path, 3)
    assert count_trials(study) == {"finished": 3, "complete": 2, "pruned": 0, "failed": 1, "lost": 3}


def test_ctrl_c_loses_the_running_trial_and_a_rerun_tries_it_again(quick, tmp_path, monkeypatch):
    def fit(config, run_dir, **kwargs):
        if run_dir.name == "0002":
            raise KeyboardInterrupt
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        search(quick, tmp_path, 5)
    monkeypatch.setattr(tuning, "fit", tune_jobs.quick_fit)
    study = search(quick, tmp_path, 5)
    assert study.trials[3].params == study.trials[2].params
    assert study.trials[3].user_attrs["retry_of"] == [2]
    assert count_trials(study) == {"finished": 5, "complete": 5, "pruned": 0, "failed": 0, "lost": 1}
