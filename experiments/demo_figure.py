"""Take the screenshot of the page: `python -m experiments.demo_figure`.

Needs the extra `demo`, playwright (`pip install playwright`) and a Chromium that is installed: the page is
served, an example is clicked, and what the browser then shows is written.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vg_utils.files import write_atomically

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1280, 1300  # of the window, in pixels


def find_browser() -> str | None:
    """An installed Chromium or Chrome; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def served(*flags: str) -> Iterator[str]:
    """The address of a page that `python -m vg_utils demo` serves as long as the context lasts.

    Raises:
        RuntimeError: it ended instead; with what it said.
    """
    command = [sys.executable, "-m", "vg_utils", "demo", "--port", "0", *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **streams) as process:
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"the page is at (\S+)", line):
                    break
            else:
                raise RuntimeError("".join(said))
            yield found[1]
        finally:
            process.terminate()


@contextmanager
def browsed(address: str) -> Iterator[Page]:
    """The page in a browser without a window."""
    from playwright.sync_api import sync_playwright

    rooted = hasattr(os, "geteuid") and os.geteuid() == 0  # for whom Chromium has no sandbox
    with sync_playwright() as playwright:
        options = {"executable_path": find_browser(), "args": ["--no-sandbox"] if rooted else []}
        browser = playwright.chromium.launch(**options)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(address)
        page.get_by_role("button", name="Find").wait_for()
        yield page
        browser.close()


def wait_for_answer(page: Page, said: str = "phrases answered") -> None:
    """Until the page says so, and shows each of its images."""
    page.locator("#about").filter(has_text=said).wait_for()
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the first example and write what is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "Visuals/demo.png")
    out = parser.parse_args(arguments).out
    with served() as address, browsed(address) as page:
        page.locator("#examples tbody tr").first.click()
        wait_for_answer(page)
        page.wait_for_timeout(500)  # what fades in
        seen = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    small = seen.convert("RGB").quantize(160)
    write_atomically(out, lambda part: small.save(part, "png", optimize=True))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
