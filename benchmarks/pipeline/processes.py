"""A run of ``tcl-annotate prelabel``, watched from outside: time and memory of all its processes."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare_revision import REPOSITORY, BenchmarkError, last_line

__all__ = ["WatchedRun", "descendants", "proportional_megabytes", "watch"]

_SECONDS_BETWEEN_SAMPLES = 1.0


@dataclass(frozen=True)
class WatchedRun:
    """What a run took.

    Attributes:
        seconds: from its start to its end, imports and loading included.
        processor_seconds: of all its processes.
        others: share of all cores that other processes of the machine took meanwhile.
        megabytes: highest sum of the proportional set sizes of its processes.
        samples: images in the journal, and megabytes that belong to no file, at each look. How much of a library's file
            counts for these processes depends on who else uses it.
        said: what it printed.
    """

    seconds: float
    processor_seconds: float
    others: float
    megabytes: float
    samples: tuple[tuple[int, float], ...]
    said: str

    @property
    def stages(self) -> str:
        """The line about the stages; empty where a revision prints none."""
        found = re.search(r"^stages: (.*)$", self.said, re.MULTILINE)
        return "" if found is None else found[1]


def watch(words: Sequence[str], out: Path, tree: Path = REPOSITORY) -> WatchedRun:
    """Run ``tcl-annotate`` of a checkout to its end.

    Args:
        words: its arguments.
        out: what it writes; a journal beside it tells how far it is.
        tree: the checkout.

    Raises:
        BenchmarkError: it failed.
    """
    journal = out.with_name(out.name + ".journal")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    log = out.with_suffix(".log")
    before, busy = resource.getrusage(resource.RUSAGE_CHILDREN), _busy_seconds()
    started = time.perf_counter()
    samples: list[tuple[int, float]] = []
    sizes: list[float] = []
    with open(log, "w+", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tcl_core.cli", *words], env=environment, cwd=tree, stdout=file, stderr=file
        )
        lines = position = 0
        while True:
            try:
                code = process.wait(_SECONDS_BETWEEN_SAMPLES)
                break
            except subprocess.TimeoutExpired:
                pass
            if journal.exists():
                with open(journal, "rb") as results:
                    results.seek(position)
                    new = results.read()
                lines, position = lines + new.count(b"\n"), position + len(new)
            sizes.append(proportional_megabytes(process.pid))
            samples.append((max(0, lines - 1), proportional_megabytes(process.pid, "Pss_Anon")))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    others = max(0.0, _busy_seconds() - busy - used) / (seconds * (os.cpu_count() or 1))
    said = log.read_text(encoding="utf-8")
    if code not in (0, 1):
        raise BenchmarkError(f"tcl-annotate ended with code {code}: {last_line(said)}")
    return WatchedRun(seconds, used, others, max(sizes, default=0.0), tuple(samples), said)


def proportional_megabytes(pid: int, kind: str = "Pss") -> float:
    """Sum of the proportional set sizes of a process and all below it; 0 once it has ended.

    Args:
        pid: of the process.
        kind: a row of ``smaps_rollup``: ``Pss``, or ``Pss_Anon`` for what belongs to no file.
    """
    total = 0
    for each in (pid, *descendants(pid)):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(rf"^{kind}:\s+(\d+)", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


def descendants(pid: int) -> list[int]:
    """Numbers of all processes below one."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _busy_seconds() -> float:
    """Seconds that all cores have worked since the machine started."""
    user, nice, system, _, _, interrupts, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
