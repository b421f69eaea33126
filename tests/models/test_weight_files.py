"""Files of weights of every maker: the same tensors from each, and nothing else from any."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vg_utils.models.weight_files import read_weights


class Net(nn.Module):
    """A few layers in a few kinds of numbers, and attributes that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2).half()))
        self.table = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous
        self.register_buffer("input_resolution", torch.tensor(224))
        self.sizes, self.scale, self.name = [1, 2], 0.5, "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x) * self.scale


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def plain(net: Net) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in net.state_dict().items()}


WRITERS = {
    "plain": lambda net, path: torch.save(net.state_dict(), path),
    "old format": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "safetensors": lambda net, path: save_file(plain(net), path),
    "a trainer's": lambda net, path: torch.save(
        {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": net.state_dict()}, path
    ),
    "an average beside": lambda net, path: torch.save(
        {"model": {"x": torch.zeros(1)}, "model_ema": net.state_dict()}, path
    ),
    "of many GPUs, compiled": lambda net, path: torch.save(
        {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()}, path
    ),
    "a script": lambda net, path: torch.jit.script(net).save(str(path)),
    "a trace": lambda net, path: torch.jit.trace(net.eval(), torch.ones(1, 3)).save(str(path)),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
@pytest.mark.parametrize("how", WRITERS)
def test_every_kind_of_file_gives_the_same_weights(tmp_path, net, how, suffix):
    path = tmp_path / f"weights{suffix}"
    WRITERS[how](net, path)
    found, expected = read_weights(path), net.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def into_script(net: Net, path: Path, payload: Payload) -> None:
    """A TorchScript archive whose module is the payload."""
    torch.jit.script(net).save(str(path))
    with zipfile.ZipFile(path) as whole:
        content = {entry.filename: whole.read(entry) for entry in whole.infolist()}
    (name,) = (name for name in content if name.endswith("/data.pkl"))
    with zipfile.ZipFile(path, "w") as changed:
        for other, data in (content | {name: pickle.dumps(payload, protocol=2)}).items():
            changed.writestr(other, data)


HOSTILE = {
    "a pickle": lambda net, path, payload: path.write_bytes(pickle.dumps(payload, protocol=2)),
    "torch's": lambda net, path, payload: torch.save(net.state_dict() | {"x": payload}, path),
    "torch's old": lambda net, path, payload: torch.save(
        {"x": payload}, path, _use_new_zipfile_serialization=False
    ),
    "a script": into_script,
}


@pytest.mark.parametrize("how", HOSTILE)
def test_what_would_run_is_refused(tmp_path, net, how):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    HOSTILE[how](net, path, Payload(trace))
    with pytest.raises(ValueError, match=r"weights\.pt: expected weights alone, refused .*mkdir.*code$"):
        read_weights(path)
    assert not trace.exists()


BROKEN = {
    "nothing": b"",
    "words": b"no weights at all",
    "an empty archive": b"PK\x05\x06" + 18 * b"\0",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_file_of_weights_is_an_error_of_one_line(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt: expected [^\n]*$"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1, torch.nan]),
        torch.tensor([-torch.inf, 2, 3]).half(),
        torch.tensor([0, torch.inf]).to(torch.float8_e5m2),
        torch.tensor([0, torch.nan]).to(torch.float8_e4m3fn),
        torch.zeros(1).expand(10**9),
        3,
    ],
    ids=str,
)
def test_weights_that_are_not_finite_or_not_there_are_refused(tmp_path, value):
    torch.save({"good": torch.ones(2), "bad": value}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt.*bad"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]
)
def test_weights_of_any_type_are_read(tmp_path, dtype):
    weights = {"some": torch.tensor([[0, 1], [1, 0]]).to(dtype), "none": torch.zeros(0, 3).to(dtype)}
    save_file(weights, tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        name: (dtype, value.tolist()) for name, value in weights.items()
    }


def test_any_cut_of_a_file_is_an_error_or_whole(tmp_path, net):
    """Cut anywhere: an error of one line, or (behind the last byte that counts) all the weights."""
    for how, write in WRITERS.items():
        whole = tmp_path / how
        write(net, whole)
        content = whole.read_bytes()
        for length in range(1, len(content), max(1, len(content) // 25)):
            (tmp_path / "cut").write_bytes(content[:length])
            with pytest.raises(ValueError, match=r"cut: expected [^\n]*$"):
                read_weights(tmp_path / "cut")
