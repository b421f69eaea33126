"""Processes of their own for tests, without a start of Python and without imports in each: forks.

The first fork is taken when all tests are collected: it has imported everything and has run nothing, so it
has neither threads nor a test's patches. It waits for functions to run, and runs each in a fork of itself.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection


class Forks:
    """Runs functions in forks of the process as it was when this was made."""

    def __init__(self) -> None:
        self._asked, requests = Pipe()
        self._pid = os.fork()
        if not self._pid:
            self._asked.close()  # so that the end of this process's parent is the end of `requests`
            try:
                _serve(requests)
            finally:  # of this process and of its forks, whatever happens: none goes on with the tests
                os._exit(1)
        requests.close()

    def run(self, function: Callable, *arguments: object) -> object:
        """What the function returns; it and all it takes and gives can be pickled.

        Raises:
            RuntimeError: it raised, with its traceback, or its process died.
        """
        self._asked.send((function, arguments))
        result, problem = self._asked.recv()
        if problem:
            raise RuntimeError(f"{function.__qualname__}, in a process of its own: {problem}")
        return result

    def close(self) -> None:
        self._asked.close()
        os.waitpid(self._pid, 0)


def _serve(requests: Connection) -> None:
    """One request at a time, until nobody is there to ask."""
    while True:
        try:
            function, arguments = requests.recv()
        except EOFError:
            os._exit(0)
        pid = os.fork()
        if not pid:
            _answer(requests, function, arguments)
        if status := os.waitpid(pid, 0)[1]:
            requests.send((None, f"it ended with status {os.waitstatus_to_exitcode(status)}"))


def _answer(requests: Connection, function: Callable, arguments: tuple) -> None:
    try:
        answer = function(*arguments), ""
    except BaseException:
        answer = None, traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    requests.send(answer)
    os._exit(0)
