"""Which device a model runs on."""

from __future__ import annotations

import torch

from vg_utils.config import ConfigError

__all__ = ["default_device", "find_device"]


def default_device() -> torch.device:
    """A GPU if there is one, NVIDIA's before Apple's."""
    apple = "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device("cuda" if torch.cuda.is_available() else apple)


def find_device(name: torch.device | str | None) -> torch.device:
    """The device of that name, by default the best there is.

    Raises:
        ConfigError: there is none of that name here.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: expected cpu, cuda, cuda:1, mps or such, got {name!r} ({reason})"
        ) from None
    return device
