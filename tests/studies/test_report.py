"""The scripts of the study, at the size of a test: the detector, and the page that reports the results."""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import backbones, detector, report, report_equal, report_photos, report_tables, results
from experiments.pretraining_corpus import draw_corpus
from vg_utils.config import ClipConfig, DetectorClipConfig
from vg_utils.data import DataError, load_examples, load_image
from vg_utils.evaluation.metrics import bootstrap_ci, breakdown, summarise
from vg_utils.models.clip import ClipBackbone
from vg_utils.models.detectors import TorchvisionDetector
from vg_utils.pickles import write_pickle
from vg_utils.refscenes.raycast import SHAPES


@pytest.fixture(scope="module")
def pictures(tiny_scenes) -> detector.Annotated:
    return detector.read(tiny_scenes, "train", "cpu", limit=6)


def test_all_annotated_objects_of_a_split_are_read(pictures, tiny_scenes):
    examples = load_examples(tiny_scenes, "train", strict=True)
    assert len(pictures.images) == len(pictures.boxes_xyxy) == 6
    assert pictures.images.dtype == torch.uint8
    assert pictures.boxes_xyxy[2].tolist() == [list(box) for box in examples[2].object_boxes_xyxy]
    assert [SHAPES[i - 1] for i in pictures.labels[2]] == list(examples[2].object_categories)


def test_a_mirrored_picture_has_its_boxes_mirrored(pictures):
    chosen = torch.tensor([1, 4])
    plain, plain_targets = detector.batch_of(pictures, chosen, torch.tensor([False, False]))
    images, targets = detector.batch_of(pictures, chosen, torch.tensor([False, True]))
    assert torch.equal(images[0], plain[0])
    assert torch.equal(images[1], plain[1].flip(-1))
    old, new = plain_targets[1]["boxes"], targets[1]["boxes"]
    assert torch.equal(targets[0]["boxes"], plain_targets[0]["boxes"])
    assert torch.equal(new[:, [1, 3]], old[:, [1, 3]])
    assert torch.equal(new[:, [0, 2]], 64 - old[:, [2, 0]])


def test_losses_are_those_of_torchvisions_own_forward_pass(pictures):
    torch.manual_seed(0)
    model = detector.build_detector().train()
    for part in model.modules():  # the two passes would each move the running statistics
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    images, targets = detector.batch_of(pictures, torch.arange(2), torch.zeros(2, dtype=torch.bool))
    torch.manual_seed(1)  # regions are sampled
    own = detector.losses_of(model, images, targets)
    torch.manual_seed(1)
    theirs = model(list(images), targets)
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-4)


def test_a_detector_trains_is_saved_and_proposes(tiny_scenes, tmp_path, capsys):
    weights = tmp_path / "detector.pt"
    detector.main(f"--data {tiny_scenes} --out {weights} --steps 2 --batch 2 --limit 2 --workers 0".split())
    out = capsys.readouterr().out
    assert "step 2 of 2" in out
    assert "recall at IoU 0.5" in out
    config = DetectorClipConfig(
        detector=detector.ARCHITECTURE,
        weights=str(weights),
        num_classes=detector.CLASSES,
        score_threshold=0.0,
    )
    source = TorchvisionDetector(config, "cpu")
    example = load_examples(tiny_scenes, "val", strict=True)[0]
    assert source.propose([load_image(example.image)])[0].shape[1] == 4
    loaded = source.model.state_dict()
    assert any(name.endswith("num_batches_tracked") and value == 2 for name, value in loaded.items())


def test_proposals_equal_to_the_objects_have_recall_one(pictures):
    class Perfect(torch.nn.Module):
        def forward(self, images):
            boxes = pictures.boxes_xyxy[: len(images)]
            return [{"boxes": b, "scores": torch.ones(len(b))} for b in boxes]

    found = detector.score(Perfect(), pictures)
    objects = sum(map(len, pictures.boxes_xyxy))
    assert found["precision"] == 1
    assert found["recall"] > 0.9  # near doubles among the objects are suppressed
    assert found["proposals"] <= objects / len(pictures.images)


