"""Copy a run's best weights to where the package finds them by name, small enough for git.

    python -m experiments.ship runs/dense-5000 scenes/dense-grounder

Matrices in 8 bits, and of the words' table only the rows that RefScenes' phrases use. Score the result as any
other checkpoint: `python -m vg_utils evaluate scenes/dense-grounder --data DIR --split test`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vg_utils.models.shipped import WEIGHTS_DIR
from vg_utils.models.shipping import ship
from vg_utils.models.weight_files import read_weights


def ship_run(run_dir: Path, directory: Path) -> None:
    """Ship a run to `directory` with the words that the shipped CLIP knows."""
    tokens = read_weights(WEIGHTS_DIR / "scenes-rn.safetensors")["token_embedding.rows"].tolist()
    ship(run_dir, directory, tokens)


def main() -> None:
    """Read the command line, copy, say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("name", help="DATA/MODEL, as in Grounder.load(name)")
    options = parser.parse_args()
    ship_run(options.run, WEIGHTS_DIR / options.name)
    size = (WEIGHTS_DIR / options.name / "checkpoint" / "model.safetensors").stat().st_size
    print(f"{options.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
