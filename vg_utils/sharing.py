"""A model as a folder that can be given away, and on the Hugging Face hub: settings, weights, a card.

The folder is whole: its weights hold the backbones too, so whoever loads it needs no other file.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from string import Template

from safetensors.torch import save

from vg_utils.config import Config
from vg_utils.files import write_atomically
from vg_utils.models.base import GroundingModel
from vg_utils.models.checkpoints import CheckpointError, shipped_checkpoints

FILES = ("config.json", "model.safetensors", "README.md")
CARD = Template("""---
library_name: vg_utils
pipeline_tag: zero-shot-object-detection
tags:
- visual-grounding
- referring-expression-comprehension
---

# $model

Given an image and a phrase, it finds the one box that the phrase means. $origin.

```python
from vg_utils import Grounder

grounder = Grounder.from_pretrained("user/name")  # this folder, or its name on the hub
image = grounder.encode("image.jpg")  # once, whatever is asked
print(grounder.ground(["the cup on the left"], image)[0].box_xyxy)  # corners in pixels of the image
```

$parameters parameters, an input of $size x $size pixels. Scores are not part of this card: measure them
on your data with `python -m vg_utils evaluate FOLDER --data DIR --split test`.
""")


def save_pretrained(folder: Path, model: GroundingModel, config: Config, origin: str) -> None:
    """Write `config.json`, `model.safetensors` and `README.md`, each under a temporary name first.

    Args:
        folder: made if it is missing; other files in it stay.
        model: every weight is written, what is frozen too.
        config: its settings; of its data and of the run that it began with, only the names are kept.
        origin: which model it is and what it was trained on, in a line.
    """
    data = Path(config.data.root).name
    if config.data.root in origin:  # a run's, whose paths are nobody's business
        origin = f"{config.model.name}, trained on {data}"
    card = {"model": config.model.name, "origin": origin, "size": config.model.image_size}
    card["parameters"] = f"{sum(p.numel() for p in model.parameters()):,}"
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    whole = replace(
        config.model,  # no backbone is to be had from elsewhere first: the weights below hold them
        clip=replace(config.model.clip, weights="random"),
        hrnet=replace(config.model.hrnet, weights="random"),
    )
    train = replace(config.train, init=Path(config.train.init).name)
    config = replace(config, data=replace(config.data, root=data), model=whole, train=train)
    config.save(folder / "config.json")
    write_atomically(folder / "README.md", CARD.substitute(card).encode())
    # Not safetensors' own `save_file`: only the owner may read what it writes.
    write_atomically(folder / "model.safetensors", save(tensors, {"format": "pt"}))


def push_to_hub(
    repo_id: str, model: GroundingModel, config: Config, origin: str, private: bool | None = None
) -> str:
    """Put the same files into a repository of the hub, made if it is missing; returns its address."""
    from huggingface_hub import HfApi  # late: nobody else pays for it

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder), model, config, origin)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"{config.model.name}")
    return str(address)


def download(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a repository that `push_to_hub` filled, from the hub or its cache on this machine.

    Raises:
        CheckpointError: it cannot be had, or its settings name files that would be loaded from elsewhere.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub, its network and its names each raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{repo_id}: expected a folder, one of {', '.join(shipped_checkpoints())} or a model on the hub; "
            f"from there it could not be had: {reason}"
        ) from error
    model = Config.load(folder / "config.json").model
    for name, weights in (("clip", model.clip.weights), ("hrnet", model.hrnet.weights)):
        if weights != "random":
            raise CheckpointError(f"{repo_id}: model.{name}.weights: expected its own alone, got {weights!r}")
    return folder
