"""Figures by what is in them: boxes, colours, labels, legends; and the files they are written to."""

import io
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from vg_utils.evaluation import metrics
from vg_utils.figures import charts, pictures, style

RESOLUTIONS = style.DPI  # before the suite changes them
pytestmark = pytest.mark.usefixtures("warnings_are_errors")


def noise(width=80, height=60, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_rows(n=24, seed=0):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {"image_id": np.arange(n) // 3, "sent_id": np.arange(n), "iou": rng.random(n).round(1)}
    )
    rows = rows.assign(text=[f"the {i}th thing" for i in range(n)], score=rng.random(n), n_words=3)
    rows = rows.assign(x1=1.0, y1=2.0, x2=30.0, y2=40.0, tx1=5.0, ty1=6.0, tx2=50.0, ty2=55.0)
    return rows.assign(width=80, height=60, distractors=rng.integers(0, 4, n), family="")


def edge_colors(ax):
    return [to_hex(patch.get_edgecolor()) for patch in ax.patches]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def drawn(figure):
    """Force a full draw: layout, ticks, text."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def test_colours_are_the_projects():
    # Green: green dominates. Yellow: red and green dominate blue.
    red, green, blue = (int(style.TRUTH_COLOR[i : i + 2], 16) for i in (1, 3, 5))
    assert green > 1.5 * max(red, blue)
    red, green, blue = (int(style.PREDICTION_COLOR[i : i + 2], 16) for i in (1, 3, 5))
    assert min(red, green) > 200 > 100 > blue


def test_boxes_keep_the_pixels_of_a_large_picture():
    ax = plt.figure().subplots()
    picture = noise(2000, 1000)
    pictures.draw_boxes(
        ax, picture, "a dog", [100, 200, 900, 800], [150, 100, 2500, 700], iou=0.4567, score=0.9
    )
    drawn(ax.figure)
    truth, prediction = ax.patches
    assert truth.get_bbox().extents.tolist() == [100, 200, 900, 800]
    assert prediction.get_bbox().extents.tolist() == [150, 100, 2000, 700]  # cut at the image's edge
    assert edge_colors(ax) == [style.TRUTH_COLOR, style.PREDICTION_COLOR]
    assert all(patch.get_path_effects() for patch in ax.patches)
    assert ax.get_title() == "a dog\nIoU 0.46   score 0.90"
    assert ax.get_xlim() == (0, 2000)
    assert ax.get_ylim() == (1000, 0)  # y points down
    assert max(ax.images[0].get_array().shape) <= 640
    assert picture.size == (2000, 1000)  # the caller's image stays as it is
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("size", "mode"),
    [((900, 1), "RGB"), ((1, 900), "L"), ((1, 1), "RGBA"), ((33, 700), "1"), ((640, 480), "CMYK")],
)
def test_pictures_of_any_size_and_mode(size, mode):
    figure = pictures.prediction_grid([{"image": noise(*size, mode), "prediction_xyxy": [0, 0, 1, 1]}])
    assert len(drawn(figure).axes[0].patches) == 1


@pytest.mark.parametrize(
    "phrase",
    [
        "the $5 bill or the $10 bill",
        r"a $\frac{ sign$ and a trailing \ ",
        "左边的红色杯子 and 😀 and café «à gauche»",
        "electroencephalograph" * 20,
        "a word " * 200,
        "tab\tnewline\nnull\0",
        "",
    ],
)
def test_phrases_of_any_text(phrase):
    item = {"image": noise(), "phrase": phrase, "truth_xyxy": [1, 1, 9, 9]}
    figure = drawn(pictures.prediction_grid([item] * 2, title=phrase))
    title = figure.axes[0].get_title()
    assert title.count("\n") <= 2
    assert title.count("$") == phrase.count("$")  # as it is, no formula
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = figure.axes[0].title.get_window_extent(renderer).width
    assert width <= 1.1 * figure.axes[0].get_window_extent(renderer).width


def test_phrase_is_plain_text_on_a_foreign_axes_too():
    ax = plt.figure().subplots()
    pictures.draw_boxes(ax, noise(), "a $_ and a $^")
    drawn(ax.figure)
    assert ax.get_title() == "a $_ and a $^"
    plt.close(ax.figure)


def test_unprintable_characters_become_squares():
    assert style.printable("  café \n 左 x ") == "café \u25a1 x"


def test_grid_has_a_panel_each_and_one_legend_of_what_it_shows():
    both = {
        "image": noise(),
        "phrase": "a",
        "truth_xyxy": [1, 1, 9, 9],
        "prediction_xyxy": [2, 2, 9, 9],
        "iou": 0.5,
    }
    figure = pictures.prediction_grid([both] * 4, columns=3, title="RefScenes test, clip-hrnet")
    assert [bool(ax.images) for ax in figure.axes] == [True] * 4 + [False] * 2
    assert not figure.axes[5].axison
    assert legend_texts(figure) == ["truth", "prediction"]
    swatches = [to_hex(patch.get_facecolor()) for patch in figure.legends[0].get_patches()]
    assert swatches == [style.TRUTH_COLOR, style.PREDICTION_COLOR]
    assert figure.get_suptitle() == "RefScenes test, clip-hrnet"
    only = pictures.prediction_grid([{"image": noise(), "truth_xyxy": None, "prediction_xyxy": [2, 2, 9, 9]}])
    assert legend_texts(only) == ["prediction"]
    assert edge_colors(only.axes[0]) == [style.PREDICTION_COLOR]
    with pytest.raises(ValueError, match="at least one"):
        pictures.prediction_grid([])


def test_samples_are_one_an_image_and_depend_on_the_seed_only():
    rows = make_rows()
    sample = pictures.sample_rows(rows, 5, seed=1)
    assert len(sample) == 5
    assert sample["image_id"].is_unique
    shuffled = rows.sample(frac=1, random_state=9)
    assert pictures.sample_rows(shuffled, 5, seed=1)["sent_id"].tolist() == sample["sent_id"].tolist()
    assert pictures.sample_rows(rows, 5, seed=2)["sent_id"].tolist() != sample["sent_id"].tolist()
    assert len(pictures.sample_rows(rows, 100)) == rows["image_id"].nunique()
    counts = pd.concat(pictures.sample_rows(rows, 4, seed) for seed in range(150))["sent_id"].value_counts()
    assert len(counts) == len(rows)  # every expression gets its turn: 25 times of 150 on average
    assert counts.between(8, 50).all()


def test_worst_failures_are_the_worst_of_their_images():
    rows = make_rows()
    worst = pictures.worst_rows(rows, 4)
    assert worst["image_id"].is_unique
    lowest = rows.groupby("image_id")["iou"].min().sort_values()
    assert worst["iou"].tolist() == lowest.head(4).tolist()
    loaded = []
    figure = pictures.worst_failures(
        rows, lambda image_id: loaded.append(image_id) or noise(), 4, columns=2, title="t"
    )
    assert loaded == worst["image_id"].tolist()
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == worst["text"].tolist()
    truth, prediction = figure.axes[0].patches
    assert truth.get_bbox().extents.tolist() == [5, 6, 50, 55]
    assert prediction.get_bbox().extents.tolist() == [1, 2, 30, 40]


def make_history(epochs=5, **extra):
    names = ("train_loss", "val_loss", "train_miou", "val_miou", "train_acc@0.5", "val_acc@0.5")
    return [
        {"epoch": e, "lr": 1e-3} | {name: 0.1 * e for name in names} | {k: v(e) for k, v in extra.items()}
        for e in range(1, epochs + 1)
    ]


def test_training_curves_show_both_splits_and_mark_the_best_epoch():
    history = make_history(val_miou=lambda e: 0.7 if e == 3 else 0.1, val_semantic_similarity=lambda e: 0.5)
    figure = drawn(charts.training_curves(history, title="RefScenes"))
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "share in [0, 1]", "CLIP cosine in [-1, 1]"]
    assert all(ax.get_xlabel() == "epoch" for ax in figure.axes)
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert labels[0] == ["train loss", "val loss"]
    assert labels[1] == ["train mIoU", "val mIoU", "train Acc@0.5", "val Acc@0.5"]
    assert labels[2] == ["val predicted to true crop"]
    assert figure.axes[1].get_title() == "dotted: best epoch 3, val mIoU 0.700"
    for ax in figure.axes:
        assert ax.lines[-1].get_xdata() == [3, 3]
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_training_curves_of_short_and_patchy_histories():
    assert len(drawn(charts.training_curves(make_history())).axes) == 2
    one = drawn(charts.training_curves(make_history(1)))
    assert [tick for tick in one.axes[0].get_xticks() if 0.5 < tick < 1.5] == [1]
    assert one.axes[0].lines[0].get_marker() == "o"
    patchy = make_history(
        4, val_miou=lambda e: [None, 0.6, math.nan, 0.2][e - 1], val_loss=lambda e: math.nan
    )
    figure = drawn(charts.training_curves(patchy))
    assert "best epoch 2" in figure.axes[1].get_title()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["train loss"]
    bare = drawn(charts.training_curves([{"epoch": 1, "train_loss": 2.0}]))
    assert bare.axes[1].get_legend() is None
    with pytest.raises(ValueError, match="at least one epoch"):
        charts.training_curves([])


def test_histogram_adds_up_and_names_its_lines():
    rows = pd.DataFrame({"iou": [0.0, 0.5, 0.8, 1.0]})
    figure = drawn(charts.iou_histogram(rows, title="RefScenes test"))
    (ax,) = figure.axes
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(100)
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.575, 0.5, 0.75, 0.9])
    assert legend_texts(figure)[:2] == ["mean IoU 0.575", "Acc@0.5: 75.0% at or right of the line"]
    assert ax.get_ylabel() == "expressions (% of 4)"


def test_breakdown_bars_show_every_group_with_its_size():
    table = metrics.breakdown(make_rows())["distractors"]
    figure = drawn(charts.breakdown_bars(table, "other objects of the same category", title="t"))
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [f"{group}   (n = {n})" for group, n in zip(table.index, table["n"], strict=True)]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(table["miou"].tolist())
    assert ax.get_title("left") == "by other objects of the same category"
    assert set(legend_texts(figure)) == {"mIoU, 95% interval over images", "Acc@0.5"}
    one_image = metrics.breakdown(make_rows(3))["length"]  # no interval with one image
    drawn(charts.breakdown_bars(one_image, "length"))


def test_comparison_takes_summaries_and_published_numbers():
    summary = metrics.summarise(make_rows())
    alone = metrics.summarise(make_rows(3))  # its interval is [None, None]
    results = {
        "clip-hrnet": summary,
        "one image": alone,
        "a published system of long name": {"acc@0.5": 0.68},
    }
    figure = drawn(charts.compare_bars(results, title="RefScenes test"))
    (ax,) = figure.axes
    assert [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()] == list(results)
    assert legend_texts(figure) == ["mIoU", "Acc@0.5"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == f"{summary['miou']:.3f}"
    assert texts[2] == "not given"
    assert texts[-1] == "0.680"
    assert ax.yaxis_inverted()  # the first on top
    with pytest.raises(ValueError, match="at least one system"):
        charts.compare_bars({})


# Files


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "histogram.png"
    figure = charts.iou_histogram(make_rows(), path)
    assert isinstance(figure, Figure)
    assert [file.name for file in path.parent.iterdir()] == ["histogram.png"]
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")

    def full_disk(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(type(path), "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        charts.iou_histogram(make_rows(), path)
    assert [file.name for file in path.parent.iterdir()] == ["histogram.png"]
    assert path.read_bytes() == before


@pytest.fixture
def all_resolutions(monkeypatch):
    """The suite draws figures with few pixels."""
    monkeypatch.setattr(style, "DPI", RESOLUTIONS)


@pytest.mark.usefixtures("all_resolutions")
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_first_resolution_whose_file_is_small_enough_is_taken(monkeypatch, kind):
    smooth = noise(20, 15).resize((320, 240), Image.Resampling.BICUBIC)
    figure = pictures.prediction_grid([{"image": smooth, "phrase": "a"}])

    def file(*resolutions: int, most: int) -> bytes:
        monkeypatch.setattr(style, "DPI", resolutions)
        return style.encode_figure(figure, kind, most)

    resolutions = (150, 110, 70, 50)
    for most in (12_000, 40_000):
        each = [file(dpi, most=most) for dpi in resolutions]
        fitting = [content for content in each if len(content) <= most]
        assert file(*resolutions, most=most) == [*fitting, each[-1]][0]


@pytest.mark.usefixtures("all_resolutions")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_files_stay_small_however_busy_the_pictures(tmp_path, suffix):
    path = tmp_path / f"grid.{suffix}"
    smooth = noise(20, 15).resize(
        (640, 480), Image.Resampling.BICUBIC
    )  # about as compressible as a photograph
    pictures.prediction_grid([{"image": smooth, "phrase": "a"}] * 6, path=path)
    assert path.stat().st_size <= style.MAX_BYTES
    assert min(Image.open(path).size) > 400


def test_vector_formats_are_saved_too(tmp_path):
    charts.compare_bars({"a": {"miou": 0.5}}, tmp_path / "compare.svg")
    assert b"<svg" in (tmp_path / "compare.svg").read_bytes()


def test_nothing_is_left_open_and_no_setting_changed():
    settings = dict(plt.rcParams)
    charts.iou_histogram(make_rows())
    pictures.prediction_grid([{"image": noise()}])
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == settings


@pytest.mark.usefixtures("all_resolutions")
def test_notebooks_show_a_figure_as_one_small_picture(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    charts.iou_histogram(make_rows())._ipython_display_()
    pictures.prediction_grid([{"image": noise()}])._ipython_display_()
    assert [picture.format for picture in shown] == ["png", "jpeg"]
    assert Image.open(io.BytesIO(shown[1].data)).format == "JPEG"
    assert all(len(picture.data) <= style.MAX_BYTES / 2 for picture in shown)


def test_heat_lies_on_the_image_where_the_map_is_warm():
    image = Image.effect_noise((90, 60), 60).convert("RGB")
    heatmap = torch.tensor([[0.0, 0.0, 1.0]] * 2)
    shown = pictures.overlay_heatmap(image, heatmap)
    colored = np.ptp(np.asarray(shown, int), axis=-1) > 60  # (H, W): far from grey
    assert shown.size == image.size
    assert not colored[:, :40].any()
    assert colored[:, 75:].all()
