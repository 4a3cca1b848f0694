"""``tcl-annotate label-studio clean``."""

from __future__ import annotations

from pathlib import Path

import click

from labelstudio_backend.cli.options import read_token, server_options
from tcl_core.cli.main import EXIT_FINE
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.command(
    "clean",
    short_help="Remove predictions of old model versions.",
    epilog="""\b
Examples:
  tcl-annotate label-studio clean --token-file token.txt --project 1 --dry-run
  tcl-annotate label-studio clean --token-file token.txt --project 1 --keep playground-0123456789""",
)
@server_options
@click.option("--project", type=click.IntRange(min=1), required=True, metavar="N", help="Project id.")
@click.option(
    "--keep",
    multiple=True,
    metavar="VERSION",
    help="Model version to keep; repeatable. Default: the current ones of the connected backends.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def command(url: str, token_file: Path | None, project: int, keep: tuple[str, ...], dry_run: bool) -> int:
    """Remove the predictions that newer ones of the same model have replaced, and those of tasks that failed.

    Label Studio keeps every prediction and shows the oldest one first. Predictions of other models are kept. Annotators
    who have a task open must load it again before they submit it.
    """
    from labelstudio_backend.client import LabelStudioClient
    from labelstudio_backend.replacing import is_older_version

    token = str(read_token(token_file))
    with LabelStudioClient(url, token) as client:
        found = client.model_versions(project)
        current = keep or tuple(client.backend_versions(project))
        if not current:
            raise SettingsError(
                f"project {project}: no backend is connected that says which model version is current; pass --keep "
                f"VERSION, one of {', '.join(sorted(found)) or '(none)'}"
            )
        if unknown := [version for version in keep if version not in found]:
            raise SettingsError(
                f"--keep {unknown[0]}: project {project} has no predictions of this version, only of "
                f"{', '.join(sorted(found)) or '(none)'}"
            )
        removed = 0
        for version, count in sorted(found.items()):
            old = version not in current and any(is_older_version(version, newest) for newest in current)
            if old:
                removed += count if dry_run else client.delete_version(project, version)
            click.echo(f"{'remove' if old else 'keep'} {version}: {_predictions(count)}")
    click.echo(f"{_predictions(removed)} {'would be ' if dry_run else ''}removed")
    return EXIT_FINE


def _predictions(count: int) -> str:
    return f"{count:,} prediction{'' if count == 1 else 's'}"
