"""Processes that work for another one."""

from __future__ import annotations

import os
import threading
from multiprocessing import connection, parent_process


def end_with_parent(*_: object) -> None:
    """To be called in a new process of `multiprocessing`: it ends as soon as the one that made it does.

    However that one ends: a killed process tells its workers nothing, and they would go on, or wait for ever.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
