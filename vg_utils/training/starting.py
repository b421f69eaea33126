"""What a training starts from: a new model, which may take over the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vg_utils.config import Config, ConfigError
from vg_utils.models import build_model
from vg_utils.models.base import GroundingModel
from vg_utils.models.checkpoints import find_checkpoint, load_model
from vg_utils.models.fingerprints import full_names, omitted

A_FEW = 3  # names that a message lists


def start_model(config: Config) -> tuple[GroundingModel, str]:
    """The model of a config, with what fits of the checkpoint `train.init`, and a line that says what does.

    Raises:
        CheckpointError, WeightsError: no such checkpoint, or a damaged one.
        ConfigError: nothing of it fits.
    """
    model = build_model(config.model.name, config.model)
    if not config.train.init:
        return model, ""
    source, _ = load_model(find_checkpoint(config.train.init))
    return model, f"{config.train.init}: {take_over(model, source.state_dict())}"


def take_over(model: GroundingModel, given: Mapping[str, Tensor]) -> str:
    """Put the weights whose name and shape fit into the model; returns which were taken over and which not.

    What is frozen in a backbone stays as it was loaded: a checkpoint of this model will not hold it.

    Raises:
        ConfigError: no weight that trains fits.
    """
    own, frozen = model.state_dict(), full_names(omitted(model))
    names = [name for name in own if name not in frozen]
    other_shape = [n for n in names if n in given and given[n].shape != own[n].shape]
    missing = [name for name in names if name not in given]
    taken = {n: given[n] for n in names if n in given and given[n].shape == own[n].shape}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained & taken.keys():
        raise ConfigError(
            "train.init: expected weights that fit this model, found none; is it another --model?"
        )
    model.load_state_dict(taken, strict=False)
    share = sum(own[n].numel() for n in taken) / sum(own[n].numel() for n in names)
    parts = [
        _listed("of another shape there", [f"{n} {tuple(given[n].shape)}" for n in other_shape]),
        _listed("not there", missing),
        _listed("there alone", [name for name in given if name not in own]),
        f"{len(frozen)} frozen ones stay as the backbone's own weights have them" if frozen else "",
    ]
    return "; ".join(filter(None, [f"took over {len(taken)} weights, {share:.1%} of the numbers", *parts]))


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > A_FEW else ""
    return f"{len(names)} {what} ({', '.join(names[:A_FEW])}{more})" if names else ""
