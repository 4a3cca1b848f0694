"""Compare the speed of this checkout with that of another revision, in one run on this machine.

Times of two runs differ by what else the machine did; here old and new take turns, each in a process of its own, and
the medians over the rounds are compared. A figure's row is found by the words that it has kept in all revisions,
because the rest of its name changes, and rows are added.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

__all__ = [
    "PARTS",
    "BenchmarkError",
    "Comparison",
    "Figure",
    "Part",
    "Row",
    "compare",
    "figure_rows",
    "format_table",
    "last_line",
    "main",
    "parse_rows",
    "worktree",
]

REPOSITORY = Path(__file__).resolve().parents[1]

_EXIT_FINE, _EXIT_SLOWER, _EXIT_FAILED = 0, 1, 2
_LIMIT = 1.05
_ROUNDS = 3
_SCREEN = "1400x900x24"
_MILLISECONDS = 1000
_SECONDS_TO_END = 30
_ROW = re.compile(r"(?P<name>\s*\S.*?)\s{2,}(?P<value>[+-]?\d+(?:\.\d+)?) ?(?P<unit>[A-Za-z]*)(?:\s.*)?")

# The embedded model's first words have plurals that it does not know, so revisions cannot choose the words themselves.
_SEGMENT = """
import runpy, sys
from tcl_core.benchmarks import segment
from tcl_core.vocabulary import Vocabulary
words = ["cat", "sofa", "grass", "tree", "car", "cup", "house", "star"]
segment._vocabularies = lambda model: (Vocabulary.from_options(words[:4]), Vocabulary.from_options(words[4:]))
sys.argv = ["tcl-annotate", "benchmark", "segment", "--repeats", "2"]
runpy.run_module("tcl_core.cli", run_name="__main__", alter_sys=True)
"""
# Memory, which grows over many runs, is not compared.
_NAPARI = """
from napari_tcl.benchmark import format_rows, run
print(format_rows(run(1)))
"""
# Calls beside batches are not decisive; as many as by default would take minutes.
_LABEL_STUDIO = """
import runpy, sys
from labelstudio_backend import benchmark
benchmark._CALLS, benchmark._BATCH = 10, 4
sys.argv = ["tcl-annotate", "label-studio", "benchmark"]
runpy.run_module("tcl_core.cli", run_name="__main__", alter_sys=True)
"""


class BenchmarkError(Exception):
    """The comparison cannot be made; the message is one sentence."""


class _InterruptedError(Exception):
    """A signal asks for the end."""


@dataclass(frozen=True)
class Row:
    """One printed row.

    Attributes:
        name: as printed.
        value: in seconds where the unit is one of time.
        unit: ``s`` for all times.
    """

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Figure:
    """A row that is compared: the smaller, the better.

    Attributes:
        name: in the table.
        start: a regular expression for the start of the printed name, in all revisions.
        decisive: whether the comparison fails if it is slower.
    """

    name: str
    start: str
    decisive: bool = False


@dataclass(frozen=True)
class Part:
    """A benchmark.

    Attributes:
        name: on the command line.
        code: a program that prints rows.
        figures: those that are compared; other rows are not.
    """

    name: str
    code: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Comparison:
    """Medians of one figure.

    Attributes:
        figure: what was measured.
        old: median of the other revision.
        new: median of this checkout.
        unit: of both.
    """

    figure: Figure
    old: float
    new: float
    unit: str

    @property
    def ratio(self) -> float:
        """New by old; 1 if both are 0, infinite if only the old one is."""
        if self.old == 0:
            return 1.0 if self.new == 0 else float("inf")
        return self.new / self.old


PARTS = {
    part.name: part
    for part in (
        Part(
            "segment",
            _SEGMENT,
            (
                Figure("first prompt on new images", r"first prompt on new"),
                Figure("second prompt on cached images", r"second prompt on cached", decisive=True),
                Figure("encode one window at a time", r"encode one window", decisive=True),
                Figure("encode windows in batches", r"encode \d+ windows", decisive=True),
            ),
        ),
        Part(
            "napari",
            _NAPARI,
            (
                Figure("napari: longest gap of the event loop", r"longest gap"),
                Figure("napari: from Cancel to the end of the work", r"from Cancel"),
                Figure("napari: second prompt", r"new prompt", decisive=True),
                Figure("napari: second prompt until it is drawn", r"from the click"),
                Figure("napari: threshold until it is drawn", r"threshold", decisive=True),
            ),
        ),
        Part(
            "label-studio",
            _LABEL_STUDIO,
            (
                Figure("Label Studio: /health during batches", r"/health"),
                Figure("Label Studio: /setup during batches", r"/setup"),
                Figure("Label Studio: second prompt's share of the first one's time", r"second prompt", decisive=True),
            ),
        ),
    )
}


def parse_rows(text: str) -> list[Row]:
    r"""Rows among what a benchmark printed: a name, at least two spaces, a number and perhaps a unit.

    >>> parse_rows("model playground\nfirst prompt  2.000 s\nnew prompt     80 ms  0.028 of the first run")
    [Row(name='first prompt', value=2.0, unit='s'), Row(name='new prompt', value=0.08, unit='s')]
    """
    rows = []
    for line in text.splitlines():
        match = _ROW.fullmatch(line)
        if match is None:
            continue
        value, unit = float(match["value"]), match["unit"]
        # Without a unit, the first word of the target follows after one space.
        if unit not in ("s", "ms", "MiB"):
            unit = ""
        if unit == "ms":
            value, unit = value / _MILLISECONDS, "s"
        rows.append(Row(match["name"].strip(), value, unit))
    return rows


def figure_rows(part: Part, text: str) -> list[Row]:
    """The rows of the part's figures, in the figures' order.

    Raises:
        BenchmarkError: a figure has no row, or several.
    """
    rows = parse_rows(text)
    found = []
    for figure in part.figures:
        fitting = [row for row in rows if re.match(figure.start, row.name)]
        if len(fitting) != 1:
            raise BenchmarkError(
                f"the benchmark {part.name} printed {len(fitting)} rows for {figure.name!r} instead of one."
            )
        found += fitting
    return found


def compare(part: Part, old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]]) -> list[Comparison]:
    """Medians over the rounds.

    Args:
        part: which benchmark.
        old: rows of each round, from :func:`figure_rows`.
        new: the same of this checkout.

    Raises:
        BenchmarkError: a figure's unit is not the same everywhere.
    """
    comparisons = []
    for figure, olds, news in zip(part.figures, zip(*old, strict=True), zip(*new, strict=True), strict=True):
        units = {row.unit for row in (*olds, *news)}
        if len(units) != 1:
            named = " and ".join(repr(unit) for unit in sorted(units))
            raise BenchmarkError(f"the figure {figure.name!r} has different units, {named}.")
        medians = [statistics.median(row.value for row in rows) for rows in (olds, news)]
        comparisons.append(Comparison(figure, medians[0], medians[1], units.pop()))
    return comparisons


def format_table(comparisons: Sequence[Comparison], limit: float) -> str:
    """A table of figures, medians, ratios, and whether the ratios are within the limit.

    >>> print(format_table([Comparison(Figure("encode", "encode", decisive=True), 2.0, 1.5, "s")], 1.05))
    figure        old      new  new/old  at most 1.05
    encode *  2000 ms  1500 ms    0.750  yes
    * decisive
    """
    verdict = f"at most {limit:g}"
    cells = [("figure", "old", "new", "new/old", verdict)]
    for one in comparisons:
        within = "yes" if one.ratio <= limit else "NO" if one.figure.decisive else "no, not decisive"
        mark = " *" if one.figure.decisive else ""
        old, new = (_format_value(value, one.unit) for value in (one.old, one.new))
        cells.append((one.figure.name + mark, old, new, f"{one.ratio:.3f}", within))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
        for row in cells
    ]
    return "\n".join([*lines, "* decisive"])


def _format_value(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * _MILLISECONDS:.0f} ms"
    return f"{value:.3f} {unit}".rstrip()


def last_line(text: str) -> str:
    """The last line of a text that is not empty, without the spaces around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print the table.

    Returns:
        1 if a decisive figure exceeds the limit, 2 if the comparison cannot be made, else 0.
    """
    options = _parser().parse_args(arguments)
    parts = [PARTS[name] for name in dict.fromkeys(options.parts)]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        comparisons = _measure(options.revision, parts, options.rounds)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except _InterruptedError:
        print("interrupted", file=sys.stderr)
        return _EXIT_FAILED
    print(format_table(comparisons, options.limit))
    slower = any(one.figure.decisive and one.ratio > options.limit for one in comparisons)
    return _EXIT_SLOWER if slower else _EXIT_FINE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Compare the speed of this checkout with another revision's. Let the machine do nothing else.",
        epilog="Example:\n  python benchmarks/compare_revision.py 56cd0a1 --rounds 5 --parts segment napari\n\n"
        "The exit code is 1 if a decisive figure exceeds the limit, and 2 if the comparison cannot be made.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revision", help="what to compare with: a commit, branch or tag")
    parser.add_argument("--rounds", type=_positive, default=_ROUNDS, metavar="N", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--limit", type=float, default=_LIMIT, metavar="RATIO", help="largest new/old (default: %(default)s)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: what is being cleaned up should not be interrupted again.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    raise _InterruptedError


def _measure(revision: str, parts: Sequence[Part], rounds: int) -> list[Comparison]:
    environment = dict(os.environ)
    with ExitStack() as stack:
        tree = stack.enter_context(worktree(revision))
        if PARTS["napari"] in parts and not {"DISPLAY", "WAYLAND_DISPLAY"} & environment.keys():
            environment |= stack.enter_context(_display())
        sides = {f"old ({revision})": tree, "new": REPOSITORY}
        total = rounds * len(parts) * len(sides)
        measured: dict[tuple[str, str], list[list[Row]]] = {}
        done = 0
        for number in range(rounds):
            for part in parts:
                for side, folder in sides.items():
                    done += 1
                    print(f"[{done}/{total}] round {number + 1}: {part.name}, {side}", file=sys.stderr, flush=True)
                    rows = _run(part, side, folder, environment)
                    measured.setdefault((part.name, side), []).append(rows)
    old, new = sides
    return [one for part in parts for one in compare(part, measured[part.name, old], measured[part.name, new])]


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """A checkout of a revision in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="compare-revision-") as folder:
        tree = Path(folder) / "tree"
        try:
            commit = _commit(revision)
            _git("worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            # After an interruption git can be in the middle of making it,
            # and keeps it locked; before that, there is none.
            with suppress(BenchmarkError):
                _git("worktree", "remove", "--force", "--force", str(tree))


def _commit(revision: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").split()[-1]
    except BenchmarkError as error:
        raise BenchmarkError(f"the revision {revision!r} is not found ({error})") from error


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"git cannot be run: {error}.") from error
    if result.returncode:
        raise BenchmarkError(f"git {arguments[0]} failed: {last_line(result.stderr)}")
    return result.stdout


@contextmanager
def _display() -> Iterator[dict[str, str]]:
    """Environment variables of an X server of its own."""
    if shutil.which("Xvfb") is None:
        raise BenchmarkError("the benchmark napari needs a display or Xvfb; leave it out with --parts.")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", _SCREEN, "+extension", "GLX", "-nolisten", "tcp"]
    server = subprocess.Popen(
        command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        os.close(write)
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()
        if not number:
            raise BenchmarkError("Xvfb does not start.")
        yield {"DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb"}
    finally:
        server.terminate()
        server.wait(_SECONDS_TO_END)


def _run(part: Part, side: str, tree: Path, environment: Mapping[str, str]) -> list[Row]:
    # The current folder comes before PYTHONPATH, which the processes that it starts need.
    process = subprocess.Popen(
        [sys.executable, "-c", part.code],
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate()
    finally:
        # With whatever it started.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    failed = BenchmarkError(
        f"the benchmark {part.name}, {side}, ended with exit code {process.returncode}: {last_line(errors)}"
    )
    if process.returncode not in (0, 1):
        raise failed
    try:
        return figure_rows(part, output)
    except BenchmarkError:
        # Some end with 1 after their figures, because one misses its target.
        if process.returncode == 1:
            raise failed from None
        raise


if __name__ == "__main__":
    sys.exit(main())
