"""A study's journal on a disk that fills up, and after kills in mid-line: only the torn line is lost."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tests.tuning import tune_jobs
from tests.tuning.tune_jobs import open_study, search
from vg_utils.config import ConfigError
from vg_utils.tuning import search as tuning
from vg_utils.tuning.report import count_trials
from vg_utils.tuning.storage import MAX_RETRIES, Storage


@pytest.fixture
def quick(tiny_config, monkeypatch):
    """Settings of a search whose trainings are none."""
    monkeypatch.setattr(tuning, "fit", tune_jobs.quick_fit)
    monkeypatch.setattr(tuning, "fill_cache", lambda config, progress: {})
    return tiny_config


def outcomes(study: optuna.Study) -> list[tuple]:
    """Of each trial that was not lost: parameters, values and curve, in order."""
    trials = [trial for trial in study.trials if trial.state != TrialState.FAIL]
    return [(trial.params, trial.values, trial.user_attrs.get("curve")) for trial in trials]


@pytest.mark.parametrize("torn", [b'{"op_code":8,"wor', b'{"op_code":8,"wor{"op_code":', b"\xff\x00"])
def test_a_torn_end_is_left_out_and_the_search_goes_on(quick, tmp_path, torn, capsys):
    journal = tmp_path / "journal.log"
    before = outcomes(search(quick, tmp_path, 3))
    with journal.open("ab") as file:
        file.write(torn)
    study = search(quick, tmp_path, 5)
    assert outcomes(study)[:3] == before
    assert count_trials(study)["finished"] == 5
    assert f"last line was torn and is left out: {len(torn)} bytes" in capsys.readouterr().out
    open_plainly(journal)


def open_plainly(journal: Path) -> None:
    """As Optuna's own tools do."""
    optuna.load_study(
        study_name="s", storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    )


def test_a_line_torn_by_an_earlier_version_is_left_out_and_what_follows_in_it_kept(quick, tmp_path, capsys):
    journal = tmp_path / "journal.log"
    before = outcomes(search(quick, tmp_path, 3))
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1][:-1][:20] + lines[-1]  # a half line, and the next one right behind it
    journal.write_bytes(b"".join(lines))
    assert outcomes(open_study(str(journal))) == before
    assert f"torn lines are left out: {len(lines)}; the file with them is now" in capsys.readouterr().out
    assert (tmp_path / "journal.log.torn").read_bytes() == b"".join(lines)
    open_plainly(journal)


def test_a_full_disk_ends_the_search_and_it_goes_on_once_there_is_room(quick, tmp_path, monkeypatch):
    """The same trials, in the end, as if the disk had been large enough."""
    whole = search(quick, tmp_path / "whole", 5)

    def no_room(config, run_dir, **kwargs):
        if run_dir.name == "0002":
            raise OSError(errno.ENOSPC, "No space left on device")
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    monkeypatch.setattr(tuning, "fit", no_room)
    with pytest.raises(OSError, match="No space left"):
        search(quick, tmp_path / "a", 5)
    assert count_trials(open_study(str(tmp_path / "a" / "journal.log")))["finished"] == 2
    monkeypatch.setattr(tuning, "fit", tune_jobs.quick_fit)
    study = search(quick, tmp_path / "a", 5)
    assert count_trials(study) == {"finished": 5, "complete": 5, "pruned": 0, "failed": 0, "lost": 1}
    assert outcomes(study) == outcomes(whole)


@pytest.mark.parametrize("place", ["run", "journal", "both"])
def test_a_disk_that_is_full_again_and_again_makes_no_trial_count(quick, tmp_path, monkeypatch, place):
    """More often than a trial may kill its worker; in the end the same trials as on a large enough disk."""
    whole, journal = search(quick, tmp_path / "whole", 4), tmp_path / "a" / "journal.log"
    search(quick, tmp_path / "a", 2)
    full, append = False, JournalFileBackend.append_logs

    def fit(config, run_dir, **kwargs):
        nonlocal full
        full = True
        if place != "journal":
            raise OSError(errno.ENOSPC, "No space left on device")
        return tune_jobs.quick_fit(config, run_dir, **kwargs)

    def append_logs(self, logs):
        if full and place != "run":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    times = MAX_RETRIES + 3
    for number in range(times):
        with monkeypatch.context() as patched:
            patched.setattr(tuning, "fit", fit)
            patched.setattr(JournalFileBackend, "append_logs", append_logs)
            with pytest.raises(OSError, match="No space left"):
                search(quick, tmp_path / "a", 4)
        full = False
        assert count_trials(open_study(str(journal)))["finished"] == 2, f"time {number}"
    study = search(quick, tmp_path / "a", 4)
    assert count_trials(study) == {"finished": 4, "complete": 4, "pruned": 0, "failed": 0, "lost": times}
    assert outcomes(study) == outcomes(whole)


def test_a_write_that_fails_is_taken_back(quick, tmp_path, monkeypatch):
    search(quick, tmp_path, 2)
    journal, storage = tmp_path / "journal.log", Storage(str(tmp_path / "journal.log"))
    content = journal.read_bytes()

    def half(self, logs):
        with journal.open("ab") as file:
            file.write(json.dumps(logs[0]).encode()[:15])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(JournalFileBackend, "append_logs", half)
        study = optuna.load_study(study_name="s", storage=storage.optuna)
        with pytest.raises(OSError, match="No space left"):
            study.set_user_attr("x", 1)
    assert journal.read_bytes() == content
    study.set_user_attr("x", 2)
    assert open_study(str(journal)).user_attrs["x"] == 2
    storage.close()


def test_any_edit_of_a_journal_is_a_study_or_an_error_of_one_line(quick, tmp_path):
    """Bytes and lines that are dropped, doubled, cut or changed."""
    search(quick, tmp_path, 4)
    content, chance = (tmp_path / "journal.log").read_bytes(), random.Random(0)
    for number in range(40):
        lines = content.splitlines(keepends=True)
        place = chance.randrange(len(lines))
        line = lines[place]
        spot = chance.randrange(len(line))
        lines[place] = (
            b"",
            line * 2,
            line[:spot],
            line[:spot] + bytes([chance.randrange(256)]) + line[spot + 1 :],
            line.replace(b"1", b"7"),
            b'{"op_code":4}\n',
        )[number % 6]
        journal = tmp_path / f"edited-{number}.log"
        journal.write_bytes(b"".join(lines))
        try:
            Storage(str(journal)).close()
        except ConfigError as error:
            said = str(error)
            if "\n" in said or len(said) > 500:
                raise
