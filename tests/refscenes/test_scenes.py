"""RefScenes as a data set: what it promises, and its files."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import vg_utils.refscenes.scenes as scenes_module
from experiments.refscenes_statistics import auroc, describe
from vg_utils.data import load_examples
from vg_utils.data.examples import DataError
from vg_utils.data.refer_files import read_absent, read_instances, read_refs, write_refer
from vg_utils.refscenes.expressions import FAMILIES
from vg_utils.refscenes.sampling import HELD_OUT
from vg_utils.refscenes.scene_records import Records
from vg_utils.refscenes.scenes import SPLITS, make_scenes, write_scenes

SMALL = {"images": 11, "size": 48, "seed": 3, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", **SMALL)


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """Of scenes that are not drawn."""
    records, first_id = Records({"size": 96}, 96), 1
    for split, count in {"train": 260, "val": 20, "test": 90, "novel": 20}.items():
        records.add(first_id, make_scenes(split, 0, count, 96, seed=5, device="cpu", draw=False)[1])
        first_id += count
    folder = tmp_path_factory.mktemp("statistics")
    write_refer(folder, "umd", records.instances, records.refs, records.absent())
    return describe(folder), records


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_scenes_in_any_batch():
    images, scenes = make_scenes("train", 4, 5, size=64, seed=1, device="cpu")
    assert images.shape == (5, 3, 64, 64)
    assert images.dtype == torch.uint8
    for number in range(5):
        image, scene = make_scenes("train", 4 + number, 1, size=64, seed=1, device="cpu")
        assert torch.equal(image[0], images[number])
        assert scene == scenes[number : number + 1]


def test_other_seeds_splits_and_sizes():
    base = make_scenes("train", 0, 2, size=64, device="cpu", draw=False)[1]
    for split, seed in (("train", 1), ("val", 0)):
        assert make_scenes(split, 0, 2, size=64, seed=seed, device="cpu", draw=False)[1] != base
    larger = make_scenes("train", 0, 2, size=128, device="cpu", draw=False)[1]
    assert [scene["refs"] for scene in larger] == [scene["refs"] for scene in base]


@pytest.mark.parametrize("arguments", [("trian", 0, 1), ("train", -1, 1), ("train", 0, 1, 16)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="expected"):
        make_scenes(*arguments, device="cpu")


def test_boxes(statistics):
    numbers, records = statistics
    smallest, median, largest = numbers["train"]["box_area"]
    assert 0.05 < median < 0.12
    assert smallest > 0.014
    assert largest < 0.37
    counts = [len(annotations) for annotations in by_image(records).values()]
    assert min(counts) >= 3
    assert max(counts) <= 8


def test_families_are_balanced(statistics):
    shares = statistics[0]["train"]["families"]
    assert set(shares) == set(FAMILIES)
    assert min(shares.values()) > 0.04
    assert max(shares.values()) < 0.25


def test_absent_phrases_are_counted(statistics):
    numbers = statistics[0]["train"]
    assert numbers["absent_per_image"] == 2
    assert set(numbers["absent_families"]) == set(FAMILIES)
    assert all(abs(numbers["families"][f] - s) < 0.08 for f, s in numbers["absent_families"].items())


def test_words_alone_do_not_tell_absent_phrases(statistics):
    assert 0.3 < statistics[0]["test"]["absent_told_by_words"] < 0.65  # 0.5 is chance; few phrases here


def test_the_area_under_the_curve():
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    assert auroc(scores, torch.tensor([False, False, True, True])) == 0.75
    assert auroc(torch.zeros(4), torch.tensor([False, True, True, False])) == 0.5


def by_image(records: Records) -> dict[int, list[dict]]:
    table: dict[int, list[dict]] = {}
    for annotation in records.instances["annotations"]:
        table.setdefault(annotation["image_id"], []).append(annotation)
    return table


def test_language_is_needed(statistics):
    numbers = statistics[0]["test"]
    assert numbers["constant_miou"] < 0.16
    assert numbers["largest_acc"] < 0.3
    assert numbers["random_acc"] < 0.3
    assert statistics[0]["train"]["same_shape"] >= 0.6
    assert 3.3 < numbers["expressions_per_image"] < 4.1
    assert 6.5 < statistics[0]["train"]["expressions_per_image"] < 7.8


def test_held_out_pairs(statistics):
    _, records = statistics
    names = {category["id"]: category["name"] for category in records.instances["categories"]}
    pairs = {a["id"]: (a["color"], names[a["category_id"]]) for a in records.instances["annotations"]}
    split_of = {ref["image_id"]: ref["split"] for ref in records.refs}
    for annotation in records.instances["annotations"]:
        if split_of[annotation["image_id"]] != "novel":
            assert pairs[annotation["id"]] not in HELD_OUT
    referred = {ref["ann_id"] for ref in records.refs if ref["split"] == "novel"}
    assert {pairs[i] for i in referred} <= HELD_OUT
    seen = {pairs[a["id"]] for a in records.instances["annotations"] if split_of[a["image_id"]] == "train"}
    assert {color for color, _ in HELD_OUT} <= {color for color, _ in seen}
    assert {shape for _, shape in HELD_OUT} <= {shape for _, shape in seen}


def test_layout(root):
    instances = read_instances(root / "annotations" / "instances.json")
    refs = read_refs(root / "annotations" / "refs(umd).p")
    assert {ref["split"] for ref in refs} == set(SPLITS)
    keys = {"ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids", "sentences"}
    assert all(set(ref) == keys for ref in refs)
    sentence_keys = {"tokens", "raw", "sent", "sent_id", "family"}
    assert all(set(sentence) == sentence_keys for ref in refs for sentence in ref["sentences"])
    assert [c["name"] for c in instances["categories"]] == ["sphere", "cube", "cylinder", "cone"]
    assert len(instances["images"]) == 11 + 3 * 2
    for kind in ("images", "annotations"):
        ids = [record["id"] for record in instances[kind]]
        assert len(ids) == len(set(ids))
    for picture in instances["images"]:
        with Image.open(root / "images" / picture["file_name"]) as opened:
            assert opened.size == (48, 48)


def test_absent_phrases_have_a_file_of_their_own(root):
    phrases = read_absent(root / "annotations" / "absent(umd).p")
    keys = {"image_id", "split", "sent_id", "sent", "raw", "tokens", "family"}
    assert all(set(phrase) == keys for phrase in phrases)
    refs = read_refs(root / "annotations" / "refs(umd).p")
    last = max(sent_id for ref in refs for sent_id in ref["sent_ids"])
    assert [phrase["sent_id"] for phrase in phrases] == list(range(last + 1, last + 1 + len(phrases)))
    split_of = {ref["image_id"]: ref["split"] for ref in refs}
    assert all(split_of[phrase["image_id"]] == phrase["split"] for phrase in phrases)


def test_train_speaks_of_more_solids(statistics):
    refs = statistics[1].refs
    per_picture = {}
    for split in ("train", "test"):
        of_split = [ref["image_id"] for ref in refs if ref["split"] == split]
        per_picture[split] = len(of_split) / len(set(of_split))
    assert 3.2 < per_picture["train"] < 3.8
    assert 1.6 < per_picture["test"] < 2.0


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_reader_works(root, split):
    examples = load_examples(root, split)
    assert len(examples) == (11 if split == "train" else 2)
    assert all(expression.family for example in examples for expression in example.expressions)
    for example in examples:
        assert len(example.absent) in ((2,) if split == "train" else (1, 2))
        assert all(phrase.text and phrase.family for phrase in example.absent)


def test_complete_folder_is_left_alone(root, monkeypatch):
    monkeypatch.setattr(scenes_module, "make_scenes", None)
    assert write_scenes(root, **SMALL) == root


def test_resumes_to_the_same_bytes(root, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(root, again)
    (again / "annotations" / "instances.json").unlink()
    for number in (2, 9, 13):
        (again / "images" / f"COCO_train2014_{number:012d}.jpg").unlink()
    (again / "images" / ".COCO_train2014_000000000002.jpg.77.part").write_bytes(b"half")
    write_scenes(again, **SMALL)
    assert files(again) == files(root)


def test_an_interrupted_run_leaves_whole_files_and_goes_on(root, tmp_path, monkeypatch):
    write, count = scenes_module.write_atomically, 0

    def failing(path, content):
        nonlocal count
        count += 1
        if count > 6:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(scenes_module, "write_atomically", failing)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "cut", **SMALL)
    left = files(tmp_path / "cut")
    assert "refscenes.json" in left
    assert not any(name.startswith("annotations") or name.endswith(".part") for name in left)
    assert left.items() <= files(root).items()
    monkeypatch.undo()
    write_scenes(tmp_path / "cut", **SMALL)
    assert files(tmp_path / "cut") == files(root)


@pytest.mark.parametrize("change", [{"images": 12}, {"size": 64}, {"seed": 4}])
def test_other_numbers_are_refused(root, change):
    with pytest.raises(ValueError, match=r"found .*choose another folder"):
        write_scenes(root, **{**SMALL, **change})


def test_counts_of_the_other_splits(tmp_path):
    counts = {"val": 3, "test": 1, "novel": 4}
    small = {**SMALL, "images": 2, "counts": counts}
    write_scenes(tmp_path, **small)
    found = {split: len(load_examples(tmp_path, split)) for split in SPLITS}
    assert found == {"train": 2, **counts}
    assert write_scenes(tmp_path, **small) == tmp_path
    with pytest.raises(DataError, match="choose another folder"):
        write_scenes(tmp_path, **{**small, "counts": {"val": 3}})


def test_counts_that_say_the_usual_change_nothing(root):
    assert write_scenes(root, **SMALL, counts={"val": 2, "novel": 2}) == root


@pytest.mark.parametrize("counts", [{"vla": 3}, {"val": 0}, {"train": 12}])
def test_bad_counts(tmp_path, counts):
    with pytest.raises(DataError, match="expected counts of val, test, novel"):
        write_scenes(tmp_path / "data", **SMALL, counts=counts)
    assert not (tmp_path / "data").exists()


def test_several_processes_write_the_same_bytes(root, tmp_path):
    write_scenes(tmp_path, **SMALL, processes=2)
    assert files(tmp_path) == files(root)


@pytest.mark.parametrize(
    ("device", "cores", "pictures", "gigabytes", "expected"),
    [
        ("cpu", 64, 10**6, 0, 0),
        ("cuda", 4, 10**6, 80, 0),
        ("cuda", 16, 100, 80, 0),
        ("cuda", 8, 10**5, 80, 6),
        ("cuda", 128, 10**5, 140, 14),
        ("cuda", 128, 10**5, 16, 2),
        ("cuda", 128, 10**5, 6, 0),
    ],
)
def test_processes_are_for_large_sets_on_gpus(monkeypatch, device, cores, pictures, gigabytes, expected):
    gpu = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(scenes_module.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(scenes_module.torch.cuda, "get_device_properties", lambda _: gpu)
    assert scenes_module.useful_processes(device, pictures, 224) == expected


def test_further_gpus_draw_as_well(monkeypatch):
    gpu = SimpleNamespace(total_memory=140 * 10**9)
    monkeypatch.setattr(scenes_module.os, "cpu_count", lambda: 32)
    monkeypatch.setattr(scenes_module.torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(scenes_module.torch.cuda, "device_count", lambda: 2)
    assert scenes_module.gpus_of("cuda") == ["cuda:0", "cuda:1"]
    assert scenes_module.gpus_of("cuda:1") == ["cuda:1"]
    assert scenes_module.gpus_of("cpu") == ["cpu"]
    assert scenes_module.useful_processes("cuda", 10**5, 224) == 28
    assert scenes_module.useful_processes("cuda:1", 10**5, 224) == 14
    assert scenes_module.useful_processes("cpu", 10**5, 224) == 0


def test_a_process_that_dies_is_an_error_that_says_what_to_look_at(tmp_path, monkeypatch):
    class DyingPool(ThreadPoolExecutor):
        def __init__(self, processes, *_):
            super().__init__(processes)

        def map(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr(scenes_module, "ProcessPoolExecutor", DyingPool)
    with pytest.raises(RuntimeError, match=r"of 2 processes .* died: .*__main__"):
        write_scenes(tmp_path, **SMALL, processes=2)


def test_other_data_are_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="folder without data"):
        write_scenes(tmp_path, **SMALL)
