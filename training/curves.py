"""Curves of a run as one page: ``python -m training.curves RUN --out curves.svg``."""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tcl_core.errors import SettingsError, reason_of

__all__ = ["draw", "main", "read_log"]

Series = dict[str, list[tuple[float, float]]]

_WIDTH, _HEIGHT, _GAP, _COLUMNS = 260, 120, 50, 3
_LEFT_OUT = {"step", "seconds", "stage", "evaluation", "replaced"}


def read_log(path: Path) -> tuple[Series, list[float]]:
    """Numbers by name over steps, and the steps at which a new stage begins.

    Raises:
        SettingsError: the file cannot be read, or is not a log.
    """
    series: Series = {}
    stages: list[tuple[float, str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for entry in map(json.loads, lines):
            step = float(entry["step"])
            values = {**entry, **entry.get("evaluation", {})}
            for name, value in values.items():
                if name not in _LEFT_OUT and isinstance(value, int | float):
                    series.setdefault(name, []).append((step, float(value)))
            if "stage" in entry and (not stages or stages[-1][1] != entry["stage"]):
                stages.append((step, entry["stage"]))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {reason_of(error)}; pass the .jsonl file of a run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path}: is not a training log ({error}); pass the .jsonl file of a run") from error
    if not series:
        raise SettingsError(f"{path}: contains no steps yet; let the training run longer")
    return series, [step for step, _ in stages[1:]]


def draw(series: Mapping[str, Sequence[tuple[float, float]]], stages: Sequence[float]) -> str:
    """One small chart for each name, as SVG.

    Args:
        series: points (step, value) by name.
        stages: steps that are marked in every chart.
    """
    last = max(step for points in series.values() for step, _ in points)
    rows = math.ceil(len(series) / _COLUMNS)
    width, height = _COLUMNS * (_WIDTH + _GAP) + _GAP, rows * (_HEIGHT + _GAP) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (name, points) in enumerate(series.items()):
        left = _GAP + number % _COLUMNS * (_WIDTH + _GAP)
        top = _GAP + number // _COLUMNS * (_HEIGHT + _GAP)
        low, high = min(value for _, value in points), max(value for _, value in points)
        spread = high - low or 1.0
        at = [
            (left + _WIDTH * step / last, top + _HEIGHT * (1 - (value - low) / spread))
            for step, value in points
            if math.isfinite(value)
        ]
        parts.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{html.escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#ccc"/>')
        for step in stages:
            x = left + _WIDTH * step / last
            parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + _HEIGHT}" stroke="#c60"/>')
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="#06c" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="#06c"/>' for x, y in at if len(at) < 20]
        for value, y in ((high, top + 4), (low, top + _HEIGHT)):
            parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{left + _WIDTH}" y="{top + _HEIGHT + 14}" text-anchor="end">step {last:g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m training.curves", description=__doc__)
    parser.add_argument("log", type=Path, help="the .jsonl file of a phase")
    parser.add_argument("--out", type=Path, required=True, help="SVG file to write")
    options = parser.parse_args(arguments)
    try:
        options.out.write_text(draw(*read_log(options.log)), encoding="utf-8")
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.out}: cannot be written: {reason_of(error)}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
