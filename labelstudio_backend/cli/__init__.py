"""``tcl-annotate label-studio``: the server, batch predictions, new projects and export."""

from __future__ import annotations

import importlib
import importlib.util

import click

from tcl_core.errors import SettingsError

__all__ = ["COMMANDS", "command"]

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("labelstudio_backend.cli.serve", "Run the ML backend."),
    "setup": ("labelstudio_backend.cli.setup", "Create a project with labels and connect the backend."),
    "prelabel": ("labelstudio_backend.cli.prelabel", "Predict all tasks of a project."),
    "export": ("labelstudio_backend.cli.export", "Write a project's annotations as COCO."),
    "clean": ("labelstudio_backend.cli.clean", "Remove predictions of old model versions."),
    "prompts": ("labelstudio_backend.cli.prompts", "List or clear typed prompts."),
    "compose": ("labelstudio_backend.cli.compose", "Write a compose file and a Dockerfile."),
    "benchmark": ("labelstudio_backend.cli.benchmark", "Measure the server under load on this machine."),
}
"""Name of each command, with the module that defines it and its line in the list of commands."""

_NEEDED = ("fastapi", "uvicorn", "httpx", "pydantic", "prometheus_client", "defusedxml", "anyio")


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingsError(
                f"label-studio {cmd_name}: needs {', '.join(missing)}, which is not installed; "
                'run pip install "tcl-annotate[label-studio]"'
            )
        return importlib.import_module(COMMANDS[cmd_name][0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    "label-studio",
    cls=_LazyGroup,
    short_help="Pre-annotate tasks in Label Studio.",
    epilog="""\b
Examples:
  tcl-annotate label-studio serve --model playground --token-file token.txt
  tcl-annotate label-studio setup --url http://localhost:8080 --token-file token.txt --labels labels.yaml
  tcl-annotate label-studio prelabel --url http://localhost:8080 --token-file token.txt --project 1""",
)
def command() -> None:
    """Pre-annotate tasks in Label Studio, and refine them with typed prompts."""
