"""What every committed notebook keeps to (DESIGN: notebooks), whatever it is about."""

import ast
import base64
import io
import re

import nbformat
import numpy as np
import pytest
from PIL import Image

from notebooks.execute import MAX_BYTES, METADATA, ROOT, SMALL, WIDTH, clean, notebooks, with_parameters

ORDER = ("intro", "learn", "setup", "parameters")  # of the cells that all have, by their ids
SERIES = (
    "01_data_exploration",
    "02_model_definition",
    "03_training",
    "04_optuna_tuning",
    "05_evaluation",
    "06_ground_your_own_image",
)
PERSONAL = re.compile(
    r"/(?:home|Users|root|tmp|var|mnt|work|content)/\w|[A-Z]:\\\\Users|[\w.]+@[\w-]+\.[a-z]{2}"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(params=notebooks(), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook):
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def test_there_are_notebooks():
    assert notebooks()
    assert {path.stem for path in notebooks()} <= set(SERIES)


def test_the_format_is_valid_and_stable(path, notebook):
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in ids), "ids are words, not random"
    assert path.read_text() == nbformat.writes(notebook, indent=1) + "\n"
    assert dict(notebook.metadata) == METADATA


def test_the_first_cells_are_the_same_in_all(path, notebook):
    ids = [cell.id for cell in notebook.cells if cell.id in ORDER]
    assert ids == list(ORDER)
    intro, learn = notebook.cells[:2]
    assert intro.source.startswith("[![Open in Colab]")
    assert re.search(r"^# \w", intro.source, re.MULTILINE)
    assert "minute" in intro.source
    assert "T4" in intro.source
    assert "[index](README.md)" in intro.source
    place = SERIES.index(path.stem)
    for neighbour in SERIES[max(place - 1, 0) : place] + SERIES[place + 1 : place + 2]:
        assert f"({neighbour}.ipynb)" in intro.source
    assert learn.source.count("\n- ") >= 3
    assert notebook.cells[-1].cell_type == "markdown"
    assert "learned" in notebook.cells[-1].source


def test_setup_is_the_same_in_all(notebook):
    first = nbformat.read(notebooks()[0], as_version=4)
    setup = [next(cell.source for cell in n.cells if cell.id == "setup") for n in (first, notebook)]
    assert setup[0] == setup[1]


def test_parameters_are_literals(notebook):
    (cell,) = tagged(notebook)
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values["FAST"] is False
    assert {"PRESET", "SEED", "DATA"} <= set(values)


def test_code_cells_are_short(code):
    for cell in code:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert 1 <= len(lines) <= 15, cell.id


def test_outputs_come_from_one_clean_run(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_size(path):
    assert path.stat().st_size <= MAX_BYTES


def test_nothing_personal(notebook):
    for cell in notebook.cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), *map(str, output.get("data", {}).values())]
            texts = [text for text in texts if not re.fullmatch(r"[\w+/=\n]{1000,}", text)]  # a figure
        for text in texts:
            assert not PERSONAL.search(text), f"{cell.id}: {PERSONAL.search(text)}"


def test_links_within_the_repository_resolve(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    check_links(text, path)


def test_the_index_lists_all_of_them():
    index = ROOT / "notebooks" / "README.md"
    text = index.read_text()
    check_links(text, index)
    for path in notebooks():
        assert f"({path.name})" in text


def check_links(text, path):
    targets = LINK.findall(text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        file = target.split("#")[0]
        if "://" in target or target.startswith("#") or file in {f"{name}.ipynb" for name in SERIES}:
            continue
        assert (path.parent / file).exists(), f"{path.name} links to {target}"


def test_parameters_are_replaced():
    notebook = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell('FAST = False  # seconds\nDATA = ""', metadata={"tags": ["parameters"]})
    notebook.cells = [nbformat.v4.new_code_cell("FAST = 3"), cell]
    with_parameters(notebook, FAST=True, DATA="C:\\new")
    assert cell.source == "FAST = True\nDATA = 'C:\\\\new'"
    with pytest.raises(ValueError, match="SPEED"):
        with_parameters(notebook, SPEED=1)


def test_outputs_are_cleaned():
    new, cell = nbformat.v4.new_output, nbformat.v4.new_code_cell("1")
    cell.outputs = [
        new("stream", name="stderr", text="warning"),
        new("stream", name="stdout", text=f"{ROOT}/data\n 10%|# | 1/9 [00:01<00:02, 3.1it/s]\n"),
        new("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
        new("execute_result", {"text/plain": str(ROOT / "x")}, execution_count=7),
    ]
    notebook = clean(nbformat.v4.new_notebook(cells=[cell]))
    assert [o.get("text") or o["data"]["text/plain"] for o in cell.outputs] == ["data\n", "x"]
    assert notebook.cells[0].execution_count == cell.outputs[1].execution_count == 1


@pytest.mark.parametrize(("colours", "kind"), [(3, "image/png"), (256, "image/jpeg")])
def test_large_figures_are_compressed(colours, kind):
    noise = np.random.default_rng(0).integers(0, colours, (20, 30, 3)) * (255 // (colours - 1))
    file = io.BytesIO()
    pixels = Image.fromarray(noise.astype("uint8")).resize((1500, 1000), Image.Resampling.BICUBIC)
    pixels.save(file, "PNG" if kind == "image/png" else "JPEG", quality=100)
    data = {kind: base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    clean(nbformat.v4.new_notebook(cells=[cell]))
    (after,) = [base64.b64decode(v) for k, v in cell.outputs[0].data.items() if k.startswith("image/")]
    assert len(file.getvalue()) > SMALL
    assert len(after) < len(file.getvalue()) / 2
    assert Image.open(io.BytesIO(after)).width == WIDTH
