#!/usr/bin/env bash
# torch 2.11.0 with onnxscript 0.7.2: torch.onnx.export forgets the keys of a model that returns a dict.
#
# A detector or grounder returns {"boxes": ..., "scores": ...}. What one would expect of its ONNX file: outputs "boxes" and
# "scores", as the inputs keep the names of forward's arguments. What happens: the outputs have the names of whatever node
# made them, in the order of the dict, and a caller cannot tell which is which without `output_names`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy onnx==1.22.0 onnxscript==0.7.2
cat >"$folder/try.py" <<'PYTHON'
import sys

import onnx
import torch
from torch import nn


class Grounder(nn.Module):
    def forward(self, phrases):
        return {"boxes": phrases.sigmoid(), "scores": phrases.sum(1)}


print("torch", torch.__version__, "onnx", onnx.__version__)
program = torch.export.export(Grounder(), (torch.rand(3, 4),))
print("keys of the exported program:", list(program.module()(torch.rand(3, 4))))
names = {}
for label, options in (("plain", {}), ("output_names", {"output_names": ["boxes", "scores"]})):
    file = f"{sys.argv[1]}/{label}.onnx"
    torch.onnx.export(program, f=file, dynamo=True, verbose=False, **options)
    graph = onnx.load(file).graph
    names[label] = [output.name for output in graph.output]
    print(f"{label}: inputs {[i.name for i in graph.input]}, outputs {names[label]}")
raise SystemExit(not ("boxes" not in names["plain"] and names["output_names"] == ["boxes", "scores"]))
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/try.py" "$folder"
