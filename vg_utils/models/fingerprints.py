"""Which weights of a backbone a checkpoint leaves out, and how those of another are told apart from them."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vg_utils.models.base import GroundingModel


def omitted(model: GroundingModel) -> dict[str, set[str]]:
    """Of each backbone, the names of its weights that can be had again from where they came.

    They are what is neither random nor trained; running statistics go with the layer that they belong to.
    """
    found = {}
    for name, backbone in model.backbones().items():
        weights = set() if backbone.source == "random" else _frozen(backbone)
        if weights:
            found[name] = weights
    return found


def fingerprint(module: nn.Module, names: set[str] | None = None) -> str:
    """SHA-256 of names, shapes and values (rounded to float16) of `names`, by default of what is frozen.

    Positions of an image's cells are left out: they are interpolated to the size of the input, and the last
    bits of that differ from one torch, or processor, to the next.

    RN50 and HRNet take half a second, and every save asks. So they are hashed again only where torch has
    counted a write to one of the tensors since, as it does for autograd, or one has moved.
    """
    names = _frozen(module) if names is None else names
    names = {name for name in names if not name.endswith(_INTERPOLATED)}
    tensors = {name: value for name, value in sorted(module.state_dict().items()) if name in names}
    if any(value.is_inference() for value in tensors.values()):  # writes to these are not counted
        return _sha256(tensors)
    writes = [(name, value.data_ptr(), value._version) for name, value in tensors.items()]
    if _hashed.get(module, (None, ""))[0] != writes:
        _hashed[module] = (writes, _sha256(tensors))
    return _hashed[module][1]


_INTERPOLATED = ("visual.positional_embedding", "attnpool.positional_embedding")
_hashed: WeakKeyDictionary[nn.Module, tuple[list, str]] = WeakKeyDictionary()


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprints(model: GroundingModel) -> dict[str, str]:
    """Of each backbone, that of the weights that are omitted."""
    backbones = model.backbones()
    return {name: fingerprint(backbones[name], weights) for name, weights in omitted(model).items()}


def fingerprints_of(model: GroundingModel, names: set[str]) -> dict[str, str]:
    """Of each backbone with some of these weights, their fingerprint."""
    inside = {
        backbone: {name.removeprefix(f"{backbone}.") for name in names if name.startswith(f"{backbone}.")}
        for backbone in model.backbones()
    }
    return {name: fingerprint(model.backbones()[name], of) for name, of in inside.items() if of}


def _frozen(module: nn.Module) -> set[str]:
    """Names of the weights and buffers of the parts of a module that do not train."""
    names = set()
    for path, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        trained = any(parameter.requires_grad for parameter in own.values())
        kept = {name for name, parameter in own.items() if not parameter.requires_grad}
        kept |= set() if trained else {name for name, _ in part.named_buffers(recurse=False)}
        names |= {f"{path}.{name}" if path else name for name in kept}
    return names & set(module.state_dict())


def full_names(names: dict[str, set[str]]) -> set[str]:
    """Names within the model of weights that are named within their backbone."""
    return {f"{backbone}.{name}" for backbone, inside in names.items() for name in inside}