def test_pictures_that_are_no_squares_are_refused(tiny_scenes, monkeypatch):
    examples = load_examples(tiny_scenes, "train", strict=True)
    odd = [examples[0], replace(examples[1], size_wh=(64, 70))]
    monkeypatch.setattr(detector, "load_examples", lambda *_, **__: odd)
    with pytest.raises(DataError, match="expected a square of 64 pixels"):
        detector.read(tiny_scenes, "train", "cpu")


def job(name: str, group: str, seed: int = 0, shift: float = 0.0, **changes) -> dict:
    """What `experiments.run.do` returns, of 8 images with 3 expressions; `shift` moves every IoU."""
    chance = np.random.default_rng(seed)
    base = np.linspace(0.3, 0.7, 24) + chance.normal(0, 0.02, 24)
    found = {"name": name, "group": group, "label": name, "model": "dense-grounder", "seed": seed}
    found |= {"images": 500, "device": "a GPU", "train_seconds": 60.0, "pairs_per_second": 900.0}
    found |= {"val_miou": 0.5 + shift, "parameters": 3_000_000, "head_parameters": 1_000_000}
    found |= {"trained_parameters": 3_000_000, "history": []}
    for epoch, part in ((1, 0.4), (2, 0.8), (3, 1.0)):
        found["history"].append({"epoch": epoch, "val_miou": part * found["val_miou"], "seconds": 20.0})
    found |= {"seconds": 61.0, "results": {}, "by": {}, "rows": {}}
    rows = pd.DataFrame({"image_id": np.repeat(np.arange(8), 3), "sent_id": np.arange(24)})
    rows = rows.assign(family=["order", "place", "count"] * 8, score=0.5, iou=(base + shift).clip(0, 1))
    rows = rows.assign(n_words=3, tx1=0.0, ty1=0.0, tx2=9.0, ty2=9.0, width=64, height=64)
    summary, tables = summarise(rows), breakdown(rows)
    for split in ("test", "novel"):
        found["rows"][split] = rows[["image_id", "sent_id", "family", "iou", "score"]]
        found["by"][split] = tables
        found["results"][split] = {"model": "x", "split": split, **summary, "seconds": 0.1}
    return found | changes


def gathered(folder: Path, *jobs: dict) -> Path:
    """The file of results that the pickles of these runs become."""
    for found in jobs:
        path = folder / "study" / "results" / f"{found['name']}-{found['seed']}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pickle(path, found)
    assert report.main(["--gather", str(folder / "study"), "--results", str(folder / "results.pkl")]) == 0
    return folder / "results.pkl"


def two_seeds() -> list[dict]:
    return [job("flagship", "systems", seed, 0.2) for seed in (0, 1)]


def line_of(study: results.Study, name: str, split: str = "test") -> pd.Series:
    table = study.table.set_index(["name", "split"])
    return table.loc[(name, split)]


def test_seeds_are_joined_expression_by_expression(tmp_path):
    jobs = two_seeds()
    line = line_of(results.load(gathered(tmp_path, *jobs)), "flagship")
    rows = [found["rows"]["test"] for found in jobs]
    mean = (rows[0]["iou"] + rows[1]["iou"]) / 2
    assert line["miou"] == pytest.approx(mean.mean())
    assert (line["miou_low"], line["miou_high"]) == pytest.approx(bootstrap_ci(mean, rows[0]["image_id"]))
    hits = [(r["iou"] >= 0.5).mean() for r in rows]
    assert line["acc@0.5"] == pytest.approx(np.mean(hits))
    assert line["seed_spread"] == pytest.approx(np.std([r["iou"].mean() for r in rows], ddof=1))
    assert line["seeds"] == 2


def test_a_difference_is_paired(tmp_path):
    other = job("other", "systems", 0, 0.1, model="clip-hrnet")
    other["rows"]["test"] = other["rows"]["test"].sample(frac=1, random_state=0)  # in any order
    study = results.load(gathered(tmp_path, job("flagship", "systems", 0, 0.2), other))
    line = line_of(study, "other")
    assert line["reference"] == "flagship"
    ends = line[["miou_difference", "miou_difference_low", "miou_difference_high"]].to_list()
    assert ends == pytest.approx([-0.1] * 3)  # images differ a lot, the difference does not


