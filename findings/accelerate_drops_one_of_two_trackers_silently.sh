#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.11.0: of two trackers that are asked for, the one whose package is missing is left out silently.
#
# Accelerator(log_with=["tensorboard", "wandb"]), init_trackers(...), log(...) and end_training() with tensorboard there and
# wandb not. What one would expect: an error or a warning that names the missing package, as there is one where no tracker at
# all is left, and a ValueError for an unknown name. What happens: not a word, log() goes to tensorboard alone, exit status 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 accelerate==1.15.0 tensorboard==2.21.0 numpy
cat >"$folder/try.py" <<'PYTHON'
import sys

import accelerate
from accelerate import Accelerator

folder, asked = sys.argv[1], sys.argv[2].split(",")
made = Accelerator(cpu=True, log_with=asked, project_dir=folder)
made.init_trackers("run", config={"lr": 0.1})
made.log({"loss": 1.0}, step=1)
kept = [tracker.name for tracker in made.trackers]
made.end_training()
print(f"accelerate {accelerate.__version__}: asked for {asked}, logged to {kept}", flush=True)
PYTHON
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
run() { (cd "$folder" && "$folder/venv/bin/python" try.py "$folder/$1" "$1" 2>&1); }
alone=$(run wandb) beside=$(run tensorboard,wandb)
printf '%s\n%s\n' "$alone" "$beside"
grep -q "no supported trackers are currently installed" <<<"$alone" &&
    [ "$beside" = "accelerate 1.15.0: asked for ['tensorboard', 'wandb'], logged to ['tensorboard']" ]
