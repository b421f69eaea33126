"""What a training prints: a line an epoch, and at the end what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vg_utils.config import Config
from vg_utils.data import DataError, GroundingExample
from vg_utils.evaluation.runs import evaluate_constant


def epoch_line(epoch: dict, epochs: int) -> str:
    """An entry of the history on one line."""
    losses, mious = ("{:.3f}/{:.3f}".format(epoch[f"train_{x}"], epoch[f"val_{x}"]) for x in ("loss", "miou"))
    return (
        f"epoch {epoch['epoch']:3d}/{epochs}  train/val loss {losses}  mIoU {mious}  "
        f"val Acc@0.5 {epoch['val_acc@0.5']:.3f}  {epoch['pairs_per_second']:.0f} pairs/s"
    )


def closing_lines(
    config: Config,
    run_dir: Path,
    history: Sequence[dict],
    train: Sequence[GroundingExample],
    val: Sequence[GroundingExample],
) -> str:
    """The best epoch beside a constant box, where its weights are, and the next command.

    Args:
        config: the run's settings.
        run_dir: the run.
        history: what `fit` returns.
        train, val: the constant box is the best one on `train`, and is scored on `val` as the model was.
    """
    best = max(history, key=lambda epoch: epoch["val_miou"])
    phrases = sum(len(example.expressions) for example in val)
    lines = [
        f"best epoch: {best['epoch']} of {len(history)}, chosen by mIoU on val "
        f"({phrases:,} phrases about {len(val):,} images)",
        f"  {'this model':15} mIoU {best['val_miou']:.3f}  Acc@0.5 {best['val_acc@0.5']:.3f}",
    ]
    try:
        blind = evaluate_constant(train, val, config.data.root, "val").results
        lines.append(f"  {'one box for all':15} mIoU {blind['miou']:.3f}  Acc@0.5 {blind['acc@0.5']:.3f}")
    except DataError:  # train and val are the same images
        lines.append("  train and val are the same: this says nothing about other images")
    split = _to_score(config)
    lines.append(f"weights: {run_dir / 'checkpoint' / 'model.safetensors'}")
    lines.append(f"next: python -m vg_utils evaluate {run_dir} --data {config.data.root} --split {split}")
    return "\n".join(lines)


def _to_score(config: Config) -> str:
    """test, or val of own data that have no test."""
    own = Path(config.data.root)
    return "val" if (own / "val.jsonl").is_file() and not (own / "test.jsonl").is_file() else "test"
