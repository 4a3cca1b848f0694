"""Options that several of these commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from labelstudio_backend.image_fetch.tokens import read_token_file
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["TOKEN_VARIABLE", "image_options", "read_token", "server_options"]

F = TypeVar("F", bound=Callable[..., Any])

TOKEN_VARIABLE = "LABEL_STUDIO_TOKEN"


def server_options(function: F) -> F:
    """``--url`` and ``--token-file``."""
    for option in reversed(
        [
            click.option(
                "--url",
                default="http://localhost:8080",
                show_default=True,
                metavar="URL",
                help="Label Studio's address.",
            ),
            click.option(
                "--token-file",
                type=INPUT_PATH,
                metavar="FILE",
                help=f"File with Label Studio's token, personal or legacy; by default the variable {TOKEN_VARIABLE}.",
            ),
        ]
    ):
        function = option(function)
    return function


def image_options(function: F) -> F:
    """``--allow-host``, ``--allow-address`` and ``--local-root``."""
    for option in reversed(
        [
            click.option(
                "--allow-host",
                "allow_hosts",
                multiple=True,
                metavar="HOST",
                help="A further host that may be asked for images; may be given again.",
            ),
            click.option(
                "--allow-address",
                "allow_addresses",
                multiple=True,
                metavar="NETWORK",
                help="A network that may be asked although it is not public, such as 10.0.0.0/8; may be given again.",
            ),
            click.option(
                "--local-root",
                type=INPUT_PATH,
                metavar="DIR",
                help="Read /data/local-files/ from this folder instead of asking Label Studio.",
            ),
        ]
    ):
        function = option(function)
    return function


def read_token(token_file: Path | None, *, needed: bool = True) -> str | None:
    """The token of the shared options.

    Raises:
        SettingsError: it cannot be read, or there is none where one is needed.
    """
    if token_file is not None:
        return read_token_file(token_file)
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token and needed:
        raise SettingsError(
            f"no token: give --token-file FILE or set {TOKEN_VARIABLE}; Label Studio shows it under Account & Settings"
        )
    return token or None
