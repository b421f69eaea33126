#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.11.0: whoever asks PartialState() first decides that two CPU processes know nothing of
# each other.
#
# ACCELERATE_USE_CPU=true and torchrun's variables make Accelerator() one of two processes (gloo). What one would expect:
# the same from PartialState(), which Accelerator() is built on. What happens: PartialState() does not look at
# ACCELERATE_USE_CPU; on a machine without a GPU it settles the shared state as "not distributed", and an Accelerator()
# made afterwards keeps that: both processes are the main process, and both write the same checkpoint.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 accelerate==1.15.0 numpy
cat >"$folder/try.py" <<'PYTHON'
import sys

import accelerate
from accelerate import Accelerator, PartialState

if sys.argv[1] == "state-first":
    PartialState()
made = Accelerator()
print(f"accelerate {accelerate.__version__} {sys.argv[1]}: processes {made.num_processes}, main {made.is_main_process}", flush=True)
PYTHON
export CUDA_VISIBLE_DEVICES="" ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
run() { "$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc_per_node 2 "$folder/try.py" "$1" 2>/dev/null; }
plain=$(run accelerator-first) first=$(run state-first)
printf '%s\n%s\n' "$plain" "$first"
count() { grep -o "$1" <<<"$2" | wc -l; }  # two processes may print on one line
[ "$(count 'processes 2' "$plain")" = 2 ] && [ "$(count 'processes 1, main True' "$first")" = 2 ]
