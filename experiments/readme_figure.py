"""Draw the figure at the top of the README: `python -m experiments.readme_figure`.

The photographs of `Visuals/photographs`, which may be shown, with phrases and the boxes that
`photos/dense-grounder` gives: right answers, a loose one, and two that are wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vg_utils.data import load_image
from vg_utils.figures.pictures import prediction_grid, prediction_items
from vg_utils.predictor import Grounder

ROOT = Path(__file__).parents[1]
CHECKPOINT = "photos/dense-grounder"
ASKED = {
    "astronaut": ("smiling woman in an orange suit", "the flag on the left"),
    "coffee": ("the cup of coffee", "the spoon"),
    "cat": ("the cat", "the giraffe"),
}


THRESHOLD = 0.5  # of presence: below it a phrase is taken to fit nothing


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask all phrases and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "Visuals/photographs.jpg")
    out = parser.parse_args(arguments).out
    grounder, items = Grounder.load(CHECKPOINT), []
    for name, phrases in ASKED.items():
        picture = load_image(ROOT / "Visuals/photographs" / f"{name}.jpg")
        grounder.set_image(picture)
        items += prediction_items(picture, grounder.ground(phrases), THRESHOLD)
    prediction_grid(items, path=out)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
