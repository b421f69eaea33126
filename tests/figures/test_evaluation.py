"""Figures of confidence, by what is in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from vg_utils.evaluation import confidence
from vg_utils.figures import evaluation, pictures
from vg_utils.figures.evaluation import draw_confidence
from vg_utils.figures.style import PREDICTION_COLOR, TRUTH_COLOR
from vg_utils.models.prediction import Prediction

pytestmark = pytest.mark.usefixtures("warnings_are_errors")


def values(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(n), rng.random(n)


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def stays_inside(figure):
    """Every text of the drawn figure lies within it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), canvas.get_width_height()
    texts = [ax.title for ax in figure.axes] + [ax._left_title for ax in figure.axes]
    texts += [text for legend in figure.legends for text in legend.get_texts()] + [figure._suptitle]
    boxes = [text.get_window_extent(renderer) for text in texts if text is not None and text.get_text()]
    return all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


def test_reliability_shows_the_bins_and_their_counts(tmp_path):
    score, iou = values()
    title = "dense-grounder on RefScenes test: score against IoU"
    figure = evaluation.reliability_diagram(score, iou, tmp_path / "r.png", title, bins=5)
    table = confidence.reliability(score, iou, 5)
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == pytest.approx(table["outcome"].tolist())
    assert [bar.get_height() for bar in below.patches] == table["n"].tolist()
    dots = above.lines[1].get_xydata()
    np.testing.assert_allclose(dots, table[["confidence", "outcome"]])
    assert f"{confidence.expected_calibration_error(score, iou, 5):.3f}" in above.get_title("left")
    assert below.get_xlabel() == "score in [0, 1]"
    assert "mean IoU" in above.get_ylabel()
    assert "300" in below.get_ylabel()
    assert len(legend_texts(figure)) == 2
    assert stays_inside(figure)
    Image.open(tmp_path / "r.png").verify()
    few = evaluation.reliability_diagram([0.05, 0.95], [0, 1])
    assert len(few.axes[0].patches) == 2  # bins without a value show no bar


def test_risk_coverage_has_the_bounds_beside_the_curve():
    score, iou = values()
    rows = pd.DataFrame({"score": score, "iou": iou})
    title = "dense-grounder on RefScenes test: risk and coverage"
    figure = evaluation.risk_coverage_curve(rows, title=title)
    model, best, random = figure.axes[0].lines
    table, area = confidence.risk_coverage(score, iou >= 0.5)
    assert model.get_ydata().tolist() == table["risk"].tolist()
    assert set(random.get_ydata().round(9)) == {round((iou < 0.5).mean(), 9)}
    assert (best.get_ydata() <= model.get_ydata() + 1e-12).all()
    assert f"{area:.3f}" in legend_texts(figure)[0]
    assert figure.axes[0].get_xlim() == (0, 1)  # it errs among the surest tenth
    sure = rows.assign(score=rows["iou"])  # and this one not before it has to
    right = (iou >= 0.5).mean()
    start, end = evaluation.risk_coverage_curve(sure).axes[0].get_xlim()
    assert right - 0.1 < start <= right < end == 1
    assert "0.5" in figure.axes[0].get_ylabel()
    assert stays_inside(figure)


def test_presence_of_both_kinds():
    there, absent = values(200)[0] ** 0.5, values(50, 1)[0] ** 2
    figure = evaluation.presence_histogram(there, absent, title="dense-grounder: presence")
    (ax,) = figure.axes
    assert set(legend_texts(figure)) == {"in the image (n = 200)", "absent (n = 50)", "threshold"}
    assert f"AUROC {confidence.auroc(there, absent):.3f}" in ax.get_title("left")
    assert f"{(there >= 0.5).mean():.1%} of those there" in ax.get_title("left")
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(200)  # twice 100%
    assert stays_inside(figure)
    assert len(evaluation.presence_histogram(there, absent, threshold=None).axes[0].lines) == 0


def predictions(n=4, shape=(6, 9)):
    maps = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return [
        Prediction(f"the {i}th thing", (10.0 * i, 5.0, 10.0 * i + 20, 30.0), 0.5, i / n, maps[i])
        for i in range(n)
    ]


