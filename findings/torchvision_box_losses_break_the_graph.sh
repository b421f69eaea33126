#!/usr/bin/env bash
# torchvision 0.26.0 with torch 2.11.0: generalized_box_iou_loss cannot be compiled as one graph.
#
# What one would expect of a loss that is arithmetic on (N, 4) boxes: torch.compile makes one graph of it, and on a GPU
# nothing waits. What happens: its intersection is written through a boolean mask (`tensor[mask] = ...`), so the number of
# rows written depends on the data. Dynamo breaks the graph at every such place (7 graphs for one call), fullgraph=True is
# refused, and run as it is each call asks the device for the mask's count, which makes a GPU wait. The same arithmetic
# with a clamp in place of the mask is one graph and the same numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 torchvision==0.26.0 numpy
cat >"$folder/try.py" <<'PYTHON'
import torch
import torchvision
from torchvision.ops import generalized_box_iou_loss

print("torch", torch.__version__, "torchvision", torchvision.__version__)


def arithmetic(a, b):
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    area = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return 1 - (shared / area - (hull - area) / hull)


torch.manual_seed(0)
corner = torch.rand(64, 2)
a = torch.cat([corner, corner + 0.1 + torch.rand(64, 2)], 1)
b = a + 0.3 * torch.rand(64, 1)
theirs, ours = generalized_box_iou_loss(a, b, reduction="none"), arithmetic(a, b)
print("largest difference of the two:", (theirs - ours).abs().max().item())
counts = {}
for name, loss in (("torchvision", lambda x, y: generalized_box_iou_loss(x, y, reduction="none")), ("arithmetic", arithmetic)):
    torch._dynamo.reset()
    counts[name] = torch._dynamo.explain(loss)(a, b).graph_count
print("graphs of one call:", counts)
assert torch.allclose(theirs, ours, atol=1e-5)
raise SystemExit(0 if counts == {"torchvision": 7, "arithmetic": 1} else 1)
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
