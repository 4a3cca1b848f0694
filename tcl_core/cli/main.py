"""Entry point of the command line: the group of commands, and what becomes of errors.

A command is a module that defines ``command``; it is imported only when it is asked for, so that ``--help`` does not
wait for the network's library. To add one, write the module and put a line into `COMMANDS`; another package brings one
by an entry point of the group ``tcl_annotate.commands``, whose value is a click command.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import click

import tcl_core
from tcl_core.errors import SettingsError, TclError, is_full, is_out_of_memory, reason_of, remedy_of
from tcl_core.plugins import installed, load

__all__ = ["COMMANDS", "cli", "main", "run"]

COMMANDS: dict[str, tuple[str, str]] = {
    "prelabel": ("tcl_core.cli.prelabel", "Label images from text and write a COCO file."),
    "segment": ("tcl_core.cli.segment", "Segment one image and print a summary."),
    "compare": ("tcl_core.cli.compare", "Compare several models side by side on the same images."),
    "convert": ("tcl_core.cli.convert", "Convert annotations or masks to COCO, YOLO or semantic masks."),
    "validate-coco": ("tcl_core.cli.validate_coco", "Check a COCO file and print each issue with its location."),
    "evaluate": ("tcl_core.cli.evaluate", "Score models on benchmarks or on your own annotated images."),
    "score": ("tcl_core.cli.score", "Score detections against ground truth with COCO's metric."),
    "archive": ("tcl_core.cli.archive", "Find references of labels in your own unlabeled images."),
    "models": ("tcl_core.cli.models", "List, fetch, import and quantize models."),
    "benchmark": ("tcl_core.cli.benchmark", "Measure polygons and speed on this machine."),
    "playground": ("tcl_core.cli.playground", "Draw sample scenes and score a model on them."),
}
"""Name of each command of the core, with the module that defines it and its line in the list of commands."""

EXIT_FINE, EXIT_ISSUES, EXIT_BAD_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED = 0, 1, 2, 70, 130


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which they are meant to be read."""
        return [*COMMANDS, *_installed(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now, or ``None``."""
        if cmd_name in COMMANDS:
            return importlib.import_module(COMMANDS[cmd_name][0]).command
        if cmd_name in _installed():
            return _load(_installed()[cmd_name])
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands; of the core's, from the table alone."""
        lines = [(name, line) for name, (_, line) in COMMANDS.items()]
        for name, point in _installed().items():
            try:
                lines.append((name, _load(point).get_short_help_str(limit=80)))
            except SettingsError:
                lines.append((name, "(cannot be loaded; run it to see why)"))
        with formatter.section("Commands"):
            formatter.write_dl(lines)


def _installed() -> dict[str, EntryPoint]:
    """Commands of installed packages, by name; the core's own come first."""
    found = installed("tcl_annotate.commands")
    return {name: found[name] for name in sorted(found) if name not in COMMANDS}


def _load(point: EntryPoint) -> click.Command:
    return load(point, "the command", click.Command)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  tcl-annotate prelabel photos --labels labels.yaml --model playground --out labels.json --preview preview
  tcl-annotate segment room.jpg --label "Sofa=sofa,couch" --label Lamp --out overlay.png
  tcl-annotate validate-coco labels.json --images photos
  tcl-annotate score --gt annotations.json --dt labels.json

Exit codes: 0 success, 1 finished but issues were found or inputs skipped, 2 invalid input, 130 interrupted.""",
)
@click.version_option(tcl_core.__version__, prog_name="tcl-annotate")
def cli() -> None:
    """Pre-label images from text: masks, polygons that share their borders, and pixel-exact COCO."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every error becomes one line on the standard error stream.

    Args:
        arguments: words after the program's name; those of the process by default.
    """
    _accept_any_name()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Commands find the words in the root context, to say how a run that was stopped goes on.
        result = cli.main(args=words, prog_name="tcl-annotate", standalone_mode=False, obj=words)
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_FINE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "tcl-annotate"
        return _error(f"{error.format_message().rstrip('.')}; see '{command} --help'")
    except click.ClickException as error:
        return _error(error.format_message())
    except TclError as error:
        return _error(str(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain once more while it closes the stream.
        _drop_output()
        return EXIT_ISSUES
    except OSError as error:
        if not is_full(error):
            return _internal(error)
        _drop_output()
        place = error.filename or "standard output or a temporary file"
        return _error(f"{place} cannot be written: {reason_of(error)}; {remedy_of(error)} and run the command again")
    except Exception as error:
        return _error(_memory_message(error)) if is_out_of_memory(error) else _internal(error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(run(arguments))


def _error(message: str) -> int:
    click.echo(f"error: {message}", err=True)
    return EXIT_BAD_INPUT


def _memory_message(error: Exception) -> str:
    if "CUDA" in str(error) or "CUBLAS" in str(error):
        return "not enough free GPU memory; use a smaller --batch-size, another --device, or smaller images"
    return "not enough free memory; use a smaller --batch-size, or smaller images"


def _internal(error: Exception) -> int:
    if os.environ.get("TCL_ANNOTATE_DEBUG") == "1":
        traceback.print_exception(error)
    message = " ".join(str(error).split())
    click.echo(
        f"internal error: {type(error).__name__}: {message} (set TCL_ANNOTATE_DEBUG=1 for the traceback)", err=True
    )
    return EXIT_INTERNAL


def _drop_output() -> None:
    """Let what is still held back for standard output go nowhere, or Python would fail once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _accept_any_name() -> None:
    """File names need not be valid text; printing one must not end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
