"""From a run to what comes with the package: its best weights, small enough for git."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from vg_utils.config import Config
from vg_utils.models import build_model
from vg_utils.models.checkpoints import current
from vg_utils.models.fingerprints import fingerprints_of
from vg_utils.models.shipped import halved, pack_changes, pack_tensors
from vg_utils.presets import preset


def ship(
    run_dir: Path,
    directory: Path,
    tokens: Iterable[int] | None = None,
    smallest: int = 0,
    rank: int = 0,
) -> None:
    """Copy the best weights of a run as they come with the package: small, see `vg_utils.models.shipped`.

    Args:
        run_dir: the run.
        directory: where to, `vg_utils/weights/DATA/MODEL` for `Grounder.load("DATA/MODEL")` to find it.
        tokens: those of the phrases that it shall understand; None: all.
        smallest: matrices of fewer numbers stay as they are, see `shipped.pack_tensors`.
        rank: of the change of a text encoder that was finetuned in full, see `shipped.pack_changes`; 0: all
            of the encoder is kept. What is left in float32 goes to float16, see `shipped.halved`.
    """
    (directory / "checkpoint").mkdir(parents=True, exist_ok=True)
    with safe_open(current(run_dir / "checkpoint") / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    config = Config.load(run_dir / "config.json")
    changes = {}
    if rank:
        model = build_model(config.model.name, config.model)  # its text encoder as it came
        changes = {name: x for name, x in tensors.items() if name.startswith("clip.text") and x.ndim == 2}
        metadata = metadata | {"changed": json.dumps(fingerprints_of(model, set(changes)))}
    whole = {name: value for name, value in tensors.items() if name not in changes}
    packed = pack_tensors(whole, tokens, smallest)
    if changes:
        packed |= pack_changes(changes, model.state_dict(), rank)
    save_file(halved(packed), directory / "checkpoint" / "model.safetensors", metadata=metadata)
    home = preset(config.preset).data  # where the images lay was a matter of the machine that trained
    train = replace(config.train, init=Path(config.train.init).name)
    config = replace(config, data=replace(config.data, root=home.root, features=home.features), train=train)
    config.save(directory / "config.json")
