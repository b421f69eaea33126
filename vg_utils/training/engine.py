"""Training: `fit` turns a config into a run directory, and resumes one exactly where it was killed.

Everything random is a function of the seed and of a counter (the dataset's items of the epoch, dropout of the
step), so a resumed run needs no state of random generators to end with the weights of an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, set_seed
from torch import nn
from tqdm.auto import tqdm

from vg_utils.boxes import paired_iou, to_xyxy
from vg_utils.config import Config, ConfigError
from vg_utils.data.batches import Batch, GroundingLoader
from vg_utils.data.resident import ResidentPictures
from vg_utils.evaluation.calibration import calibrate
from vg_utils.evaluation.metrics import summarise
from vg_utils.evaluation.rows import predict_rows
from vg_utils.evaluation.similarity import add_clip_similarity, judge_for
from vg_utils.files import check_folder
from vg_utils.models.backbones import Backbone
from vg_utils.models.base import Features, GroundingModel
from vg_utils.models.checkpoints import load_state, save_checkpoint, save_history, with_absolute_paths
from vg_utils.training.acceleration import RecordedImages, check_graphs, make_accelerator, record
from vg_utils.training.averages import MovingAverage, RunningTotals
from vg_utils.training.claims import check_claim, check_still_there, claim, digest_of
from vg_utils.training.loaders import Examples, examples_of, load_split, make_loaders
from vg_utils.training.optim import make_optimizer, make_scheduler, set_rates
from vg_utils.training.printing import closing_lines, epoch_line
from vg_utils.training.starting import start_model
from vg_utils.training.states import check_state
from vg_utils.training.tracking import check_log, logged

MENDS = "A lower --train.lr or --train.grad-clip usually mends it"


class TrainingError(RuntimeError):
    """Training cannot go on; the message holds the loss terms."""


def fit(
    config: Config,
    run_dir: Path | str,
    resume: bool = False,
    progress: bool = True,
    on_epoch: Callable[[dict], None] | None = None,
    splits: dict[str, Examples | ResidentPictures] | None = None,
    closing: bool = False,
) -> list[dict]:
    """Train a model and keep the weights with the best validation mIoU.

    Args:
        config: all settings; written to `run_dir/config.json`, once data, model and batches are sound.
        run_dir: where the run goes (see `vg_utils.models.checkpoints` for what lies there).
        resume: go on from the last checkpoint of this directory, if there is one.
        progress: show progress bars.
        on_epoch: called with each new entry of the history once its checkpoint is written; what it raises
            ends the training there (a search prunes so).
        splits: `train` and `val` where they have been read already; else they are read as the config says.
        closing: print at the end what came of it, see `closing_lines`.

    Returns:
        The history: a dict an epoch with `epoch, lr, seconds, pairs_per_second, train_loss, train_miou,
        train_acc@0.5, val_loss, val_miou, val_acc@0.5, val_semantic_similarity` and every loss by name.

    Raises:
        ConfigError: a fresh run in a directory that has one, a resumed run with other settings or data, or
            settings that do not go together; or another training writes to the directory.
        OSError: the directory cannot be written to, the disk is full, or it was deleted meanwhile.
        DataError: a split that cannot be read, or has no usable image.
        TrainingError: a loss is not finite; it is stopped before anything is saved.
    """
    run_dir = Path(run_dir)
    check_folder(run_dir)
    config = with_absolute_paths(config)
    check_log(config.train.log)
    accelerator = make_accelerator(config.train, run_dir)
    check_graphs(config.train, accelerator.device)
    note = check_claim(run_dir, config, resume)  # all look, and nobody writes before everything is sound
    set_seed(config.train.seed)
    splits = splits or {}
    train, val = (splits[s] if s in splits else load_split(config, s) for s in ("train", "val"))
    model, taken_over = start_model(config)
    train_loader, val_loader = make_loaders(config, model, train, val, accelerator, progress)
    data = digest_of(examples_of(train), examples_of(val))
    judge = judge_for(model, config.model, accelerator.device)
    with claim(run_dir, config, resume, accelerator.is_main_process):
        run = _Run(config, run_dir, model, train_loader, accelerator, data)
        if resume:
            run.restore()
        accelerator.wait_for_everyone()
        with logged(accelerator, config, run_dir, run.epoch):
            if accelerator.is_main_process:
                config.save(run_dir / "config.json")
            for line in filter(None, (note, taken_over)):
                accelerator.print(line)
            while run.epoch < config.train.epochs:
                epoch = {"epoch": run.epoch + 1} | run.train_epoch(progress)
                epoch |= run.validate(examples_of(val), val_loader, judge)
                accelerator.log(epoch, step=epoch["epoch"])
                run.finish_epoch(epoch)
                if progress and accelerator.is_main_process:
                    tqdm.write(epoch_line(epoch, config.train.epochs))
                if on_epoch is not None:
                    on_epoch(epoch)
    if closing and accelerator.is_main_process:
        print(closing_lines(config, run_dir, run.history, examples_of(train), examples_of(val)))
    return run.history


class _Run:
    """The state of a training run: what a checkpoint holds, and the two loops that change it."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        model: GroundingModel,
        loader: GroundingLoader,
        accelerator: Accelerator,
        data: str,
    ) -> None:
        self.config, self.run_dir, self.model, self.accelerator = config, run_dir, model, accelerator
        self.data = data  # a hash of it
        train = config.train
        self.optimizer = make_optimizer(model, train)
        network: nn.Module = RecordedImages(model)
        if accelerator.device.type == "cuda":  # not on processors, where torch 2.11's backward pass can crash
            network = network.to(memory_format=torch.channels_last)
        if train.compile:
            network = torch.compile(network, dynamic=True)
        if train.graphs:  # before several GPUs watch its gradients, which cannot be recorded
            seconds = record(network.to(accelerator.device), config, accelerator)
            accelerator.print(f"train.graphs: the image encoder's step was recorded in {seconds:.1f} s")
        self.network, self.optimizer, self.loader = accelerator.prepare(network, self.optimizer, loader)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.average = None  # of the weights, over the last 1 / (1 - ema) steps or so
        if train.ema:
            self.average = MovingAverage(model, train.ema)
        self.steps_per_epoch = math.ceil(len(self.loader) / train.accumulation)
        self.scheduler = make_scheduler(self.optimizer, train, self.steps_per_epoch * train.epochs)
        self.epoch, self.batch, self.step = 0, 0, 0  # finished epochs, batches of this one, optimizer steps
        self.best = -math.inf
        self.history: list[dict] = []
        self.totals = RunningTotals(accelerator.device)

    @property
    def scored(self) -> GroundingModel:
        """The model whose validation score counts: the moving average, if there is one."""
        return self.model if self.average is None else self.average.model

    def train_epoch(self, progress: bool) -> dict[str, float]:
        """One pass over the training images, from the batch where a killed run left it."""
        train, accelerator = self.config.train, self.accelerator
        self.network.train()
        started, pairs = time.perf_counter(), 0
        bar = tqdm(
            total=len(self.loader),
            initial=self.batch,
            desc=f"epoch {self.epoch + 1}/{train.epochs}",
            disable=not (progress and accelerator.is_local_main_process),
            leave=False,
        )
        for batch in self._batches():
            batch = batch.to(accelerator.device)
            self._seed_step()
            with accelerator.accumulate(self.network):
                outputs = self.network(batch.images, batch.tokens, batch.image_index)
                losses = self.model.losses(outputs, batch.target_boxes_cxcywh)
                loss = sum(weight * losses[name] for name, weight in self.model.loss_weights.items())
                accelerator.backward(loss)
                if accelerator.sync_gradients and train.grad_clip:
                    accelerator.clip_grad_norm_(self.trained, train.grad_clip)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            self.totals.add({"loss": loss} | losses | _hits(outputs, batch), len(batch.image_index))
            self.batch, pairs = self.batch + 1, pairs + len(batch.image_index)
            bar.update()
            if accelerator.sync_gradients:
                self._after_step(bar)
        bar.close()
        self._check_finite()
        self._check_weights()
        seconds = time.perf_counter() - started
        means = {f"train_{name}": value for name, value in self.totals.means(accelerator).items()}
        speed = pairs * accelerator.num_processes / seconds
        means |= {"lr": max(self.scheduler.get_last_lr()), "seconds": seconds}
        return means | {"pairs_per_second": speed}

    def validate(
        self, examples: Examples, loader: GroundingLoader, judge: Backbone | None
    ) -> dict[str, float]:
        """Scores on `val`: each process has its share of the images, and each image counts once.

        The answers also calibrate the model that gave them, so that every checkpoint is.
        """
        accelerator = self.accelerator
        # Each process has BatchNorm's means of its own last batch: score what will be saved, the first one's.
        if accelerator.num_processes > 1:
            for buffer in self.scored.buffers():
                broadcast(buffer)
        mine = examples[accelerator.process_index :: accelerator.num_processes]
        answers = self._answers(mine, loader, judge) if len(mine) else []
        rows, absent = map(pd.concat, zip(*gather_object(answers), strict=True))
        calibrate(self.scored, rows, absent)
        summary = summarise(rows)
        return {
            "val_loss": float(rows["loss"].mean()),
            "val_miou": summary["miou"],
            "val_acc@0.5": summary["acc@0.5"],
            "val_semantic_similarity": summary["semantic_similarity"],
        }

    def _answers(
        self, examples: Examples, loader: GroundingLoader, judge: Backbone | None
    ) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """Rows of this process's share of `val`, and of its absent phrases: a list of the one pair."""
        device, size = self.accelerator.device, self.config.model.image_size
        rows, loss, absent = predict_rows(self.scored, examples, loader, size, device)
        if not math.isfinite(loss):
            raise TrainingError(
                f"epoch {self.epoch + 1}: not finite: validation loss {loss:g} after training losses of "
                f"{self._terms()}; the last checkpoint is from before. {MENDS}"
            )
        if judge is not None and self.config.train.similarity_images:
            some = examples[: self.config.train.similarity_images]
            n = sum(len(example.expressions) for example in some)
            similarity = add_clip_similarity(rows[:n], some, judge, device)["semantic_similarity"]
            rows = rows.assign(semantic_similarity=similarity)
        return [(rows.assign(loss=loss), absent)]

    def finish_epoch(self, epoch: dict[str, float]) -> None:
        """Write the epoch down, and the checkpoint with it."""
        improved = epoch["val_miou"] > self.best
        self.best = max(self.best, epoch["val_miou"])
        self.history.append(epoch)
        self.epoch, self.batch = self.epoch + 1, 0
        self.totals = RunningTotals(self.accelerator.device)
        self.save(improved)

    def save(self, improved: bool = False) -> None:
        """Write the checkpoint (the main process does; nothing is saved in mid-accumulation)."""
        if self.accelerator.is_main_process:
            check_still_there(self.run_dir)
            state = {
                "data": self.data,
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "best": self.best,
                "history": self.history,
                "totals": self.totals.state(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }
            average = None if self.average is None else self.average.model
            best = improved or self.best == -math.inf
            save_checkpoint(self.run_dir / "checkpoint", self.model, state, best, average)
            save_history(self.run_dir, self.history)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Take up the last checkpoint, if there is one.

        Raises:
            ConfigError: it was trained on other data.
            CheckpointError: it is damaged.
        """
        average = None if self.average is None else self.average.model
        state = load_state(self.run_dir / "checkpoint", self.model, average)
        if state is None:
            return
        check_state(state, self.optimizer, self.scheduler, self.run_dir / "checkpoint" / "state.pt")
        if state.get("data", self.data) != self.data:  # runs of earlier versions do not say
            raise ConfigError(f"{self.run_dir}: the run here learned from other data; choose another --out")
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.best, self.history = state["best"], state["history"]
        self.totals.load(state["totals"])
        self.optimizer.load_state_dict(state["optimizer"])
        own = self.scheduler.state_dict().keys()  # loading sets attributes of any name
        self.scheduler.load_state_dict({k: v for k, v in state["scheduler"].items() if k in own})
        set_rates(self.scheduler)  # more epochs may be asked for than when it was saved
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:  # the kill may have come between the checkpoint and its history
            save_history(self.run_dir, self.history)

    def _batches(self) -> Iterator[Batch]:
        loader = self.accelerator.skip_first_batches(self.loader, self.batch) if self.batch else self.loader
        loader.set_epoch(self.epoch)
        yield from loader

    def _seed_step(self) -> None:
        """Dropout as a function of seed, batch and process, whatever was drawn before."""
        number = self.epoch * len(self.loader) + self.batch
        seed = (self.config.train.seed * 1_000_003 + number) * self.accelerator.num_processes
        torch.manual_seed(seed + self.accelerator.process_index)

    def _after_step(self, bar: tqdm) -> None:
        if not self.accelerator.optimizer_step_was_skipped:  # fp16 skips a step whose gradients overflow
            self.scheduler.step()
            if self.average is not None:
                self.average.update()
        self.step += 1
        save_every = self.config.train.save_every
        saving = bool(save_every) and self.step % save_every == 0 and self.batch < len(self.loader)
        if saving or self.step % 10 == 0:  # reading a number off the GPU makes it wait
            self._check_finite()
            if not bar.disable:
                bar.set_postfix(loss=f"{(self.totals.sums['loss'] / self.totals.count).item():.4f}")
        if saving:
            self._check_weights()
            self.save()

    def _check_finite(self) -> None:
        if not all(math.isfinite(value.item()) for value in self.totals.sums.values()):
            raise TrainingError(
                f"epoch {self.epoch + 1}, step {self.step}: not finite: {self._terms()} (means so far); "
                f"the last checkpoint is from before. {MENDS}"
            )

    def _check_weights(self) -> None:
        """The last step before a save can break weights after all losses so far were finite."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"epoch {self.epoch + 1}, step {self.step}: not finite: the weights {name}, after "
                    f"losses that were ({self._terms()}); the last checkpoint is from before. {MENDS}"
                )

    def _terms(self) -> str:
        sums, count = self.totals.sums, self.totals.count.item()
        return ", ".join(f"{name} {value.item() / count:g}" for name, value in sums.items())


def _hits(outputs: Features, batch: Batch) -> Features:
    """IoU and accuracy of the training outputs, for the curves."""
    iou = paired_iou(to_xyxy(outputs["boxes_cxcywh"].detach().float()), to_xyxy(batch.target_boxes_cxcywh))
    return {"miou": iou.mean(), "acc@0.5": (iou >= 0.5).float().mean()}
