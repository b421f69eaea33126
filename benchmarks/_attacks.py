"""What `benchmarks.campaign` tries: each function prepares a folder and returns one attempt, given chance."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vg_utils.config import ConfigError, set_fields
from vg_utils.data import DataError, GroundingExample, Report, load_examples, load_image
from vg_utils.data.fetch import Fetcher, FetchError, Picture
from vg_utils.data.jsonl import write_jsonl
from vg_utils.models import build_model
from vg_utils.models.backbones import WeightsError
from vg_utils.models.checkpoints import CheckpointError, save_checkpoint
from vg_utils.models.weight_files import read_weights
from vg_utils.pickles import read_pickle
from vg_utils.predictor import Grounder
from vg_utils.presets import preset
from vg_utils.refscenes.scenes import write_scenes

Attempt = Callable[[Random], None]
SIDE = 64  # pixels of the images
JUNK = (None, True, -1, 0, 2.5, 10**400, math.nan, math.inf, "", "x", "9" * 5000, [], {}, [[1]], {"a": []})


class Broken(Exception):
    """What must not be: the message says what."""


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.trace,)


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that say what is wrong with a file in a line."""
    return ConfigError, DataError, CheckpointError, WeightsError, FetchError


# What is changed


def changed_bytes(content: bytes, chance: Random) -> bytes:
    """Cut, or with some bytes changed, left out, doubled."""
    content = bytearray(content)
    if chance.random() < 0.3:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(chance.choice((1, 1, 3, 20))):
        at, many = chance.randrange(len(content)), chance.randrange(1, 9)
        content[at : at + many] = chance.choice(
            (b"", content[at : at + many] * 2, chance.randbytes(many), b"\0" * many, b"\xff" * many)
        )
    return bytes(content)


