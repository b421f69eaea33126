"""What the benchmarks share: timing variants in turns, and the table and JSON of what came out."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks._one_build import seconds_of
from vg_utils.files import write_atomically

SHORTEST = 0.2  # seconds of one measurement; what is faster is repeated within it


@dataclass(frozen=True)
class Comparison:
    """Variants that do the same work, timed in turns.

    Attributes:
        title: what is compared.
        baseline: the variant that the ratios refer to.
        seconds: variant to seconds for the work, one a round; the rounds are the same for all.
        work: how many `unit`s each variant does in these seconds.
        unit: "images/s", "pairs/s", ...: work by time; or "ms": time by work.
    """

    title: str
    baseline: str
    seconds: dict[str, list[float]]
    work: int
    unit: str

    def rows(self) -> list[dict]:
        """A dict a variant: `what, value, low, high, unit, ratio, ratio_low, ratio_high`.

        Values are medians over the rounds. A ratio is how many times faster than the baseline *of the same
        round* the variant was, so that whatever else the machine does slows both of them.
        """
        rows = []
        for name, times in self.seconds.items():
            values = sorted(t * 1000 / self.work if self.unit == "ms" else self.work / t for t in times)
            ratios = sorted(b / t for b, t in zip(self.seconds[self.baseline], times, strict=True))
            rows.append({"what": name, "value": median(values), "low": values[0], "high": values[-1]})
            rows[-1] |= {"unit": self.unit, "ratio": median(ratios)}
            rows[-1] |= {"ratio_low": ratios[0], "ratio_high": ratios[-1]}
        return rows


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        name: of the benchmark.
        comparisons: what was timed.
        checks: what was seen of the work itself: counts, and largest differences between the variants.
    """

    name: str
    comparisons: list[Comparison]
    checks: dict[str, float]

    def print(self) -> None:
        """The table for people."""
        for comparison in self.comparisons:
            print(f"\n{comparison.title}")
            for row in comparison.rows():
                span = f"({_short(row['low'])} to {_short(row['high'])})"
                ratio = f"{row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
                ratio = "baseline" if row["what"] == comparison.baseline else ratio
                value = f"{_short(row['value']):>8} {row['unit']:<9}"
                print(f"  {row['what']:<52} {value} {span:<20} {ratio}")
        print("\nthe same work:")
        for what, value in self.checks.items():
            print(f"  {what}: {_short(value)}")
        print(f"medians (lowest to highest) of the rounds; {machine()}", flush=True)

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        comparisons = [
            {"title": c.title, "baseline": c.baseline, "work": c.work, "rows": c.rows()}
            for c in self.comparisons
        ]
        facts = {"benchmark": self.name, "date": date.today().isoformat(), "machine": machine()}
        return facts | {"comparisons": comparisons, "checks": self.checks}


def options(name: str, description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(prog=f"python -m vg_utils benchmark {name}", description=description)
    parser.add_argument("--rounds", type=int, help="measurements of each variant (default: 3 to 7)")
    parser.add_argument("--tiny", action="store_true", help="as little as possible, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file as well")
    return parser


def finish(report: Report, json_path: str | None) -> Report:
    """Print the report and write it down if asked; returns it."""
    report.print()
    if json_path:
        text = json.dumps(report.as_dict(), indent=2) + "\n"
        write_atomically(Path(json_path), text.encode())
    return report


def in_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each variant, see `clocks_in_turns`."""
    return clocks_in_turns({name: partial(seconds_of, do) for name, do in variants.items()}, rounds)


def clocks_in_turns(clocks: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each variant, a measurement a round, after some calls of each to warm up.

    The variants take turns, so that a machine that is busy for a while is so for all of them.

    Args:
        clocks: of each variant, the seconds that so many calls take.
    """
    calls = {}
    for name, clock in clocks.items():
        clock(1)  # compiles, fills caches, starts workers
        calls[name] = max(1, math.ceil(SHORTEST / clock(1))) if rounds > 1 else 1
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            times[name].append(clock(calls[name]) / calls[name])
    return times


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """What the figures depend on, in a line."""
    parts = [_processor(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    if hasattr(os, "getloadavg"):  # 1 process on each core is a load of as many as there are cores
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join([*parts, f"torch {torch.__version__}"])


def require_equal(what: str, one: Sequence, other: Sequence) -> None:
    """A comparison of different work is worth nothing: stop it."""
    if list(one) != list(other):
        raise RuntimeError(f"{what}: the variants do different work ({len(one)} and {len(other)} of them)")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _short(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
