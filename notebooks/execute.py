"""Run notebooks from the top and keep their outputs: `python notebooks/execute.py [--fast] [--check] [01]`.

The notebooks in the repository carry the outputs of one clean, full run, which this command makes: in a fresh
kernel of the Python that runs it, in order, up to the first error. What would differ from one machine to the
next (paths, times, progress bars) is taken out, and large figures are compressed. A notebook that fails, or
that comes out larger than 600 KB, is left as it was.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MAX_BYTES = 600_000  # of a notebook
SMALL = 25_000  # bytes; a larger figure is compressed
WIDTH = 900  # pixels of a figure
COLOURS, QUALITY = 96, 72  # of a compressed drawing, and of a photograph as JPEG
NOISE = re.compile(r"^.*(it/s|s/it|img/s|s/img)\].*\n?|\r", re.MULTILINE)  # what a progress bar leaves behind
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "colab": {"provenance": [], "toc_visible": True},
    "accelerator": "GPU",
}


def notebooks(wanted: list[str] | None = None) -> list[Path]:
    """The numbered notebooks, or those whose names start as wanted."""
    found = sorted(HERE.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in found if not wanted or path.name.startswith(tuple(wanted))]


def with_parameters(notebook: nbformat.NotebookNode, **values: object) -> nbformat.NotebookNode:
    """The notebook with other values in its cell tagged `parameters`.

    Raises:
        ValueError: there is no such parameter.
    """
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in values.items():
        # A function, so that backslashes in a value stay what they are.
        line = f"{name} = {value!r}"
        cell.source, found = re.subn(rf"^{name} = .*$", lambda _, line=line: line, cell.source, flags=re.M)
        if not found:
            raise ValueError(f"expected a parameter {name} in {cell.source!r}")
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 900, **environment: str) -> None:
    """Run all cells in a fresh kernel of this Python that starts in `folder`; outputs go into `notebook`.

    Args:
        timeout: seconds that one cell may take.
        environment: variables for the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # No kernel of another environment, whatever is registered on this machine.
    here = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), kernel_name="python3")
    quiet = ["--log-level=40"]  # it would warn that it listens on a port of this machine
    options = {"timeout": timeout, "record_timing": False, "extra_arguments": quiet}
    client = NotebookClient(notebook, km=here, resources={"metadata": {"path": str(folder)}}, **options)
    # A kernel that was handed over would otherwise stay, with its gigabyte, until this process ends.
    client.execute(env=dict(os.environ, **environment), cleanup_kc=True)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out of the outputs what belongs to this machine or moment, and make large figures small."""
    notebook.metadata = nbformat.from_dict(METADATA)
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [kept for output in cell.outputs if (kept := _clean_output(output, count))]
    return notebook


def _clean_output(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        output.text = _without_paths(NOISE.sub("", output.text))
        return output if output.text.strip() and output.name == "stdout" else None
    data = output.get("data", {})
    if any("widget" in kind for kind in data):  # a progress bar, empty without its kernel
        return None
    for kind in list(data):
        if kind.startswith("text/"):
            data[kind] = _without_paths(data[kind])
    for kind in ("image/png", "image/jpeg"):
        if len(data.get(kind, "")) > SMALL * 4 / 3:
            smaller, content = _compress(kind, base64.b64decode(data.pop(kind)))
            data[smaller] = base64.b64encode(content).decode()
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def _compress(kind: str, content: bytes) -> tuple[str, bytes]:
    """A figure as wide as a page at most, as a drawing of few colours or as a photograph, what is smaller."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    candidates = [(len(content), kind, content)]
    for other, drawn, options in (
        ("image/png", picture.quantize(COLOURS, dither=Image.Dither.NONE), {}),
        ("image/jpeg", picture, {"quality": QUALITY, "progressive": True}),
    ):
        if other == "image/png" and kind != "image/png":  # a photograph would lose its colours
            continue
        file = io.BytesIO()
        drawn.save(file, other.split("/")[1].upper(), optimize=True, **options)
        candidates.append((file.tell(), other, file.getvalue()))
    return min(candidates)[1:]


def _without_paths(text: str) -> str:
    for folder in (f"{ROOT}/", str(ROOT), f"{Path.home()}/"):
        text = text.replace(folder, "")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wanted", nargs="*", help="how the notebooks' names start (01 02); default: all")
    parser.add_argument("--fast", action="store_true", help="run with FAST = True and keep nothing")
    parser.add_argument("--check", action="store_true", help="run in full and keep nothing")
    options = parser.parse_args()
    for path in notebooks(options.wanted):
        notebook, started = nbformat.read(path, as_version=4), time.perf_counter()
        if options.fast:
            with_parameters(notebook, FAST=True)
        execute(notebook, HERE)
        text = nbformat.writes(clean(notebook), indent=1) + "\n"
        seconds, size = time.perf_counter() - started, len(text.encode())
        print(f"{path.name}: {seconds:.0f} s, {size / 1000:.0f} KB", flush=True)
        if size > MAX_BYTES:
            print(f"{path.name}: expected at most {MAX_BYTES / 1000:.0f} KB", file=sys.stderr)
            return 1
        if not (options.fast or options.check):
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
