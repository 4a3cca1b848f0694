"""Runs the console blocks of a page: what follows ``$`` is a command, the lines after it are what it prints.

An ellipsis (``...``) in the expected output stands for anything; a command without expected output may print anything.
A command must succeed, unless ``$ echo $?`` follows it and so shows its exit code. A plain ``tcl-annotate`` command is
run in this process, because importing PyTorch for each would take longer than all examples; the rest goes to a shell.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
from dataclasses import dataclass

from sybil import Example
from sybil.parsers.markdown import CodeBlockParser

from tcl_core.cli.main import run

__all__ = ["Command", "ConsoleParser", "parse_console", "run_console"]

_SECONDS_FOR_A_COMMAND = 600
_PLAIN = re.compile(r"tcl-annotate [^|<>;&$*?`#~{}]*")


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the page says that it prints."""

    line: str
    expected: str


def parse_console(source: str) -> list[Command]:
    """Split a console block into its commands; a backslash at the end of a command's line continues it."""
    commands: list[Command] = []
    lines = iter(source.splitlines())
    for line in lines:
        if line.startswith("$ "):
            while line.endswith("\\"):
                line += "\n" + next(lines)
            commands.append(Command(line[2:], ""))
        elif commands:
            commands[-1] = Command(commands[-1].line, f"{commands[-1].expected}{line}\n")
        else:
            raise ValueError(f"a console block begins with a command after '$ ', not with {line!r}")
    return commands


def run_console(source: str) -> str | None:
    """Run a console block in the current folder; returns what is wrong, or ``None``."""
    status = 0
    commands = parse_console(source)
    for index, command in enumerate(commands):
        status, printed = _run_command(command.line, status)
        shown = index + 1 < len(commands) and commands[index + 1].line == "echo $?"
        if status != 0 and not shown:
            return f"$ {command.line}\nended with exit code {status} and printed:\n{printed}"
        if command.expected and not doctest.OutputChecker().check_output(command.expected, printed, doctest.ELLIPSIS):
            return f"$ {command.line}\nshould print:\n{command.expected}\nbut printed:\n{printed}"
    return None


def _run_command(line: str, status: int) -> tuple[int, str]:
    """Run one command; gives its exit code and all it printed. ``status`` is the exit code of the one before."""
    if _PLAIN.fullmatch(line):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return run(shlex.split(line.replace("\\\n", " "))[1:]), output.getvalue()
    done = subprocess.run(
        # The shell of one command knows how the last one ended, as on a terminal.
        ["bash", "-c", f"(exit {status}); {line}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=_SECONDS_FOR_A_COMMAND,
    )
    return done.returncode, done.stdout


class ConsoleParser(CodeBlockParser):
    """Finds the ``console`` blocks of a Markdown page for Sybil."""

    language = "console"

    def evaluate(self, example: Example) -> str | None:
        return run_console(str(example.parsed))
