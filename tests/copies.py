"""Backbones put together once: whoever asks for the same again gets a copy, at a tenth of the time.

The suite builds the same small CLIP and HRNet some thousand times. A copy is what building would have given,
to the bit: of random weights, those of the same state of torch's generator, which is then left as building
leaves it. Shipped weights come without drawing a number, so that no test depends on which one was first.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vg_utils.models import shipped

LARGEST = 2**24  # numbers of a module that is kept
MOST = 24  # modules that are kept
WEIGHTS_DIR = shipped.WEIGHTS_DIR  # which a test may change


class Template:
    """A module as bytes, its tensors beside them: pickle is ten times as fast as `copy.deepcopy`."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors: list[Tensor] = []
        content = io.BytesIO()
        pickler = pickle.Pickler(content, pickle.HIGHEST_PROTOCOL)
        places: dict[int, int] = {}

        def place(part: object) -> int | None:
            if not isinstance(part, Tensor):
                return None
            if id(part) not in places:
                places[id(part)] = len(self.tensors)
                self.tensors.append(part)
            return places[id(part)]

        pickler.persistent_id = place
        pickler.dump(module)
        self.content = content.getvalue()

    def copy(self) -> nn.Module:
        """A module that shares nothing with the one before."""
        made = [_copied(tensor) for tensor in self.tensors]
        unpickler = pickle.Unpickler(io.BytesIO(self.content))
        unpickler.persistent_load = made.__getitem__
        return unpickler.load()


def _copied(tensor: Tensor) -> Tensor:
    values = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def built_once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`load_clip` or `load_hrnet`, which take settings and an image's side, as a function that copies."""

    kept: dict[tuple, tuple[Template, Tensor]] = {}  # the last one that was asked for comes last

    def build_or_copy(config: object, image_size: int = 224) -> nn.Module:
        ours = config.weights == "shipped" and shipped.WEIGHTS_DIR == WEIGHTS_DIR
        if not ours and config.weights != "random":  # what is in files may change
            return build(config, image_size)
        key = config, image_size, b"" if ours else torch.get_rng_state().numpy().tobytes()
        if key not in kept:
            with torch.random.fork_rng(devices=[], enabled=ours):
                module = build(config, image_size)
            if sum(value.numel() for value in module.state_dict().values()) > LARGEST:
                return module
            kept[key] = Template(module), torch.get_rng_state()
            if len(kept) > MOST:
                del kept[next(iter(kept))]
        template, after = kept[key] = kept.pop(key)
        if not ours:
            torch.set_rng_state(after)
        return template.copy()

    return build_or_copy
