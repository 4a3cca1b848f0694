"""``tcl-annotate label-studio prompts``."""

from __future__ import annotations

from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.command(
    "prompts",
    short_help="List or clear typed prompts.",
    epilog="""\b
Examples:
  tcl-annotate label-studio prompts
  tcl-annotate label-studio prompts --project 1.1795221295 --clear --label Sofa""",
)
@click.option("--project", metavar="KEY", help="Only this project: its id, or its id and creation time as listed.")
@click.option("--clear", is_flag=True, help="Remove the prompts of the project.")
@click.option("--label", metavar="NAME", help="With --clear: only the prompts of this label.")
@click.option("--state-dir", type=INPUT_PATH, metavar="DIR", help="Folder for typed prompts.")
def command(project: str | None, clear: bool, label: str | None, state_dir: Path | None) -> int:
    """List the prompts that annotators typed, by project and label, or clear them."""
    from labelstudio_backend.prompts import PromptStore, cleared_text
    from labelstudio_backend.settings import default_state_dir

    store = PromptStore((state_dir or default_state_dir()) / "prompts.json")
    projects = {key: prompts for key, prompts in store.all().items() if project in (None, key, key.partition(".")[0])}
    if label is not None and not clear:
        raise SettingsError("--label: requires --clear")
    if clear:
        if project is None:
            raise SettingsError("--clear: requires --project")
        count = sum(store.clear(key, label) for key in projects)
        click.echo(cleared_text(count, label))
        return EXIT_FINE
    for key, labels in sorted(projects.items()):
        for name, prompts in labels.items():
            click.echo(f"project {key}, {name}: {', '.join(prompts)}")
    if not any(prompts for labels in projects.values() for prompts in labels.values()):
        click.echo("no typed prompts yet")
    return EXIT_FINE