def test_changes_are_compared_with_the_unchanged_run_of_their_group(tmp_path):
    jobs = [*two_seeds(), job("a", "ablation", shift=0.1), job("b", "loss", model="clip-hrnet")]
    jobs += [job("c", "loss")]
    jobs += [job("hrnet", "systems", model="clip-hrnet"), job("plain", "ablation", label="unchanged")]
    study = results.load(gathered(tmp_path, *jobs))
    assert line_of(study, "a")["reference"] == "plain"
    assert line_of(study, "b")["reference"] == "hrnet"
    assert line_of(study, "c")["reference"] == "plain"
    assert "| unchanged |" in report.ablation(study)


def test_results_hold_plain_data_and_no_rows(tmp_path):
    path = gathered(tmp_path, *two_seeds())
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
    assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ"}
    assert set(pickle.loads(path.read_bytes())) == {
        "flagship",
        "commands",
        "runs",
        "results",
        "pooled",
        "by",
        "curves",
    }


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    jobs = two_seeds()
    jobs[1]["rows"]["novel"] = jobs[1]["rows"]["novel"].iloc[1:]
    with pytest.raises(results.ResultsError, match="flagship, seed 1, novel: asked other phrases"):
        results.pool_split({"flagship": jobs}, "novel", {"flagship": "flagship"})
    with pytest.raises(results.ResultsError, match="found none"):
        results.gather([tmp_path])
    gathered(tmp_path, *two_seeds())
    with pytest.raises(results.ResultsError, match="expected one of the runs"):
        results.gather([tmp_path / "study"], flagship="flagshop")


def test_the_page_has_what_was_run_and_its_figures(tmp_path, capsys):
    free = job("oracle", "training-free", history=[], train_seconds=0, pairs_per_second=None, device=None)
    jobs = [*two_seeds(), free, job("no|words", "ablation", shift=0.1)]
    jobs += [job(f"curve-{n}", "curve", shift=n / 1000, images=n, label="flagship") for n in (50, 100)]
    path = gathered(tmp_path, *jobs)
    (tmp_path / "negative.md").write_text("Nothing worked at first.\n")
    arguments = ["--results", path, "--out", tmp_path, "--negative", tmp_path / "negative.md"]
    assert report.main([str(a) for a in arguments]) == 0
    page, study = (tmp_path / "RESULTS.md").read_text(), results.load(path)
    assert f"| **flagship** | {line_of(study, 'flagship')['miou']:.3f} [" in page
    assert "no\\|words" in page
    for title in ("Systems, backbones fine-tuned", "Without training on phrases", "Ablations", "RefCOCOg"):
        assert f"## {title}" in page
    for title in ("Systems, backbones frozen", "Blind baselines", "Box losses", "Shipped checkpoints"):
        assert title not in page
    assert "## What did not work\n\nNothing worked at first.\n\n## RefCOCOg" in page
    assert "nan" not in page
    for name in report.FIGURES:
        assert (tmp_path / "Visuals" / name).stat().st_size > 5_000
        assert f"Visuals/{name}" in page


def test_the_page_says_when_the_flagship_passes_the_best_other_system(tmp_path):
    other = {"group": "systems", "model": "clip-hrnet"}
    jobs = [*two_seeds(), job("weak", shift=-0.3, **other), job("good", shift=0.05, **other)]
    jobs[0]["history"][1]["val_miou"] = 0.54  # passes an epoch later than the second seed
    jobs[-1]["history"][-1]["val_miou"] = 0.5  # was better before
    study = results.load(gathered(tmp_path, *jobs))
    minutes, mious = report.progress(study, "flagship")[1]
    assert minutes.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert mious.tolist() == pytest.approx([0.28, 0.56, 0.7])
    said = " ".join(report.systems(study).split())
    assert "good reaches 0.550 mIoU; every seed of flagship has passed that after 1.0 of" in said
    jobs[-1] = job("good", shift=0.3, **other)  # better than the flagship
    study = results.load(gathered(tmp_path, *jobs))
    said = " ".join(report.systems(study).split())
    assert "good reaches 0.800 mIoU, which not every seed of flagship passes" in said


