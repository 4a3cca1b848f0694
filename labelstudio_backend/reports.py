"""What became of tasks, for people: counts and reasons by project, in the server's status."""

from __future__ import annotations

import re
from collections import Counter, deque
from typing import Any, Literal

__all__ = ["Reports", "TaskOutcome", "plain_reason"]

TaskOutcome = Literal["done", "empty", "failed"]

_RECENT = 200
_PROJECTS = 100
_REASONS = 50
_ADDRESS = re.compile(r"^[^\s:]*[/.:][^\s]*: ")


def plain_reason(reason: str) -> str:
    """A reason without the address that it begins with, so that equal ones can be counted.

    >>> plain_reason("http://host/a.png: the server responded with 404")
    'the server responded with 404'
    """
    return _ADDRESS.sub("", reason)


class Reports:
    """Counts and reasons, within a bound."""

    def __init__(self) -> None:
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._counts: dict[str, Counter[str]] = {}
        self._reasons: dict[str, Counter[str]] = {}

    def add(self, project: str, task: int | None, outcome: TaskOutcome, reason: str = "") -> None:
        """Note what became of a task.

        Args:
            project: its key.
            task: its number.
            outcome: ``"empty"`` is a prediction without regions.
            reason: why there is no prediction, or none with regions.
        """
        if project not in self._counts and len(self._counts) >= _PROJECTS:
            oldest = next(iter(self._counts))
            del self._counts[oldest], self._reasons[oldest]
        self._counts.setdefault(project, Counter())[outcome] += 1
        reasons = self._reasons.setdefault(project, Counter())
        if reason:
            plain = plain_reason(reason)
            reasons[plain if plain in reasons or len(reasons) < _REASONS else "other reasons"] += 1
        if outcome != "done":
            self._recent.append({"project": project, "task": task, "outcome": outcome, "reason": reason})

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The newest tasks without a prediction, and why."""
        return [entry for entry in self._recent if entry["outcome"] == "failed"]

    @property
    def empty(self) -> list[dict[str, Any]]:
        """The newest tasks whose prediction has no regions, and why."""
        return [entry for entry in self._recent if entry["outcome"] == "empty"]

    def summary(self) -> dict[str, Any]:
        """Counts of tasks by outcome and by reason, for each project."""
        return {
            project: {**{name: counts[name] for name in ("done", "empty", "failed")}, "reasons": dict(reasons)}
            for (project, counts), reasons in zip(self._counts.items(), self._reasons.values(), strict=True)
        }
