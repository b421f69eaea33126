"""Reading a file of weights, of any family and maker, without running anything that it might hold.

safetensors, what `torch.save` wrote, and the TorchScript archives in which OpenAI published CLIP. torch loads
the last as programs, and other libraries' loaders unpickle without restriction in some of their versions.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Under which trainers keep the weights among other things: an average comes before what it is of.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # torch.compile, DistributedDataParallel


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; what kind of file it is, its content says, not its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of weights, one that asks for code to be run, or a weight that is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        found = _read(path)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"refused {asked[1]}, which is code" if asked else "it is damaged, or holds other things"
        raise ValueError(f"{path}: expected weights alone, {what}") from None
    except Exception as error:  # safetensors, zipfile and torch each raise their own of a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: expected a file of weights, got: {reason}") from None
    inner = [found[key] for key in WRAPPERS if isinstance(found, dict) and isinstance(found.get(key), dict)]
    found = inner[0] if inner else found
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected tensors by name, got {type(found).__name__}")
    if not found:
        raise ValueError(f"{path}: expected tensors by name, got none")
    weights = {}
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            what = f"{type(value).__name__} under {repr(name)[:80]}"
            raise ValueError(f"{path}: expected by name tensors with all their numbers, got {what}")
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        weights[name] = value
    check_finite(weights, str(path))
    return weights


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with all its numbers: in a file, one can be spread over any shape at no cost."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise a ValueError that names the first weight with an infinite value or NaN."""
    for name, value in weights.items():
        if value.is_floating_point() and not _is_finite(value):
            raise ValueError(f"{where}: {name}: expected finite weights, got infinite ones or NaN")


def _is_finite(value: Tensor) -> bool:
    """By its extremes, of which one is infinite or NaN if any number is: quicker than `torch.isfinite`."""
    value = value.float() if value.element_size() == 1 else value  # of 8 bits torch knows no extremes
    return not value.numel() or all(bool(end.isfinite()) for end in value.aminmax())


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # the header's length, then the header
    if is_safetensors:
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_torchscript(archive)
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals([argparse.Namespace]),
    ):  # timm's trainer's
        warnings.simplefilter("ignore", UserWarning)  # of pickles in other protocols, which the error says
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript module, its programs left unread."""
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    with archive.open(name) as file:
        module = _ScriptUnpickler(file, archive, name.removesuffix("data.pkl")).load()
    return dict(_tensors_of(module))


def _tensors_of(part: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    found = []
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Part):
            found += _tensors_of(value, f"{prefix}{name}.")
    return found


class _Part:
    """What stands for any module of a TorchScript archive: its attributes, and nothing that it could do."""


class _ScriptUnpickler(pickle.Unpickler):
    """Builds tensors, plain data and `_Part`s only; whatever else an archive asks for is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Part
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
        if (module, name) == ("collections", "OrderedDict"):  # of hooks, of which there are none
            return dict
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage as a vector."""
        _, kind, key, _, _ = pid
        entry = self._archive.getinfo(f"{self._folder}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing; a bomb would be
            raise ValueError(f"{entry.filename}: compressed")
        content = bytearray(self._archive.read(entry))
        return torch.frombuffer(content, dtype=_DTYPES[kind]) if content else torch.empty(0)


def _strided(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # torch refuses what lies outside


_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
