"""The command line. Each verb is a few lines around the function that does the work.

Exit status: 0 done; 2 wrong usage or bad input, with one line on stderr; 1 a real failure, with a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from vg_utils import __version__
from vg_utils.config import Config, ConfigError, Log, nearest, set_fields
from vg_utils.preparing import add_flags, prepare
from vg_utils.presets import PRESETS, preset, random_init, with_fast
from vg_utils.settings import HelpAll, help_text, parse_settings

OWN_SETTINGS = "a checkpoint brings its own settings"
REPOSITORY = Path(__file__).parent.parent  # `benchmarks` lies beside `vg_utils`
SHARED_FLAGS: dict[str, dict[str, Any]] = {  # of several verbs
    "--preset": {"default": "scenes", "help": f"one of {', '.join(PRESETS)} (default: scenes)"},
    "--model": {"default": "clip-hrnet", "help": "which of those below (default: clip-hrnet)"},
    "--data": {"help": "data set (default: the preset's)"},
    "--checkpoint": {"help": "run directory or shipped one (default: photos/dense-grounder)"},
    "--device": {"help": "cpu, cuda, cuda:1, mps (default: the best there is)"},
    "--random-init": {"action": "store_true", "help": "backbones from nothing, trained in full"},
    "--fast": {"action": "store_true", "help": "a budget of seconds, for a first look"},
}
GOES_ON = dict.fromkeys(("run", "prepare", "tune"), "; the same command goes on")
GOES_ON["train"] = "; with --resume it goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parser = _parser()
    options, settings = parser.parse_known_args(arguments)
    if settings and not getattr(options, "takes_settings", False):
        parser.error(f"{options.verb}: unknown argument {settings[0]}")
    options.settings = settings
    try:
        options.do(options)
    except KeyboardInterrupt:
        print(f"stopped{GOES_ON.get(options.verb, '')}", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, ConfigError | _UsageError) and not isinstance(error, _bad_input()):
            raise
        print(f"vg_utils {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _bad_input() -> tuple[type[Exception], ...]:
    """Errors whose message is all that a person needs. Imported late: some modules import torch."""
    from vg_utils.data.download import DownloadError
    from vg_utils.data.examples import DataError
    from vg_utils.models.backbones import WeightsError
    from vg_utils.models.checkpoints import CheckpointError

    return DataError, CheckpointError, WeightsError, DownloadError, OSError  # full disks, folders for files


class _UsageError(ValueError):
    """Arguments that do not go together."""


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, without the usage above them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _run(options: argparse.Namespace) -> None:
    config = _config(options, "clip-hrnet")  # before what takes long to import
    from vg_utils.pipeline import run

    usual = f"runs/{config.preset}-fast" if options.fast else f"runs/{config.preset}"
    run(config, Path(options.out or usual), fast=options.fast)


def _train(options: argparse.Namespace) -> None:
    config = _config(options, options.model)
    if options.init:
        config = set_fields(config, train__init=options.init)
    if options.log:
        config = set_fields(config, train__log=options.log)
    from vg_utils.training.engine import fit

    fit(config, options.out, resume=options.resume, closing=True)


def _evaluate(options: argparse.Namespace) -> None:
    config = _detector_config(options)  # before what takes long to import
    from vg_utils.pipeline import evaluate_checkpoint

    names = ("data", "split", "partition", "figures", "reviewed", "threshold")
    asked = {name: getattr(options, name) for name in names}
    evaluate_checkpoint(options.checkpoint, config=config, json_path=options.json, **asked)


def _detector_config(options: argparse.Namespace) -> Config | None:
    """What `evaluate detector-clip` is to be; None for a checkpoint, which brings its own settings."""
    if options.checkpoint != "detector-clip":
        if options.settings:
            raise _UsageError(f"unknown argument {options.settings[0]} ({OWN_SETTINGS})")
        if options.preset is not None:
            raise _UsageError(f"--preset {options.preset}: only for detector-clip ({OWN_SETTINGS})")
        return None
    options.preset = options.preset or "scenes"
    config = _config(options, "detector-clip")
    for word in options.settings:
        if word.startswith("--") and not word.startswith("--model."):
            raise _UsageError(f"{word}: detector-clip has no such setting, only those of --model")
    return config


def _ground(options: argparse.Namespace) -> None:
    from vg_utils.asking import ground_images, print_answers, split_words
    from vg_utils.models.checkpoints import DEFAULT_CHECKPOINT, origin

    images, phrases = split_words(options.words)
    checkpoint = options.checkpoint or DEFAULT_CHECKPOINT
    answering = origin(checkpoint)
    names = ("device", "top", "threshold", "out", "sheet", "heatmap")
    asked = {name: getattr(options, name) for name in names}
    print_answers(
        ground_images(images, phrases, checkpoint, **asked), answering, options.threshold, options.json
    )


def _export(options: argparse.Namespace) -> None:
    if not options.onnx and not options.torch:
        raise _UsageError("expected --onnx DIR or --torch DIR: as what, and where to?")
    from vg_utils.export import export

    export(options.checkpoint, options.onnx, options.torch)


def _benchmark(options: argparse.Namespace) -> None:
    from importlib import import_module

    sys.path.insert(0, str(REPOSITORY))
    try:
        from benchmarks import BENCHMARKS
    except ModuleNotFoundError:
        raise _UsageError("the benchmarks lie beside the package's source, not in an installation") from None
    if options.name is not None and options.name not in BENCHMARKS:
        raise _UsageError(f"unknown benchmark {options.name!r}{nearest(options.name, BENCHMARKS)}")
    if options.settings and options.name is None:
        names = ", ".join(BENCHMARKS)
        raise _UsageError(f"{options.settings[0]}: name the benchmark that it is for, one of {names}")
    for name in [options.name] if options.name else BENCHMARKS:
        print(f"== {name}", flush=True)
        import_module(f"benchmarks.{name}").main(options.settings)


def _tune(options: argparse.Namespace) -> None:
    config = _config(options, options.model)
    if options.seed is not None:
        config = set_fields(config, train__seed=options.seed)
    trials = options.trials if options.trials is not None else 4 if options.fast else 30
    if trials < 1:
        raise _UsageError(f"--trials: expected 1 or more, got {trials}")
    from vg_utils.tuning.search import tune

    tune(
        config,
        options.study,
        options.out or f"runs/tune/{options.study}",
        storage=options.storage,
        trials=trials,
        timeout=options.timeout,
        objective=options.objective,
        report=not options.no_report,
    )


def _demo(options: argparse.Namespace) -> None:
    from vg_utils.demo import run_demo

    run_demo(options.checkpoint, options.device, options.host, options.port, options.share)


def _config(options: argparse.Namespace, model: str) -> Config:
    """Preset, then the shorthands, then every `--any.config.field value`."""
    config = preset(options.preset, model)
    if getattr(options, "data", None):
        config = set_fields(config, data__root=str(options.data))
    if getattr(options, "random_init", False):
        config = random_init(config)
    if getattr(options, "cached", False):
        config = set_fields(config, train__cached=True)
    if getattr(options, "fast", False):
        config = with_fast(config)
    return parse_settings(config, options.settings)


def _parser() -> argparse.ArgumentParser:
    installed = Path(sys.argv[0]).stem == "vg-utils"
    parser = _Parser(
        prog="vg-utils" if installed else "python -m vg_utils",
        description="Visual grounding: an image and a phrase in, a box out.",
    )
    parser.add_argument("--version", action="version", version=f"vg_utils {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, do, text: str, settings: bool = False, note: str = "") -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=f"{text}. {note}", allow_abbrev=False)
        added.set_defaults(do=do, takes_settings=settings)
        return added

    def with_settings(name: str, do, text: str) -> argparse.ArgumentParser:
        """A verb that reads a preset, of which every setting is a flag."""
        added = verb(name, do, text, settings=True)
        added.add_argument("--help-all", action=HelpAll, nargs=0, help="every setting of --preset, --model")
        added.epilog, added.formatter_class = help_text(), argparse.RawDescriptionHelpFormatter
        return added

    def shared(command: argparse.ArgumentParser, *flags: str) -> None:
        for flag in flags:
            command.add_argument(flag, **SHARED_FLAGS[flag])

    command = with_settings("run", _run, "The main job: data, train, evaluate, figures")
    shared(command, "--preset")
    command.add_argument("--out", help="run directory (default: runs/PRESET, or runs/PRESET-fast)")
    shared(command, "--random-init", "--fast")

    command = verb("prepare", prepare, "Make, convert or download a data set")
    add_flags(command)

    command = with_settings("train", _train, "Train a model")
    shared(command, "--preset", "--model")
    command.add_argument("--out", required=True, help="run directory")
    shared(command, "--data")
    init = "start from the weights of this run or shipped checkpoint, as far as they fit"
    command.add_argument("--init", metavar="CHECKPOINT", help=init)
    command.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    command.add_argument("--cached", action="store_true", help="train the head on cached features")
    log = "keep a log of the epochs for it, too (run and tune: --train.log)"
    command.add_argument("--log", choices=get_args(Log), help=log)
    shared(command, "--random-init", "--fast")

    note = f"Settings of the model are flags of detector-clip alone: {OWN_SETTINGS}."
    command = verb("evaluate", _evaluate, "Score a checkpoint on a split", settings=True, note=note)
    command.add_argument("checkpoint", help="run directory, shipped one, constant-box or detector-clip")
    command.add_argument("--data", required=True, help="data set")
    command.add_argument("--split", required=True, help="val, test, ...; choose on val, report on test")
    command.add_argument("--partition", help="umd, google or unc (default: the one there is, or umd)")
    command.add_argument("--json", help="write the results to this file")
    command.add_argument("--figures", help="write figures to this folder")
    command.add_argument("--reviewed", metavar="FILE", help="of Ref-L4: score without what it flags, too")
    share = "presence below which a phrase is said to fit nothing, for N-acc and T-acc (default: 0.5)"
    command.add_argument("--threshold", type=float, metavar="SHARE", help=share)
    command.add_argument("--preset", help=f"of detector-clip: one of {', '.join(PRESETS)} (default: scenes)")

    command = verb("ground", _ground, "Find phrases in images")
    words = "files, folders or patterns ('photos/*.jpg') of images, then phrases to find in each"
    command.add_argument("words", nargs="+", metavar="WORD", help=words)
    command.usage = "%(prog)s IMAGE [IMAGE ...] PHRASE [PHRASE ...] [options]"
    shared(command, "--checkpoint", "--device")
    command.add_argument("--top", type=int, default=1, metavar="K", help="boxes a phrase (default: 1)")
    command.add_argument("--out", help="draw the boxes on the image, into this file (several: this folder)")
    command.add_argument("--sheet", help="draw a panel for each phrase, likewise")
    command.add_argument("--heatmap", help="draw where the model sees each phrase, likewise")
    command.add_argument("--json", action="store_true", help="print JSON")
    threshold = "say 'not found' of a phrase that the model holds less likely than this to fit anything"
    command.add_argument("--threshold", type=float, metavar="SHARE", help=threshold)

    command = verb("export", _export, "Write a checkpoint for onnxruntime or torch.export")
    command.add_argument("checkpoint", help="run directory or shipped one")
    command.add_argument("--onnx", metavar="DIR", help="write image.onnx, phrases.onnx, model.json here")
    command.add_argument("--torch", metavar="DIR", help="write image.pt2 and phrases.pt2 here")

    command = with_settings("tune", _tune, "Search settings with Optuna")
    shared(command, "--preset", "--model")
    command.add_argument("--study", required=True, help="name; workers with the same storage join by it")
    storage = "file, sqlite:///FILE, postgresql://... (default: OUT/journal.log)"
    command.add_argument("--storage", help=storage)
    command.add_argument("--trials", type=int, help="finished ones to reach (default: 30; 4 with --fast)")
    command.add_argument("--timeout", type=float, help="seconds after which no more trials start")
    command.add_argument("--objective", help="second one beside val mIoU: latency or parameters")
    command.add_argument("--out", help="folder of the study (default: runs/tune/STUDY)")
    shared(command, "--data")
    command.add_argument("--seed", type=int, help="of the search and its trials (default: --train.seed)")
    command.add_argument("--cached", action="store_true", help="train the heads on cached features")
    command.add_argument("--no-report", action="store_true", help="search only; retrain and test nothing")
    shared(command, "--fast")

    command = verb("demo", _demo, "A page to try a model on")
    shared(command, "--checkpoint", "--device")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=7860, help="0: any that is free (default: 7860)")
    command.add_argument("--share", action="store_true", help="a public address, through Gradio's server")

    command = verb("benchmark", _benchmark, "Measure speed, as ratios against a baseline", settings=True)
    names = "decoding, grouping, caching, grounding, answering, training, proposals, reading (default: all)"
    command.add_argument("name", nargs="?", help=names)  # and settings that it understands itself
    return parser