def test_errors_are_counted_against_the_flagship_on_the_same_phrases(tmp_path):
    few = job("few", "systems", shift=-0.3, model="clip-hrnet")
    rows = few["rows"]["test"]
    few["rows"]["test"] = rows[rows["image_id"] >= 4]  # the later images, which are the easier ones
    few["results"]["test"] |= {"acc@0.5": float((few["rows"]["test"]["iou"] >= 0.5).mean())}
    flagship = job("flagship", "systems", 0)
    study = results.load(gathered(tmp_path, flagship, few))
    same = flagship["rows"]["test"]["iou"][few["rows"]["test"].index] < 0.5
    wrong = 1 - few["results"]["test"]["acc@0.5"]
    assert report_tables.times_as_often(line_of(study, "few").to_dict()) == f"{wrong / same.mean():.2f}"
    assert report_tables.times_as_often(line_of(study, "flagship").to_dict()) == "1.00"


def test_the_best_by_one_metric_need_not_be_by_another():
    rows = [{"name": "a", "label": "a", "miou": 0.8, "acc@0.5": 0.8}]
    rows += [{"name": "b", "label": "b", "miou": 0.7, "acc@0.5": 0.9}]
    assert report._winner(rows) == "By mIoU the best is a (0.800), by Acc@0.5 b (0.900 against 0.800)."
    rows[1]["acc@0.5"] = 0.7
    assert (
        report._winner(rows) == "Best is a (mIoU 0.800, Acc@0.5 0.800), then b (mIoU 0.700, Acc@0.5 0.700)."
    )


def test_the_learning_curve_ends_at_the_system_itself(tmp_path):
    jobs = [*two_seeds(), job("curve-50", "curve", images=50, label="flagship"), job("other", "systems")]
    study = results.load(gathered(tmp_path, *jobs))
    assert [row["name"] for row in report.curve_rows(study)] == ["curve-50", "flagship"]
    assert "which trained for 1.0 minutes" in report.learning_curve(study)


