#!/usr/bin/env bash
# torch 2.11.0: Tensor.take_along_dim makes a dynamic dimension of torch.export a constant; gather does not.
#
# A grounding head picks, for each of N phrases, rows of its own: x (N, P, C) at index (N, K). take_along_dim broadcasts
# the index for you, gather wants it expanded; the two give the same numbers. What one would expect: both can be exported
# with N dynamic. What happens: with take_along_dim the export is refused, because the broadcast compares the two first
# dimensions and N becomes the constant of the example ("you marked n as dynamic but your code specialized it").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy
cat >"$folder/try.py" <<'PYTHON'
import torch
from torch import nn


class Broadcast(nn.Module):
    def forward(self, x, index):
        return x.take_along_dim(index[:, :, None], dim=1)


class Expanded(nn.Module):
    def forward(self, x, index):
        return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


print("torch", torch.__version__)
x, index = torch.rand(3, 5, 7), torch.randint(0, 5, (3, 2))
print("the same numbers:", torch.equal(Broadcast()(x, index), Expanded()(x, index)))
n = torch.export.Dim("n", min=1, max=64)
said = {}
for model in (Broadcast(), Expanded()):
    name = type(model).__name__
    try:
        program = torch.export.export(model, (x, index), dynamic_shapes=({0: n}, {0: n})).module()
        said[name] = f"exported, 6 rows give {tuple(program(torch.rand(6, 5, 7), torch.randint(0, 5, (6, 2))).shape)}"
    except torch._dynamo.exc.UserError as error:
        said[name] = "refused: " + str(error).splitlines()[1].strip(" -")
    print(f"{name}: {said[name]}")
raise SystemExit(not (said["Broadcast"].startswith("refused") and said["Expanded"].startswith("exported")))
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/try.py"