def test_heatmaps_lie_on_their_picture_under_the_boxes(tmp_path):
    picture, asked = Image.effect_noise((90, 60), 60), predictions()
    truths = [(1, 2, 30, 40), None, None, None]
    figure = pictures.heatmap_grid(picture, asked, tmp_path / "h.jpg", "RefScenes", truths)
    panels = [ax for ax in figure.axes if len(ax.images) == 2]
    assert len(panels) == 4
    for ax, prediction in zip(panels, asked, strict=True):
        shown, heat = ax.images
        assert heat.get_extent() == shown.get_extent() == [0, 90, 60, 0]
        np.testing.assert_array_equal(heat.get_array(), prediction.heatmap)
        assert heat.get_clim() == (0, 1)
        assert ax.patches[-1].get_zorder() > heat.get_zorder() >= shown.get_zorder()
        assert to_hex(ax.patches[-1].get_edgecolor()) == PREDICTION_COLOR
        assert ax.get_title().startswith(prediction.phrase)
        assert f"presence {prediction.presence:.2f}" in ax.get_title()
    assert to_hex(panels[0].patches[0].get_edgecolor()) == TRUTH_COLOR
    assert [len(ax.patches) for ax in panels] == [2, 1, 1, 1]
    assert legend_texts(figure) == ["truth", "prediction"]
    assert figure.axes[-1].get_ylabel() == "probability of lying in the box"
    assert stays_inside(figure)
    Image.open(tmp_path / "h.jpg").verify()


def test_the_heat_is_clear_where_it_is_low_and_no_yellow():
    colors = pictures.HEAT(np.linspace(0, 1, 256))
    assert colors[0, 3] == 0
    assert (np.diff(colors[:, 3]) >= 0).all()
    lightness = colors[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1e-3).all()
    yellow = np.array([int(PREDICTION_COLOR[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert np.abs(colors[:, :3] - yellow).max(axis=1).min() > 0.2


def test_what_is_not_found_has_no_box():
    picture = Image.effect_noise((90, 60), 60)
    figure = pictures.heatmap_grid(picture, predictions(), threshold=0.5)
    panels = [ax for ax in figure.axes if len(ax.images) == 2]
    assert [len(ax.patches) for ax in panels] == [0, 0, 1, 1]
    assert panels[0].get_title() == "the 0th thing\nnot found   presence 0.00"
    assert "not found" not in panels[2].get_title()
    none = pictures.heatmap_grid(picture, predictions(2), threshold=1.0)
    assert legend_texts(none) == []
    assert stays_inside(none)


def test_an_evaluation_draws_what_its_numbers_say(tmp_path):
    score, iou = values()
    rows = pd.DataFrame({"score": score, "iou": iou, "presence": score**0.5})
    absent = pd.DataFrame({"presence": iou[:50] ** 2})
    for name, table, others, drawn in (
        ("all", rows, absent, {"reliability", "risk_coverage", "presence", "presence_reliability"}),
        ("no presence", rows.drop(columns="presence"), None, {"reliability", "risk_coverage"}),
        ("constant", rows.drop(columns="presence").assign(score=0.5), None, set()),
    ):
        (tmp_path / name).mkdir()
        result = confidence.confidence_of(table, others)
        draw_confidence(tmp_path / name, table, others, result, "dense-grounder on RefScenes test")
        assert {path.stem for path in (tmp_path / name).iterdir()} == drawn


def test_heatmaps_that_are_not_there_are_refused():
    picture = Image.effect_noise((90, 60), 60)
    with pytest.raises(ValueError, match="heat maps"):
        pictures.heatmap_grid(picture, [Prediction("a cube", (0.0, 0.0, 1.0, 1.0), 0.5)])
    with pytest.raises(ValueError, match="2 predictions and 1 true"):
        pictures.heatmap_grid(picture, predictions(2), truths_xyxy=[None])
    with pytest.raises(ValueError, match="at least one"):
        pictures.heatmap_grid(picture, [])