def test_a_frozen_run_stands_beside_the_system_of_its_label(tmp_path):
    jobs = [*two_seeds(), job("a", "systems", shift=0.1), job("b", "systems", shift=-0.1)]
    jobs += [job(f"frozen-{label}", "frozen", label=label) for label in ("a", "b")]
    study = results.load(gathered(tmp_path, *jobs))
    page = report.frozen(study)
    for label in ("a", "b"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {label}, frozen |"))
        assert f"| {line_of(study, label)['miou']:.3f} |" in line


def test_settings_of_a_search_are_listed_and_in_no_other_table(tmp_path):
    tried = {"results": {}, "by": {}, "rows": {}, "history": []}
    jobs = [
        job("search-a", "search", label="a, lr 1", val_miou=0.3, search_novel_miou=0.21, **tried),
        job("search-b", "search", label="a, lr 2", val_miou=0.4, search_novel_miou=0.22, **tried),
    ]
    study = results.load(gathered(tmp_path, *two_seeds(), *jobs))
    page = report.page(study)
    section = page[page.index("## Settings that were tried") :]
    assert section.index("| a, lr 2 | 0.400 | 0.220 | 1.0 |") < section.index(
        "| a, lr 1 | 0.300 | 0.210 | 1.0 |"
    )
    assert page.count("a, lr 2") == 1


def test_of_a_long_training_some_epochs_are_kept():
    kept = results.curve([{"epoch": i, "val_miou": i / 1000} for i in range(700)])
    assert len(kept["epoch"]) == results.MOST_EPOCHS
    assert (kept["epoch"][0], kept["epoch"][-1], kept["val_miou"][-1]) == (0, 699, 0.699)
    assert results.curve([]) == {"epoch": [], "val_miou": []}


def test_equal_minutes_say_how_often_the_best_rival_errs(tmp_path):
    rivals = job("near", "systems", 0, 0.05, train_seconds=90.0), job("far", "systems", 0, 0.0)
    equal = results.load(gathered(tmp_path, job("flagship", "systems", 0, 0.1), *rivals))
    section = report_equal.section(equal)
    wrong = {name: 1 - line_of(equal, name)["acc@0.5"] for name in ("flagship", "near")}
    said = " ".join(section.split())
    assert f"of near, the best other system, {1 - wrong['near']:.3f}: that errs" in said
    assert f"errs {wrong['near'] / wrong['flagship']:.2f} times as often" in said
    assert "it came to 1.0 to 1.5 minutes" in said
    assert section in report.page(equal, equal=equal)


def test_missing_results_are_one_line_that_says_what_to_do(tmp_path, capsys):
    assert report.main(["--results", str(tmp_path / "none.pkl")]) == 2
    assert "python -m experiments.report --gather" in capsys.readouterr().err


@pytest.mark.skipif(not report.RESULTS.is_file(), reason="experiments/results.pkl is not there yet")
def test_results_md_is_what_the_command_writes():
    negative = report.NEGATIVE.read_text() if report.NEGATIVE.is_file() else ""
    written = (report.ROOT / "RESULTS.md").read_text()
    asked = pickle.loads(report.BACKBONES.read_bytes())
    equal = results.load(report_equal.RESULTS)
    expected = report.page(results.load(report.RESULTS), negative, asked, report_photos.of_files(), equal)
    assert written == expected, "RESULTS.md is out of date: run python -m experiments.report"


@pytest.fixture(scope="module")
def corpus():
    return draw_corpus("test", 6, 64, "cpu")


def test_retrieval_is_perfect_for_crops_that_are_their_descriptions_and_nought_for_anothers(corpus):
    model = ClipBackbone(ClipConfig("scenes-rn", "shipped"), 64).eval()
    words = [
        [names[i] for names, i in zip(backbones.ATTRIBUTES.values(), labels, strict=True)]
        for labels in corpus.labels.tolist()
    ]
    crops = backbones.read(model, [f"the {material} {color} {shape}" for shape, color, material, _ in words])
    lines = {line["question"]: line for line in backbones.retrieval(model, crops, corpus)}
    assert lines["description of a crop, of 64: R@1"]["score"] == 1
    assert lines["crop of a description: R@1"]["score"] == 1
    other = {"sphere": "cone", "cone": "cube", "cube": "cylinder", "cylinder": "sphere"}
    crops = backbones.read(model, [f"the {w[2]} {w[1]} {other[w[0]]}" for w in words])
    first, fifth, _ = backbones.retrieval(model, crops, corpus)
    assert first["score"] == 0
    assert first["chance"] == 1 / 64
    assert fifth["chance"] == 5 / 64


def test_the_small_backbones_know_more_than_random_ones_and_the_page_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "SIDES", (64,))
    monkeypatch.setattr(backbones, "PROBE_STEPS", 60)
    asked = backbones.measure(12)
    score = {(line["backbone"], line["question"]): line["score"] for line in asked["answers"]}
    assert all(0 <= value <= 1 for value in score.values())
    assert score["clip", "color of a crop"] > 0.6  # of a side that it never saw
    for name in ("shape", "color"):
        question = f"{name} of the solid in a cell"
        assert score["hrnet", question] > score["random hrnet", question] + 0.1
    for name in ("shape", "material"):
        assert score["clip", f"{name} of a crop"] > 0.8
    (marked,) = (line for line in asked["answers"] if line["question"].startswith("solid that a phrase"))
    assert marked["score"] > marked["chance"] + 0.15
    assert score["hrnet", "IoU of its box"] > score["random hrnet", "IoU of its box"] + 0.1
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(pickle.dumps(asked, protocol=4))}
    assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ"}
    page = report.page(results.load(gathered(tmp_path, *two_seeds())), asked=asked)
    assert "## The small backbones" in page
    assert f"| color of a crop | 0.125 | {score['clip', 'color of a crop']:.3f} [" in page
