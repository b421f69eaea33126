"""Processes of their own for tests."""

import os

import pytest


def test_a_fork_gives_back_what_its_function_gives_or_why_it_gives_nothing(forks):
    assert forks.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        forks.run(divmod, 7, 0)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        forks.run(os._exit, 3)
    here, there = os.getpid(), forks.run(os.getpid)
    assert here != there != forks.run(os.getpid)
