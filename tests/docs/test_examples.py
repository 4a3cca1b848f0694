"""Every example of the README and the documentation does what the page says."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from tests.docs.console import parse_console, run_console
from tests.docs.pages import PAGES, REPOSITORY, read_page


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's empty working folder, in which ``tcl-annotate`` is this checkout's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "tcl-annotate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tcl_core.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "110")
    for variable in ("TCL_ANNOTATE_MIRROR", "TCL_ANNOTATE_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if list(read_page(page).examples())])
def test_examples_of_the_page(page: str, empty_folder: Path) -> None:
    for example in read_page(page).examples():
        example.evaluate()


def test_there_are_examples() -> None:
    assert sum(len(list(read_page(page).examples())) for page in PAGES) > 20


def test_console_block_is_split_into_commands() -> None:
    commands = parse_console("$ one \\\n    more\nfirst line\nsecond line\n$ two\n")
    assert [(command.line, command.expected) for command in commands] == [
        ("one \\\n    more", "first line\nsecond line\n"),
        ("two", ""),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "$ echo a\na\n",
        "$ echo a; echo b >&2\na\nb\n",
        "$ echo 1234\n1...4\n",
        "$ false\n$ echo $?\n1\n",
        "$ echo x\n",
        "$ tcl-annotate --version\ntcl-annotate, version ...\n",
        "$ tcl-annotate nonsense\nerror: ...\n$ echo $?\n2\n",
        "$ tcl-annotate \\\n    --version\n",
    ],
)
def test_console_block_that_is_right(source: str) -> None:
    assert run_console(source) is None


@pytest.mark.parametrize(
    "source", ["$ echo a\nb\n", "$ false\n", "$ false\n$ echo $?\n0\n", "$ tcl-annotate nonsense\n"]
)
def test_console_block_that_is_wrong(source: str) -> None:
    assert run_console(source) is not None
