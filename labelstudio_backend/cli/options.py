"""Options that several of these commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from labelstudio_backend.image_fetch.tokens import check_token, read_token_file
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
                help="Label Studio's URL.",
            ),
            click.option(
                "--token-file",
                type=INPUT_PATH,
                metavar="FILE",
                help="File with the Label Studio token, personal or legacy. Default: the environment variable "
                f"{TOKEN_VARIABLE}.",
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
                help="Additional host to fetch images from; repeatable.",
            ),
            click.option(
                "--allow-address",
                "allow_addresses",
                multiple=True,
                metavar="NETWORK",
                help="Non-public network to fetch images from, such as 10.0.0.0/8; repeatable.",
            ),
            click.option(
                "--local-root",
                type=INPUT_PATH,
                metavar="DIR",
                help="Read /data/local-files/ from this folder instead of Label Studio.",
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
            f"no token: pass --token-file FILE or set {TOKEN_VARIABLE}; see Account & Settings in Label Studio"
        )
    return check_token(token, TOKEN_VARIABLE) if token else None
