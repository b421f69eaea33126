"""`python -m vg_utils` and `vg-utils`: see `vg_utils.cli`."""

import atexit
import gc
import sys
from typing import NoReturn

from vg_utils.cli import main


def program() -> NoReturn:
    """The command line as a process of its own."""
    # torch, torchvision and timm make a million objects that stay to the end. To look for garbage among them
    # takes a second and more, half of it while they are imported and half at the end.
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)
    sys.exit(main())


if __name__ == "__main__":
    program()
