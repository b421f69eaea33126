"""Answers and training steps of one build, to be timed: its own `vg_utils`, or that of another checkout.

Nothing but `vg_utils` is imported, and of it only what builds have had for long, so that this file runs with
an older checkout first on the path: `OtherBuild` starts such a process and asks it to measure in turns.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vg_utils.config import Config
from vg_utils.data.transforms import EvalTransform
from vg_utils.models import build_model
from vg_utils.models.base import GroundingModel
from vg_utils.predictor import Grounder
from vg_utils.presets import preset

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Asking:
    """A model with random weights, and photographs to ask it about.

    Args:
        model: name of the system.
        full: RefCOCOg's full size; else that of RefScenes.
        images: files of photographs, of which the first is asked about.
        phrases: what is asked.
        fast: `Grounder`'s option, in builds that have it.
    """

    def __init__(
        self, model: str, full: bool, images: list[str], phrases: list[str], fast: bool = True
    ) -> None:
        torch.manual_seed(0)
        config = settings(model, full)
        network = build_model(model, config.model).to(DEVICE)
        enliven(
            network, torch.stack([EvalTransform(config.model.image_size)(i).image for i in images]), phrases
        )
        options = {"fast": fast} if "fast" in inspect.signature(Grounder).parameters else {}
        self.grounder = Grounder(network, config, **options)
        self.image, self.phrases = Path(images[0]), phrases

    def first(self) -> None:
        """Each phrase, the image read and encoded for each anew."""
        for phrase in self.phrases:
            self.grounder.set_image(self.image)
            self.grounder.ground(phrase)

    def further(self) -> None:
        """Each phrase by itself, about the image that was set."""
        for phrase in self.phrases:
            self.grounder.ground(phrase)

    def together(self) -> None:
        """All phrases at once."""
        self.grounder.ground(self.phrases)

    def boxes(self) -> list[list[float]]:
        """What is answered: corners in pixels."""
        self.grounder.set_image(self.image)
        return [list(self.grounder.ground(phrase)[0].box_xyxy) for phrase in self.phrases]


class Training:
    """A step of training on one batch that stays on the device: forward, losses, backward, optimizer.

    Args:
        model: name of the system.
        full: RefCOCOg's full size; else that of RefScenes.
        images: in the batch.
        phrases: texts, which are dealt out to the images; every fifth fits nothing where that is learned.
        graphs: record the image encoder, see `vg_utils.training.acceleration`.
        hrnet: whether a model that merges levels has those of HRNet among them.
        frozen: the backbones do not train.
    """

    def __init__(
        self,
        model: str,
        full: bool,
        images: int,
        phrases: list[str],
        graphs: bool = False,
        hrnet: bool = True,
        frozen: bool = False,
    ) -> None:
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        self.reserved_by_others = torch.cuda.memory_reserved() if DEVICE.type == "cuda" else 0
        config = settings(model, full, tuning="frozen" if frozen else "full")
        if not hrnet:
            config = replace(
                config, model=replace(config.model, pyramid=replace(config.model.pyramid, hrnet=False))
            )
        self.model = build_model(model, config.model).to(DEVICE).train()
        if DEVICE.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)
        size = config.model.image_size
        self.images = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8).to(DEVICE)
        self.tokens = tokenize(self.model, phrases).to(DEVICE)
        self.index = (torch.arange(len(phrases)) * images // len(phrases)).to(DEVICE)
        targets = torch.rand(len(phrases), 4) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2
        if self.model.learns_presence:
            targets[::5] = 0
        self.targets = targets.to(DEVICE)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=DEVICE.type == "cuda" or None)
        self.network = self.model.predict
        if graphs:
            from vg_utils.training.acceleration import RecordedImages

            self.network = RecordedImages(self.model)
            self.network.record(self.images, torch.bfloat16)

    def step(self) -> None:
        """One step."""
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            outputs = self.network(self.images, self.tokens, self.index)
        losses = self.model.losses({k: v.float() for k, v in outputs.items()}, self.targets)
        sum(weight * losses[name] for name, weight in self.model.loss_weights.items()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def profile(self, steps: int = 3) -> dict[str, float]:
        """Of a step on a GPU: `kernels`, `busy`, the share of its time in which one ran, and `peak_gib`.

        The memory is what torch asked the GPU for: what a graph works in counts as free between its replays.
        """
        if DEVICE.type != "cuda":
            return {}
        torch.cuda.reset_peak_memory_stats()
        self.step()
        seconds = seconds_of(self.step, steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(steps):
                self.step()
            torch.cuda.synchronize()
        kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(e.time_range.elapsed_us() for e in kernels) / 1e6  # one stream: they do not overlap
        peak = (torch.cuda.max_memory_reserved() - self.reserved_by_others) / 2**30
        return {"kernels": len(kernels) / steps, "busy": busy / seconds, "peak_gib": peak}


def settings(model: str, full: bool, tuning: str = "frozen") -> Config:
    """The preset `refcocog` or `scenes` with random weights: speed does not depend on them."""
    config = preset("refcocog" if full else "scenes", model)
    clip = replace(config.model.clip, weights="random", tuning=tuning, text_tuning=tuning)
    hrnet = replace(config.model.hrnet, weights="random", tuning=tuning)
    return replace(config, model=replace(config.model, clip=clip, hrnet=hrnet))


def enliven(model: GroundingModel, images: Tensor, phrases: list[str]) -> None:
    """Let BatchNorm see the images: with random weights and no statistics all boxes are alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # of this batch alone
            module.train()
    tokens = tokenize(model, phrases)
    index = torch.arange(len(tokens)) % len(images)
    with torch.no_grad():
        model.predict(images.to(DEVICE), tokens.to(DEVICE), index.to(DEVICE))


def tokenize(model: GroundingModel, phrases: list[str]) -> Tensor:
    """Tokens (N, L) as the build makes them."""
    if hasattr(model, "tokenizer"):
        return model.tokenizer(phrases)
    from vg_utils.data.text import tokenize as trimmed  # builds whose models had no tokenizer of their own

    return trimmed(phrases, trim=True)


def seconds_of(do: Callable[[], object], calls: int = 1) -> float:
    """Wall-clock seconds of so many calls; a GPU's queue is empty before and after."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        do()
    wait()
    return time.perf_counter() - started


KINDS = {"Asking": Asking, "Training": Training}


class OtherBuild:
    """`Asking` or `Training` of another checkout, in a process of its own; methods as theirs.

    Args:
        checkout: folder that has `vg_utils`.
        kind: name of the class.
        arguments: what it takes.
    """

    def __init__(self, checkout: str | Path, kind: str, **arguments) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(checkout).resolve())}
        command = [sys.executable, str(Path(__file__).resolve()), kind, json.dumps(arguments)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout
        )

    def seconds(self, method: str, calls: int = 1) -> float:
        """Of so many calls, by the clock of its process."""
        return self._ask({"time": method, "calls": calls})

    def result(self, method: str):
        """What a method gives."""
        return self._ask({"call": method})

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, request: dict):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the other build's process ended with status {self.process.wait()}")
        return json.loads(answer)


def _serve(kind: str, arguments: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed on the way is no answer
    job = KINDS[kind](**json.loads(arguments))
    for line in sys.stdin:
        request = json.loads(line)
        if "time" in request:
            answer = seconds_of(getattr(job, request["time"]), request["calls"])
        else:
            answer = getattr(job, request["call"])()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
