"""Parts of the benchmark that do not know of each other: one that fails costs only itself."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["Figure", "Result", "Section", "format_result", "run_sections"]


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        what: what was measured.
        value: how much.
        unit: of the value.
        target: what it should be, in words; empty where there is no bar.
        met: whether it is so; ``None`` where there is no bar.
        details: other numbers that belong to it, by name.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: in the table.
        work: gives its figures one by one, so that those before an error are kept.
        optional: whether it is left out if time is short.
    """

    name: str
    work: Callable[[], Iterator[Figure]]
    optional: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a section.

    Attributes:
        name: of the section.
        seconds: that it took.
        figures: measured until its end, or until it failed.
        error: the exception in one line; empty if there was none.
        trace: where it was raised.
        skipped: why it did not run; empty if it did.
    """

    name: str
    seconds: float
    figures: tuple[Figure, ...] = ()
    error: str = ""
    trace: str = ""
    skipped: str = ""

    @property
    def failed(self) -> bool:
        """Whether it raised, or a figure misses its bar."""
        return bool(self.error) or any(figure.met is False for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def run_sections(
    sections: Sequence[Section],
    on_result: Callable[[Sequence[Result]], None],
    limit: float = float("inf"),
) -> list[Result]:
    """Run sections one after the other.

    Args:
        sections: in their order.
        on_result: told of all results so far after each section, so that a run that is killed leaves something.
        limit: seconds after which optional sections are not begun.

    Example:
        >>> def broken():
        ...     yield Figure("one", 1.0, "s")
        ...     raise ValueError("no")
        >>> fine = Section("second", lambda: iter([Figure("two", 2.0, "s")]))
        >>> one, two = run_sections([Section("first", broken), fine], lambda results: None)
        >>> one.error, len(one.figures), two.failed
        ('ValueError: no', 1, False)
    """
    started, results = time.perf_counter(), list[Result]()
    for section in sections:
        if section.optional and time.perf_counter() - started > limit:
            results.append(Result(section.name, 0.0, skipped=f"more than {limit:.0f} seconds had passed"))
        else:
            results.append(_run(section))
        on_result(results)
    return results


def _run(section: Section) -> Result:
    begun, figures, error, trace = time.perf_counter(), list[Figure](), "", ""
    try:
        for figure in section.work():
            figures.append(figure)
        if torch.cuda.is_available():
            # What a kernel did wrong is told when somebody waits for it.
            torch.cuda.synchronize()
    except Exception as problem:
        error = " ".join(f"{type(problem).__name__}: {problem}".split())
        trace = traceback.format_exc()
    # Outside the handler, which holds the tensors of the section.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Result(section.name, time.perf_counter() - begun, tuple(figures), error, trace)


def format_result(result: Result) -> str:
    """A section as lines of a table.

    >>> print(format_result(Result("tower", 1.25, (Figure("speed", 12.0, "img/s", "at least 10", True),))))
    == tower (1.2 s)
      speed  12.0 img/s  at least 10: yes
    """
    lines = [f"== {result.name} ({result.seconds:.1f} s)"]
    if result.skipped:
        return f"== {result.name}: skipped, {result.skipped}"
    width = max((len(figure.what) for figure in result.figures), default=0)
    for figure in result.figures:
        verdict = "" if figure.met is None else f"{figure.target}: {'yes' if figure.met else 'NO'}"
        details = ", ".join(f"{name} {_number(value)}" for name, value in figure.details.items())
        parts = [f"  {figure.what:<{width}}  {_number(figure.value)} {figure.unit}", details, verdict]
        lines.append("  ".join(part for part in parts if part).rstrip())
    if result.error:
        lines.append(f"  FAILED: {result.error}")
    return "\n".join(lines)


def _number(value: float) -> str:
    if value and abs(value) < 1e-2:
        return f"{value:.1e}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
