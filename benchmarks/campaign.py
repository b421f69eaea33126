"""Hostile files, kills and broken answers: what the project makes of thousands of them, as a table.

    python -m benchmarks.campaign [--only NAME ...] [--scale 1] [--seed 0] [--keep FILE]

Each attempt is drawn from the seed and its number, so that one that broke can be made again alone. It *held*
if what came back is sound, or one clear line said what is wrong; all else is *broken*: another exception, a
message of many lines, something silently accepted, code that ran, work that a kill lost. Nothing that was
drawn is kept. `--scale` multiplies how many are tried; `make test` tries a part, without the kills. With
`--keep` the kinds can be run one by one: the file has the rows of all, and the table shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # settings that name weights of the hub are tried, too

from benchmarks import _attacks, _kills
from benchmarks._attacks import Broken
from vg_utils.data.records import read_json
from vg_utils.files import write_atomically

USUAL = {  # how many are tried at scale 1
    "annotations": (2000, _attacks.annotations),
    "images": (270, _attacks.images),
    "configs": (80, _attacks.configs),
    "weights": (50, _attacks.weights),
    "answers": (50, _attacks.answers),
    "journals": (30, _attacks.journals),
    "pickles": (200, _attacks.pickles),
    **{f"kills of {verb}": (4, partial(_kills.kills, verb=verb)) for verb in _kills.VERBS},
}
LONGEST_LINE = 1500  # characters of a message


@dataclass
class Tally:
    """What became of the attempts of a kind."""

    tried: int = 0
    refused: int = 0  # of those that held, with a message
    broken: Counter[str] = field(default_factory=Counter)  # how -> how often
    seconds: float = 0.0


def campaign(name: str, count: int, seed: int) -> Tally:
    """Try so many attempts of a kind.

    Args:
        name: of the kind, a key of `USUAL`.
        count: how many.
        seed: of all that is drawn.
    """
    tally, started = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prepared = USUAL[name][1](Path(folder))
        for number in range(count):
            tally.tried += 1
            try:
                prepared(Random(f"{name} {seed} {number}"))
            except _attacks.expected_errors() as error:
                tally.refused += 1
                if "\n" in str(error) or len(str(error)) > LONGEST_LINE:
                    tally.broken[f"message of many lines: {type(error).__name__}, attempt {number}"] += 1
            except Broken as error:
                tally.broken[f"{error}, attempt {number}"] += 1
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.name}"
                tally.broken[f"{type(error).__name__} in {where}, attempt {number}"] += 1
    tally.seconds = time.perf_counter() - started
    return tally


def table(tallies: dict[str, Tally]) -> str:
    """Markdown: what was tried, what held, what broke; below it how."""
    lines = [
        "| what | tried | held | of them refused | broken | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, tally in tallies.items():
        broken = sum(tally.broken.values())
        counts = tally.tried, tally.tried - broken, tally.refused, broken, round(tally.seconds)
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    for name, tally in tallies.items():
        lines += [f"{name}: {how} ({count} times)" for how, count in tally.broken.most_common(20)]
    return "\n".join(lines)


def kept(file: Path | None) -> dict[str, Tally]:
    """The rows of earlier runs."""
    if file is None or not file.is_file():
        return {}
    rows = read_json(file, "rows of a campaign")
    return {name: Tally(**row | {"broken": Counter(row["broken"])}) for name, row in rows.items()}


def main(arguments: list[str] | None = None) -> int:
    """The command; exit status 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(USUAL), default=list(USUAL))
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON with the rows of all runs")
    options = parser.parse_args(arguments)
    tallies = kept(options.keep)
    for name in options.only:
        tallies[name] = campaign(name, max(1, round(USUAL[name][0] * options.scale)), options.seed)
        print(f"{name}: {tallies[name].tried} tried", file=sys.stderr, flush=True)
        if options.keep:
            rows = {name: vars(tally) for name, tally in tallies.items()}
            write_atomically(options.keep, json.dumps(rows, indent=1).encode())
    print(table(tallies))
    return int(any(tally.broken for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
