"""A small part of the campaign of hostile files: `python -m benchmarks.campaign` is the whole."""

import pytest

from benchmarks import campaign

SHARES = {"annotations": 0.1, "images": 0.2, "configs": 0.12, "weights": 0.3, "answers": 0.3}
SHARES |= {"journals": 0.3, "pickles": 0.5}


@pytest.mark.parametrize("name", SHARES)
def test_every_attempt_holds(name):
    tally = campaign.campaign(name, round(campaign.USUAL[name][0] * SHARES[name]), seed=1)
    assert tally.broken == {}, campaign.table({name: tally})
    assert tally.refused > 0


def test_a_verb_that_was_killed_ends_as_without():
    tally = campaign.campaign("kills of prepare jsonl", 1, seed=1)
    assert (tally.tried, tally.broken) == (1, {})


def test_what_breaks_is_counted_and_told(monkeypatch):
    def attack(folder):
        def attempt(chance):
            if chance.random() < 0.5:
                raise ZeroDivisionError

        return attempt

    monkeypatch.setitem(campaign.USUAL, "images", (20, attack))
    tally = campaign.campaign("images", 20, seed=0)
    broken = sum(tally.broken.values())
    assert 0 < broken < 20
    said = campaign.table({"images": tally})
    assert f"| images | 20 | {20 - broken} | 0 | {broken} | 0 |" in said
    assert "ZeroDivisionError in test_campaign.py:attempt" in said


def test_rows_of_kinds_that_are_run_one_by_one_are_kept(tmp_path, monkeypatch, capsys):
    def attack(folder):
        def attempt(chance):
            if chance.random() < 0.5:
                raise campaign.Broken("no good")

        return attempt

    monkeypatch.setattr(campaign, "USUAL", {"images": (9, attack), "configs": (4, attack)})
    tables = []
    for only in ("images", "configs"):
        campaign.main(["--only", only, "--keep", str(tmp_path / "rows.json")])
        tables.append(capsys.readouterr().out)
    assert "| configs | 4 |" in tables[1]
    assert all(line in tables[1] for line in tables[0].splitlines())
