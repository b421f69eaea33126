"""RefScenes: the data set that needs no download, drawn on the spot, in RefCOCOg's own files.

Solids in eight colours on textured ground, with expressions that are needed because things look alike. Splits
are train, val, test and `novel`, whose referred objects are of pairs of colour and shape that no other split
shows. A scene depends on (seed, split, index) alone: not on the batch, nor on the size of the image.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from vg_utils.data.examples import DataError
from vg_utils.data.markers import REFSCENES, check_begun, read_marker, write_marker
from vg_utils.data.records import WHOLE, Kind, check
from vg_utils.data.refer_files import picture_name, write_refer
from vg_utils.files import check_room, write_atomically
from vg_utils.processes import end_with_parent
from vg_utils.refscenes.grammar import ATTRIBUTES, Facts
from vg_utils.refscenes.near_misses import write_absent
from vg_utils.refscenes.raycast import stack_scenes
from vg_utils.refscenes.render import look, render, visible_boxes
from vg_utils.refscenes.sampling import plan_scenes
from vg_utils.refscenes.scene_records import Records

VERSION = 2  # raise it whenever the same seed gives other images or sentences
SPLITS = ("train", "val", "test", "novel")
COUNTS = Kind(
    "whole numbers by split", lambda value: isinstance(value, dict) and all(map(WHOLE.fits, value.values()))
)
NUMBERS = {"images": WHOLE, "size": WHOLE, "seed": WHOLE, "counts": COUNTS}  # of a marker
JPEG_QUALITY = 92
LEAST_BYTES = 30  # of an image, for each pixel of its side: of 64 pixels 2.2 KB, of 512 31 KB
BATCH_ON_CPU, BATCH_ON_GPU = 8, 128  # scenes that are drawn together
FEW_ON_CPU = 400  # fewer images are drawn before the processes have started
FEW_PICTURES = 5_000  # are drawn before processes have started
MOST_PROCESSES = 14  # beyond, they wait for the GPU
GPU_BYTES = 1e9, 400  # that a process takes: for itself, and for each pixel of the images of a batch


def make_scenes(
    split: str,
    start: int,
    count: int,
    size: int = 224,
    seed: int = 0,
    device: str | None = None,
    draw: bool = True,
) -> tuple[Tensor | None, list[dict]]:
    """Scenes of one split, in memory.

    Args:
        split: one of `SPLITS`.
        start: index of the first scene in its split.
        count: how many scenes.
        size: side of the square images in pixels.
        seed: the same seed gives the same scenes, whatever `count` and `size` are.
        device: where to draw; None takes a GPU if there is one. Devices may differ in rounding.
        draw: False skips the drawing, not the boxes.

    Returns:
        images: uint8 (count, 3, size, size) RGB on `device`, None without `draw`.
        scenes: one dict each, with `split`, `index`, `facts`, `objects` (dicts of `shape`, `color`,
            `material`, `size`, `box_xywh` and `area`, of the visible pixels), `refs` (dicts of
            `object`, an index, and `sentences`, dicts of `text`, `family` and `program`) and `absent` (dicts
            of `text`, `family`, `program` and `of`, the index of the solid that it was true of until one
            thing was changed): what fits nothing in the image.

    Raises:
        ValueError: an unknown split, a negative start, or a size below 32.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of RefScenes ({', '.join(SPLITS)}), got {split!r}")
    if start < 0 or count < 1 or size < 32:
        raise ValueError(f"expected start >= 0, count >= 1, size >= 32, got {start}, {count}, {size}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seeds = f"RefScenes {VERSION}/{seed}/{split}"
    plans = plan_scenes(seeds, range(start, start + count), split, device)
    batch = stack_scenes([plan.scene for plan in plans], device)
    images, ids = render(batch, size) if draw else (None, look(batch, size)[0])
    boxes, pixels = visible_boxes(batch, ids)
    boxes, pixels = iter(boxes.tolist()), iter(pixels.tolist())
    scenes = []
    for index, plan in enumerate(plans, start):
        objects = []
        for solid in plan.scene.solids:
            left, top, right, bottom = next(boxes)
            box = [float(left), float(top), float(right - left), float(bottom - top)]
            looks = {name: getattr(solid, name) for name in ATTRIBUTES}
            objects.append({**looks, "box_xywh": box, "area": float(next(pixels))})
        refs = [
            {"object": i, "sentences": [{"text": t, "family": f, "program": p} for f, p, t in sentences]}
            for i, sentences in plan.refs
        ]
        scenes.append(
            {
                "split": split,
                "index": index,
                "facts": plan.facts,
                "objects": objects,
                "refs": refs,
                "absent": absent_phrases(plan.facts, f"{seeds}/{index}/absent", split),
            }
        )
    return images, scenes


def absent_phrases(facts: Facts, seed: str, split: str) -> list[dict]:
    """Phrases that fit nothing in the image, drawn with a seed of their own, so that refs do not change."""
    random = Random(seed)
    count = 2 if split == "train" else random.choice((1, 2))
    phrases = write_absent(facts, random, count, split == "novel")
    return [{"text": t, "family": f, "program": p, "of": i} for i, f, p, t in phrases]


def write_scenes(
    root: Path | str,
    images: int,
    size: int = 224,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    counts: dict[str, int] | None = None,
    processes: int | None = None,
) -> Path:
    """Write RefScenes in RefCOCOg's layout: `images` images of train, a fifth each of the others.

    A run that was cut short goes on where it stopped when called again; a complete folder is left as it is.

    Args:
        root: folder for `annotations/` and `images/`.
        images: number of training images.
        size: side of the square images in pixels.
        seed: of everything.
        device: where to draw; None takes a GPU if there is one.
        progress: show a bar.
        counts: images of other splits, such as `{"val": 2000, "test": 4000}`, where a fifth is not wanted.
        processes: how many draw at once, beside this one; 0 draws in threads of this one. None takes several
            for a large set on a GPU, where the planning, in Python, is what takes time. The files are the
            same. New processes import the script that calls this: it needs `if __name__ == "__main__":`.

    Returns:
        `root`.

    Raises:
        DataError: bad numbers, or `root` holds other data (the message says which, and what to do).
        RuntimeError: a process died.
    """
    root = Path(root)
    if images < 1 or size < 32:
        raise DataError(f"expected images >= 1 and size >= 32, got images={images}, size={size}")
    fifths = {split: images if split == "train" else max(1, images // 5) for split in SPLITS}
    counts = fifths | (counts or {})
    if counts.keys() != fifths.keys() or counts["train"] != images or min(counts.values()) < 1:
        others = ", ".join(SPLITS[1:])
        raise DataError(f"expected counts of {others}, each 1 or more, besides images={images}, got {counts}")
    made_with = {"images": images, "size": size, "seed": seed, "version": VERSION}
    made_with |= {"counts": counts} if counts != fifths else {}
    check_begun(root, REFSCENES, made_with)
    if not (root / REFSCENES).exists():
        check_room(root, LEAST_BYTES * size * sum(counts.values()))
    if (root / "annotations" / "instances.json").is_file():  # written last
        return root
    for folder in (root, root / "annotations", root / "images"):
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".*.part"):  # of a run that was killed while it wrote
            left_over.unlink()
    write_marker(root / REFSCENES, made_with)

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    info = {
        "description": "RefScenes",
        "lists_all_objects": True,
        "generator": "vg_utils.data.scenes",
        **made_with,
    }
    records = Records(info, size)
    total = sum(counts.values())
    if processes is None:
        processes = useful_processes(device, total, size)
    with tqdm(total=total, desc="RefScenes", unit="img", disable=not progress) as bar:
        for first_id, scenes in draw_all(root / "images", counts, size, seed, device, processes):
            records.add(first_id, scenes)
            bar.update(len(scenes))
    write_refer(root, "umd", records.instances, records.refs, records.absent())
    return root


def numbers_of(root: Path) -> dict | None:
    """What `write_scenes` has to be given to complete the RefScenes in a folder; None if there are none.

    Raises:
        DataError: a marker that is damaged.
    """
    found = read_marker(Path(root) / REFSCENES)
    if found is None:
        return None
    check(found, {}, str(Path(root) / REFSCENES), NUMBERS)
    return {name: found[name] for name in NUMBERS if name in found}


def processes_of_a_program(pictures: int) -> int | None:
    """What a program that may start processes gives `write_scenes`: on a CPU, one a core for a large set.

    Half of the time that an image takes there is planning, in Python, where threads wait for each other.
    """
    if torch.cuda.is_available() or pictures < FEW_ON_CPU:
        return None
    return os.cpu_count()


def useful_processes(device: str, pictures: int, size: int) -> int:
    """How many processes draw that many images soonest; 0 where threads do, or starting takes longer.

    On a GPU planning in Python holds the drawing up. An H200 with 16 cores draws 160 scenes of 224 pixels a
    second in threads, 580 in 8 processes and 700 in 14, and then it is the GPU that is busy; each further
    GPU keeps as many busy.
    """
    cores = os.cpu_count() or 1
    if torch.device(device).type != "cuda" or cores <= 4 or pictures < FEW_PICTURES:
        return 0
    process, pixel = GPU_BYTES
    memory = torch.cuda.get_device_properties(device).total_memory
    room = int(0.5 * memory / (process + pixel * BATCH_ON_GPU * size**2))
    processes = min(cores - 2, len(gpus_of(device)) * min(MOST_PROCESSES, room))
    return processes if processes > 1 else 0


def gpus_of(device: str) -> list[str]:
    """The GPUs that share the drawing: all of them where "cuda" leaves it open which."""
    count = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(count)] if device == "cuda" and count else [device]


def _begin_drawing(device: str, number: Synchronized) -> None:
    """In each new process: one thread, and the GPUs in turn."""
    end_with_parent()
    torch.set_num_threads(1)
    gpus = gpus_of(device)
    if torch.device(device).type == "cuda":
        with number.get_lock():
            torch.cuda.set_device(gpus[number.value % len(gpus)])
            number.value += 1


def draw_all(
    folder: Path, counts: dict[str, int], size: int, seed: int, device: str, processes: int = 0
) -> Iterator[tuple[int, list[dict]]]:
    """Write the missing images; yield the first image's id and the scenes of each batch, in order."""
    on_cpu = torch.device(device).type == "cpu"
    step = BATCH_ON_CPU if on_cpu else BATCH_ON_GPU
    jobs, first_id = [], 1
    for split, count in counts.items():
        jobs += [(split, i, min(step, count - i), first_id + i) for i in range(0, count, step)]
        first_id += count

    threads = torch.get_num_threads()
    if processes:
        spawn = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
        pool = ProcessPoolExecutor(processes, spawn, _begin_drawing, (device, spawn.Value("i", 0)))
    else:
        pool = ThreadPoolExecutor(threads if on_cpu else min(4, os.cpu_count() or 1))
    try:
        yield from pool.map(partial(draw_batch, folder, size, seed, device), jobs)
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {processes} processes that draw RefScenes died: it had too little memory, or the script "
            'that called write_scenes lacks its `if __name__ == "__main__":`; processes=0 needs neither'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def draw_batch(
    folder: Path, size: int, seed: int, device: str, job: tuple[str, int, int, int]
) -> tuple[int, list[dict]]:
    """Write those images of one batch that are missing; its first image's id and its scenes.

    Args:
        folder, size, seed, device: see `write_scenes`; the folder is that of the images.
        job: split, index of the first scene in it, number of scenes, id of the first image.
    """
    if torch.device(device).type == "cpu":
        # Of this thread only: small tensors gain more from images drawn side by side.
        torch.set_num_threads(1)
    split, start, count, image_id = job
    paths = [folder / picture_name(image_id + i) for i in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    pictures, scenes = make_scenes(split, start, count, size, seed, device, draw=bool(missing))
    pixels = pictures.permute(0, 2, 3, 1).cpu().numpy() if missing else None
    for i in missing:
        file = io.BytesIO()
        Image.fromarray(pixels[i]).save(file, "JPEG", quality=JPEG_QUALITY)
        write_atomically(paths[i], file.getvalue())
    return image_id, scenes
