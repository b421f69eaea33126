"""`from vg_utils import ...`: all is where the face says, and nothing is imported before it is asked for."""

import subprocess
import sys

import pytest

import vg_utils


@pytest.mark.parametrize("name", vg_utils.__all__)
def test_every_name_resolves(name):
    assert getattr(vg_utils, name) is not None
    assert name in dir(vg_utils)


def test_what_it_does_not_have_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'ground_truth'"):
        vg_utils.ground_truth  # noqa: B018


def test_importing_it_costs_nothing():
    code = (
        "import sys, vg_utils; vg_utils.__version__; print({'torch', 'open_clip', 'pandas'} & {*sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_a_question_imports_what_it_needs_and_no_more():
    """Each of these takes a quarter of a second to more than one, whenever `ground` is called."""
    heavy = "pandas", "matplotlib", "open_clip", "transformers", "accelerate"
    program = f"import sys, vg_utils.asking; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
