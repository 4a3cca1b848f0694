"""Work in other processes: in order, and never waited for in vain."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tcl_core.errors import SettingsError
from training.processes import in_order

_SLEEPING = """
import sys
from tests.training.test_processes import slow
from training.processes import in_order
if __name__ == "__main__":
    for each in in_order(slow, range(1000), 2):
        print(each, flush=True)
"""


def square(number: int) -> int:
    return number * number


def slow(number: int) -> int:
    time.sleep(0.05)
    return number


def killed(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def signalled(number: int) -> int:
    # As a terminal and a job scheduler do.
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return number


def failing(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def allocator(_: int) -> str | None:
    return os.environ.get("MALLOC_CONF")


def test_settings_that_keep_memory_are_for_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:-1")
    assert set(in_order(allocator, range(20), 2)) == {None}
    assert os.environ["MALLOC_CONF"] == "dirty_decay_ms:-1"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order(workers: int) -> None:
    assert list(in_order(square, range(50), workers, 7)) == [number * number for number in range(50)]


def test_errors_are_those_of_the_function() -> None:
    for workers in (0, 2):
        made = in_order(failing, range(9), workers)
        assert [next(made) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(made)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_a_killed_process_is_told_of() -> None:
    with pytest.raises(SettingsError, match="ended unexpectedly, .* fewer --workers"):
        list(in_order(killed, range(20), 2))
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="processes are sent signals")
def test_signals_are_for_the_process_that_asked() -> None:
    assert list(in_order(signalled, range(4), 2)) == [0, 1, 2, 3]


def test_closing_ends_the_processes() -> None:
    began = time.monotonic()
    with closing(in_order(slow, range(10_000), 2)) as made:
        assert next(made) == 0
    assert multiprocessing.active_children() == [] and time.monotonic() - began < 60


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by a signal")
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "sleeping.py"
    script.write_text(_SLEEPING)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"0\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(started) >= 2
    assert psutil.wait_procs(started, timeout=60)[1] == []
