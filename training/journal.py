"""The record of a run: what ran where, with which code, for how long, and how often it was interrupted.

One file of JSON lines, to which lines are only ever added. Times are those of the session that wrote a line, so a
process that is killed loses only what it did since its last line.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tcl_core.errors import SettingsError, reason_of
from training.checkpoints import difference
from training.phase import StoppedError

__all__ = ["Code", "Journal", "Spent", "code_of", "origin", "read_journal", "spent", "surroundings"]

_PACKAGES = ("torch", "numpy", "open_clip_torch", "pillow", "scikit-image")


@dataclass(frozen=True)
class Code:
    """Which code runs.

    Attributes:
        commit: of the checkout; ``None`` outside of one.
        modified: tracked files that differ from it.
    """

    commit: str | None
    modified: tuple[str, ...] = ()


def code_of(folder: Path, parts: Sequence[str]) -> Code:
    """The commit of a checkout, and what differs from it.

    Args:
        folder: the checkout.
        parts: folders in it that matter.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *parts)
    except (OSError, subprocess.CalledProcessError):
        return Code(None)
    return Code(commit, tuple(line[3:] for line in changed.splitlines()))


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


@dataclass(frozen=True)
class Spent:
    """Time of a part of a run, over all sessions.

    Attributes:
        wall: seconds.
        cpu: CPU seconds of all processes.
    """

    wall: float
    cpu: float


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last line that was cut when its process was killed is left out.

    Raises:
        SettingsError: it cannot be read, or another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: cannot be read: {reason}; choose another folder for the run") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or "event" not in entry:
                raise ValueError
        except ValueError:
            if number == len(lines):
                break
            raise SettingsError(f"{path}: line {number} is damaged; choose another folder for the run") from None
        found.append(entry)
    return found


def spent(entries: Sequence[Mapping[str, Any]]) -> dict[str, Spent]:
    """Time of each part of a run, in the order of the parts.

    Args:
        entries: of `read_journal`.

    Returns:
        The sum over the sessions of what each had spent on a part by its last line about it.
    """
    session, latest = 0, dict[tuple[str, int], Spent]()
    for entry in entries:
        session += entry["event"] in ("start", "resume")
        if "part" in entry and "wall" in entry:
            before = latest.get((entry["part"], session), Spent(0.0, 0.0))
            latest[entry["part"], session] = Spent(max(before.wall, entry["wall"]), max(before.cpu, entry["cpu"]))
    total: dict[str, Spent] = {}
    for (part, _), found in latest.items():
        before = total.get(part, Spent(0.0, 0.0))
        total[part] = Spent(before.wall + found.wall, before.cpu + found.cpu)
    return total


class Journal:
    """Adds lines to the record of a run.

    Args:
        path: the file.
        code: that runs now.
        about: what else the first line says, such as seeds and precision; the same in all sessions of a run.

    Raises:
        SettingsError: the run was begun with other code or settings, or the file cannot be written.
    """

    def __init__(self, path: Path, code: Code, about: Mapping[str, Any]) -> None:
        self._path = path
        self._times: dict[str, Spent] = {}
        self._running: list[tuple[str, float, float]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_cut_line()
        entries = read_journal(path)
        now = json.loads(json.dumps({"commit": code.commit, "modified": code.modified, "about": about}))
        first = next((entry for entry in entries if entry["event"] == "start"), None)
        if first is not None:
            for key, value in now.items():
                if first[key] != value:
                    change = difference("recipe", json.dumps({key: first[key]}), json.dumps({key: value}))
                    raise SettingsError(
                        f"{path}: the run was begun with other code or settings ({change}); go back to them, or choose "
                        "another folder to start anew"
                    )
            if entries[-1]["event"] not in ("interrupted", "failed", "finished"):
                self._write({"event": "cut off", "after": entries[-1]["time"]})
        self._write({"event": "start" if first is None else "resume", **now, **surroundings()})

    def _drop_cut_line(self) -> None:
        content = self._path.read_bytes() if self._path.exists() else b""
        if content and not content.endswith(b"\n"):
            self._path.write_bytes(content[: content.rfind(b"\n") + 1])

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingsError(f"{self._path}: cannot be written: {reason_of(error)}; make room for it") from error

    def _so_far(self, part: str) -> dict[str, float]:
        before = self._times.get(part, Spent(0.0, 0.0))
        wall, cpu = before.wall, before.cpu
        name, began, cpu_before = self._running[-1]
        if name == part:
            wall, cpu = wall + time.perf_counter() - began, cpu + _cpu_seconds() - cpu_before
        return {"wall": round(wall, 2), "cpu": round(cpu, 2)}

    def _pause(self) -> None:
        if self._running:
            name = self._running[-1][0]
            self._times[name] = Spent(*self._so_far(name).values())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the run; the time of a part inside another one counts for the inner one alone."""
        self._pause()
        self._running.append((name, time.perf_counter(), _cpu_seconds()))
        self._write({"event": "begin", "part": name})
        try:
            yield
            self._write({"event": "end", "part": name, **self._so_far(name)})
        except BaseException as error:
            # The innermost part says it, once.
            if not getattr(error, "_in_journal", False):
                stopped = isinstance(error, KeyboardInterrupt | StoppedError)
                event = "interrupted" if stopped else "failed"
                self._write({"event": event, "part": name, "reason": str(error), **self._so_far(name)})
                error._in_journal = True  # type: ignore[attr-defined]
            raise
        finally:
            self._pause()
            self._running.pop()
            if self._running:
                self._running[-1] = (self._running[-1][0], time.perf_counter(), _cpu_seconds())

    def step(self, part: str, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of a step."""
        self._write({"event": "step", "part": part, "step": step, **values, **self._so_far(part)})

    def note(self, event: str, values: Mapping[str, Any]) -> None:
        """Anything else."""
        self._write({"event": event, **values})

    def entries(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return read_journal(self._path)


def _cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def origin(folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Where results come from: `code_of` a checkout, and `surroundings`."""
    code = code_of(folder, parts)
    return {"commit": code.commit, "modified": list(code.modified), **surroundings()}


def surroundings() -> dict[str, Any]:
    """The machine, the version of Python and those of the packages that decide results."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    capabilities = torch.cpu.get_capabilities()
    machine = {
        "system": platform.platform(),
        "processor": capabilities.get("cpu_name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"machine": machine, "python": platform.python_version(), "packages": packages}