def changed_value(value: Any, chance: Random) -> Any:
    """A nest of dicts and lists with one place changed: other value, missing, doubled, deeply nested."""
    value = json.loads(json.dumps(value))
    inner, path = value, []
    while isinstance(inner, dict | list) and inner and (not path or chance.random() < 0.85):
        key = chance.choice(list(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
        path.append((inner, key))
        inner = inner[key]
    if not path:
        return chance.choice(JUNK)
    holder, key = path[-1]
    how = chance.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif how == 2:
        for _ in range(chance.choice((3, 300))):
            inner = [inner]
        holder[key] = inner
    else:
        holder[key] = chance.choice(JUNK)
    return value


# The kinds


def annotations(folder: Path) -> Attempt:
    """RefCOCOg's files and JSON lines with a place changed, read strict or lenient."""
    root = write_scenes(folder / "scenes", 6, SIDE, device="cpu", progress=False)
    write_jsonl(root / "own.jsonl", load_examples(root, "train"))
    files = {path.name: path.read_bytes() for path in (root / "annotations").iterdir()}
    lines = [json.loads(line) for line in (root / "own.jsonl").read_text().splitlines()]

    def attempt(chance: Random) -> None:
        name, place = chance.choice([*files, "own.jsonl"]), root / "annotations"
        if name == "own.jsonl":
            content = "\n".join(json.dumps(line) for line in changed_value(lines, chance) or [])
            content = content.encode()
        elif chance.random() < 0.4:
            content = changed_bytes(files[name], chance)
        else:
            load, dump = (json.loads, _json) if name.endswith(".json") else (pickle.loads, pickle.dumps)
            content = dump(changed_value(load(files[name]), chance))
        path = root / name if name == "own.jsonl" else place / name
        path.write_bytes(content)
        data = path if name == "own.jsonl" else root
        try:
            check_examples(load_examples(data, "train", strict=chance.random() < 0.5, report=Report()))
        finally:
            if name != "own.jsonl":
                path.write_bytes(files[name])

    return attempt


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def check_examples(examples: list[GroundingExample]) -> None:
    """Raise Broken for what should not have been accepted."""
    for example in examples:
        width, height = example.size_wh
        phrases = [*example.expressions, *example.absent]
        if not all(type(p.text) is str and p.text and type(p.family) is str for p in phrases):
            raise Broken("accepted what is no text")
        if not all(type(e.category) is str for e in example.expressions):
            raise Broken("accepted a category that is no text")
        for x1, y1, x2, y2 in (e.box_xyxy for e in example.expressions):
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise Broken("accepted a box that is none")


def images(folder: Path) -> Attempt:
    """Images of eight kinds with bytes changed."""
    original = Image.effect_noise((40, 30), 60).convert("RGB")
    whole = {}
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga"):
        buffer = io.BytesIO()
        original.save(buffer, kind)
        whole[kind] = buffer.getvalue()

    def attempt(chance: Random) -> None:
        kind = chance.choice(list(whole))
        path = folder / f"image.{kind}"
        path.write_bytes(changed_bytes(whole[kind], chance))
        if load_image(path).mode != "RGB":
            raise Broken("an image that is not RGB")

    return attempt


def checkpoint(folder: Path) -> Path:
    """A small run directory, untrained."""
    config = set_fields(preset("scenes", "clip-hrnet"), model__image_size=SIDE)
    torch.manual_seed(0)
    model = build_model("clip-hrnet", config.model)
    save_checkpoint(folder / "run" / "checkpoint", model, {"epoch": 0}, best=True)
    config.save(folder / "run" / "config.json")
    return folder / "run"


def ask(run_dir: Path) -> None:
    """What the checkpoint answers about a grey image has to be finite, and JSON."""
    grounder = Grounder.load(run_dir).set_image(Image.new("RGB", (40, 30), "gray"))
    for prediction in grounder.ground(["the red cube"]):
        json.dumps(prediction.as_dict(), allow_nan=False)


def configs(folder: Path) -> Attempt:
    """The settings of a run with a place changed."""
    run_dir = checkpoint(folder)
    (run_dir / "outside.pt").symlink_to("/dev/zero")
    path, settings = run_dir / "config.json", json.loads((run_dir / "config.json").read_text())

    def attempt(chance: Random) -> None:
        changed = changed_value(settings, chance)
        if chance.random() < 0.2:
            changed = json.loads(json.dumps(settings))
            part = chance.choice(("clip", "hrnet"))
            changed["model"][part]["weights"] = chance.choice(
                ("/etc/passwd", "../config.json", "outside.pt", "/dev/zero", "~nobody-here/x", "a" * 5000)
            )
        path.write_bytes(_json(changed))
        ask(run_dir)

    return attempt


def weights(folder: Path) -> Attempt:
    """A checkpoint's and others' weights with bytes or values changed, or with code in them."""
    run_dir, trace = checkpoint(folder), folder / "trace"
    path = run_dir / "checkpoint" / "model.safetensors"
    content, tensors = path.read_bytes(), load_file(path)

    def attempt(chance: Random) -> None:
        how = chance.randrange(4)
        if how == 0:  # the header, where names, types, shapes and places are
            length = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(changed_bytes(content[:length], chance) + content[length:])
        elif how == 1:
            name = chance.choice(list(tensors))
            value = tensors[name].clone().float()
            value.flatten()[chance.randrange(value.numel())] = chance.choice((math.nan, math.inf, -math.inf))
            save_file(tensors | {name: value}, path)
        else:
            torch.save({"a": torch.ones(3), "b": Bomb(trace)} if how == 2 else tensors, folder / "a.pt")
            other = (folder / "a.pt").read_bytes()
            (folder / "a.pt").write_bytes(other if how == 2 else changed_bytes(other, chance))
            try:
                read_weights(folder / "a.pt")
            except ValueError as error:
                raise CheckpointError(str(error)) from None  # as every caller does
            finally:
                if trace.exists():
                    raise Broken("code ran")
            return
        ask(run_dir)
        if how == 1:
            raise Broken("accepted a weight that is not finite")

    return attempt


def pickles(folder: Path) -> Attempt:
    """Pickles of results with bytes changed, or with code in them."""
    plain = pickle.dumps({"rows": {"iou": [0.5] * 9, "text": ["a"] * 9}, "n": 3}, protocol=4)
    hostile = pickle.dumps({"rows": [Bomb(folder / "trace")]}, protocol=4)

    def attempt(chance: Random) -> None:
        (folder / "a.pkl").write_bytes(changed_bytes(chance.choice((plain, hostile)), chance))
        try:
            read_pickle(folder / "a.pkl")
        finally:
            if (folder / "trace").exists():
                raise Broken("code ran")

    return attempt


class _Answers(BaseHTTPRequestHandler):
    answer = b""

    def do_GET(self) -> None:
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def answers(folder: Path) -> Attempt:
    """A server's answers with bytes changed; on the loopback."""
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(buffer, "jpeg")
    body = buffer.getvalue()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fetcher = Fetcher(f"http://127.0.0.1:{server.server_port}", retries=1, timeout_s=1.0, backoff_s=0.01)
    redirects = [
        f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n\r\n" for to in ("file:///etc/passwd", "//[", "x:y")
    ]

    def attempt(chance: Random) -> None:
        if chance.random() < 0.2:
            _Answers.answer = chance.choice(redirects).encode()
        elif chance.random() < 0.5:
            _Answers.answer = changed_bytes(head, chance) + body
        else:
            _Answers.answer = head + changed_bytes(body, chance)
        picture = Picture("a.jpg", (40, 30))
        fetcher.fetch(picture, folder)
        if load_image(folder / "a.jpg").size != picture.size_wh:
            raise Broken("kept another image")

    return attempt


def journals(folder: Path) -> Attempt:
    """A study's journal with bytes or lines changed."""
    import optuna

    from vg_utils.tuning.storage import Storage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = Storage(str(folder / "whole.log"))
    study = optuna.create_study(storage=storage.optuna, study_name="s", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    storage.close()
    content = (folder / "whole.log").read_bytes()

    def attempt(chance: Random) -> None:
        changed = content
        if chance.random() < 0.5:
            lines = content.splitlines(keepends=True)
            del lines[chance.randrange(len(lines))]
            changed = b"".join(lines)
        path = folder / "changed.log"
        path.write_bytes(changed_bytes(changed, chance))
        storage = Storage(str(path))
        storage.close()

    return attempt
