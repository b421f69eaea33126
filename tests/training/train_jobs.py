"""Trainings in processes of their own, to be killed or to work together: every one is a fork."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from vg_utils.config import Config
from vg_utils.models import build_model
from vg_utils.training import engine


def train(job: dict) -> None:
    if "kill_at" in job:
        seed_step = engine._Run._seed_step

        def die_or_go_on(run: engine._Run) -> None:
            if [run.epoch, run.batch] == job["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            seed_step(run)

        engine._Run._seed_step = die_or_go_on
    engine.fit(Config.load(Path(job["config"])), Path(job["run_dir"]), progress=False)


def forked(job: dict, rank: int, processes: int, port: int) -> int:
    """Start the job in a fork of this process and return its id."""
    pid = os.fork()
    if pid:
        return pid
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        os.environ["OMP_NUM_THREADS"] = "1"  # accelerate would give each two, which then fight over the cores
    status = 1
    try:
        train(job)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@torch.no_grad()
def warm_up(config: Config) -> None:
    """Ask a model once: what the first use of one imports and prepares, all forks then have."""
    model, size = build_model(config.model.name, config.model).eval(), config.model.image_size
    images = torch.zeros(config.train.batch_images, 3, size, size, dtype=torch.uint8)
    model.predict(images, model.tokenizer(["the cube"]), torch.zeros(1, dtype=torch.long))


def run_jobs(jobs: list[dict], errors: Path) -> list[list[int]]:
    """The exit codes of the processes of each job; minus the signal for those killed.

    Args:
        jobs: `config` (a file), `run_dir`, and either `kill_at`, the [epoch, batch] before which SIGKILL
            comes, or `processes`, how many train together as torchrun would start them.
        errors: a file for what they say of what went wrong.
    """
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.__stderr__.fileno())
    codes = []
    warm_up(Config.load(Path(jobs[0]["config"])))
    for job in jobs:
        processes, port = job.get("processes", 1), free_port()
        pids = [forked(job, rank, processes, port) for rank in range(processes)]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
    return codes
