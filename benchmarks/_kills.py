"""Verbs killed at any moment: called again, each has to end with what it ends with when nobody kills it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._attacks import Attempt, Broken, checkpoint
from vg_utils.data.hub import coco_categories
from vg_utils.data.refer_files import read_refs
from vg_utils.pickles import read_pickle
from vg_utils.refscenes.scenes import write_scenes

ROOT = Path(__file__).parents[1]
CLOCKS = ("seconds", "pairs_per_second", "latency_ms")  # no two runs agree on them
SCENES = {"images": 20, "size": 96, "seed": 0}
FEATURES = " --data.features {out}/features"
TRAIN = "train --fast --data {scenes} --out {out} --train.save-every 2" + FEATURES
PHRASES = "prepare phrases --root {out} --images {scenes}/images --instances {coco}"


class Verb(NamedTuple):
    """A command to be killed.

    Attributes:
        words: of the command; the names in it are those of `world`.
        equal: which of the files that it writes have to be the same.
        again: more words for the second time, once the folder has settings.
        once: what is complete is refused the second time: it may have been changed since.
    """

    words: str
    equal: str = "**/*"
    again: str = ""
    once: bool = False


VERBS = {
    "prepare scenes": Verb("prepare scenes --root {out} --images 40 --size 64"),
    "prepare phrases": Verb(PHRASES),
    "prepare phrases --collages": Verb(PHRASES + " --collages 12"),
    "prepare refcocog": Verb("prepare refcocog --root {out} --source {hub} --base-url {url} --workers 2"),
    "prepare jsonl": Verb(
        "prepare jsonl --root {out} --from coco {coco} --images {scenes}/images", once=True
    ),
    "train": Verb(TRAIN, again=" --resume"),
    "train --cached": Verb(TRAIN + " --cached", again=" --resume"),
    "tune": Verb(
        "tune --fast --data {scenes} --study s --out {out} --trials 2 --no-report" + FEATURES,
        equal="journal.log",  # a trial that was killed keeps its number, and its folder
    ),
    "evaluate": Verb("evaluate {run} --data {scenes} --split val --json {out}/a.json --figures {out}/b"),
    "export": Verb("export {run} --torch {out}"),
    "run": Verb("run --fast --out {out} --data.root {scenes}" + FEATURES),
}


def kills(folder: Path, verb: str) -> Attempt:
    """A verb killed between its first third and its end, then called again."""
    words, equal, again, once = VERBS[verb]
    out = folder / "out"
    words = words.format(out=out, **world(folder))
    started = time.monotonic()
    run_verb(words)
    seconds, whole = time.monotonic() - started, result_of(out, equal)
    if not whole:
        raise Broken(f"{verb} wrote nothing that could be compared")

    def attempt(chance: Random) -> None:
        shutil.rmtree(out, ignore_errors=True)  # not there: the last one broke early
        process = start_verb(words)
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        process.send_signal(chance.choice((signal.SIGKILL, signal.SIGTERM)))
        process.communicate()
        if not once or result_of(out, equal) != whole:
            run_verb(words + (again if (out / "config.json").exists() else ""))
        found = result_of(out, equal)
        if other := sorted(name for name in whole | found if whole.get(name) != found.get(name)):
            raise Broken(f"without the kill there is another {other[0]}")
        if left := [path.name for path in out.rglob("*.part")]:
            raise Broken(f"a temporary file was left: {left[0]}")

    return attempt


def world(folder: Path) -> dict[str, str]:
    """What commands are about: RefScenes as such, as COCO's boxes, as the hub has RefCOCOg; a checkpoint."""
    scenes = write_scenes(folder / "scenes", **SCENES, device="cpu", progress=False)
    instances = json.loads((scenes / "annotations" / "instances.json").read_bytes())
    coco, hub = folder / "coco.json", folder / "hub"
    coco.write_text(json.dumps(instances | {"categories": coco_categories()}))
    _write_parquet(hub, instances, read_refs(scenes / "annotations" / "refs(umd).p"))
    handler = partial(_Files, directory=str(scenes / "images"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    places = {"scenes": scenes, "coco": coco, "hub": hub, "run": checkpoint(folder), "url": url}
    return {name: str(place) for name, place in places.items()}


def _write_parquet(folder: Path, instances: dict, refs: list[dict]) -> None:
    """References as the hub's rows, of the columns that are read."""
    folder.mkdir()
    annotations = {a["id"]: a for a in instances["annotations"]}
    images = {i["id"]: i for i in instances["images"]}
    rows = []
    for ref in refs:
        x, y, width, height = annotations[ref["ann_id"]]["bbox"]
        sentences = [{k: v for k, v in s.items() if k != "family"} for s in ref["sentences"]]
        own = {
            "raw_anns": json.dumps(annotations[ref["ann_id"]]),
            "raw_image_info": json.dumps(images[ref["image_id"]]),
            "bbox": [float(x), float(y), float(x + width), float(y + height)],
        }
        rows.append(ref | own | {"sentences": sentences})
    for split in ("train", "val", "test"):
        table = pa.Table.from_pylist([row for row in rows if row["split"] == split])
        pq.write_table(table, folder / f"{split}.parquet")


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def start_verb(words: str) -> subprocess.Popen:
    """A verb of the command line in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command, pipe = [sys.executable, "-m", "vg_utils", *words.split()], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_verb(words: str) -> None:
    """The same, to its end, which has to be good."""
    process = start_verb(words)
    _, said = process.communicate()
    if process.returncode:
        raise Broken(f"it did not go on: {said.strip()[-200:]}")


def result_of(folder: Path, equal: str) -> dict[str, Any]:
    """What files hold that has to be the same: to the bit, or but for what clocks said."""
    files = sorted(path for path in folder.glob(equal) if path.suffix in READ)
    return {str(path.relative_to(folder)): READ[path.suffix](path) for path in files}


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(inner) for key, inner in value.items() if key not in CLOCKS}
    return list(map(_without_clocks, value)) if isinstance(value, list) else value


def _trials(journal: Path) -> list[tuple]:
    """What a study tried and found, however often it had to."""
    from vg_utils.tuning.storage import Storage, is_finished

    storage = Storage(str(journal))
    trials = storage.optuna.get_all_trials(storage.optuna.get_all_studies()[0]._study_id)
    storage.close()
    return [(trial.params, trial.values, trial.state) for trial in trials if is_finished(trial)]


READ: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".jpg", ".p", ".safetensors", ".pt2"), Path.read_bytes),
    ".json": lambda path: _without_clocks(json.loads(path.read_bytes())),
    ".jsonl": lambda path: [_without_clocks(json.loads(line)) for line in path.open("rb")],
    ".pkl": lambda path: _without_clocks(read_pickle(path)),
    ".log": _trials,
}
