"""``tcl-annotate label-studio serve``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from labelstudio_backend.cli.options import TOKEN_VARIABLE, image_options, read_token
from labelstudio_backend.settings import (
    merged_settings,
    read_settings_file,
    settings_from,
    settings_from_environment,
)
from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import min_area_option, model_options
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.command(
    "serve",
    short_help="Run the ML backend.",
    epilog="""\b
Examples:
  tcl-annotate label-studio serve --model playground --token-file token.txt
  tcl-annotate label-studio serve --host 0.0.0.0 --auth-file users.txt --config backend.yaml

\b
A settings file:
  model: {min_area: auto, tolerance: easy-to-edit}
  images:
    label_studio_url: http://label-studio:8080
    label_studio_aliases: [http://localhost:8080]
    allow_hosts: [images.example.org]
  queue: 16

\b
Environment variables: TCL_BACKEND_PORT=9091 for --port, and so on for all options; TCL_BACKEND__QUEUE=32 or
TCL_BACKEND__IMAGES__SECONDS=60 for the keys of a settings file. Options come before variables, variables before the
file.""",
    context_settings={"auto_envvar_prefix": "TCL_BACKEND"},
)
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=9090, show_default=True, metavar="N", help="Port.")
@click.option(
    "--auth-file",
    type=INPUT_PATH,
    metavar="FILE",
    help="File with name:password lines; other users are refused.",
)
@click.option("--url", metavar="URL", help="Label Studio's URL. Default: http://localhost:8080.")
@click.option(
    "--token-file",
    type=INPUT_PATH,
    metavar="FILE",
    help="File with the Label Studio token, personal or legacy, to fetch images and replace old predictions. "
    f"Default: the environment variable {TOKEN_VARIABLE}.",
)
@image_options
@min_area_option
@click.option(
    "--tolerance",
    metavar="D",
    help="Maximum deviation of polygons from the masks: exact (none), fine, default, easy-to-edit, or a number of "
    "pixels. Default: easy-to-edit.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of running and queued requests. Default: 16.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of processes that each hold the model. Default: 1; more than one speeds up a GPU that is not busy.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least important messages to log; info logs every request.",
)
@click.option("--state-dir", type=INPUT_PATH, metavar="DIR", help="Folder for typed prompts.")
@click.option(
    "--remember-prompts/--no-remember-prompts",
    default=None,
    help="Whether typed prompts also apply to the next images of a project. Default: yes; anyone who can connect can "
    "then add prompts to any project.",
)
@click.option("--config", "config_file", type=INPUT_PATH, metavar="FILE", help="Settings file (YAML).")
def command(
    model: str,
    refine: bool,
    option_values: Mapping[str, str],
    device: str,
    precision: str,
    backend: str,
    batch_size: int,
    host: str,
    port: int,
    auth_file: Path | None,
    url: str | None,
    token_file: Path | None,
    allow_hosts: tuple[str, ...],
    allow_addresses: tuple[str, ...],
    local_root: Path | None,
    min_area: Any,
    tolerance: str | None,
    queue: int | None,
    workers: int | None,
    log_level: str,
    state_dir: Path | None,
    remember_prompts: bool | None,
    config_file: Path | None,
) -> int:
    """Run the ML backend for Label Studio projects."""
    import uvicorn

    from labelstudio_backend.app import create_app
    from labelstudio_backend.connections import BACKLOG, LogLimit, check_address, limited_protocol
    from labelstudio_backend.middleware import read_auth_file

    file = read_settings_file(config_file) if config_file is not None else {}
    file = merged_settings(file, settings_from_environment(os.environ))
    given = _given(
        model=model,
        refine=refine,
        option_values=option_values,
        device=device,
        precision=precision,
        backend=backend,
        batch_size=batch_size,
        min_area=min_area,
    )
    top = {
        **file,
        "credentials": read_auth_file(auth_file) if auth_file is not None else (),
        "token": read_token(token_file, needed=False),
    }
    chosen = {"queue": queue, "workers": workers, "state_dir": state_dir, "remember_prompts": remember_prompts}
    top |= {key: value for key, value in chosen.items() if value is not None}
    images = {
        "label_studio_url": url,
        "allow_hosts": allow_hosts,
        "allow_addresses": allow_addresses,
        "local_root": local_root,
    }
    from_file = "option_values" not in given and bool(_options_of(file))
    if "option_values" in given:
        given["options"] = {**_options_of(file), **given.pop("option_values")}
    settings = settings_from(top, {**given, "tolerance": tolerance}, images, config_file)
    # Reads the file once: a wrong name ends here, and the hash is known before the first request.
    try:
        settings.model.identity()
    except SettingsError as error:
        raise SettingsError(f"{config_file}: model.options: {error}" if from_file else str(error)) from None
    check_address(host, port)
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not settings.credentials and host not in ("127.0.0.1", "::1", "localhost"):
        click.echo(f"warning: anyone who can reach {host}:{port} can use this server; see --auth-file", err=True)
    if not settings.credentials and settings.remember_prompts:
        click.echo(
            "note: without --auth-file, anyone who can connect can add prompts to any project; "
            "--no-remember-prompts prevents it",
            err=True,
        )
    if settings.token is None:
        click.echo(
            "note: without --token-file, images of Label Studio are read only if it sends a legacy token, and old "
            "predictions stay beside new ones",
            err=True,
        )
    click.echo(f"backend for {settings.images.label_studio_url} at http://{host}:{port}", err=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        log_config=None,
        server_header=False,
        http=limited_protocol(settings.connections),
        ws="none",
        backlog=BACKLOG,
    )
    return EXIT_FINE


def _options_of(file: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method's options in a settings file; whether it is a sound one is judged elsewhere."""
    section = file.get("model")
    options = section.get("options") if isinstance(section, Mapping) else None
    return options if isinstance(options, Mapping) else {}


def _given(**options: Any) -> dict[str, Any]:
    """Options that were written on the command line; the others leave the settings file its say."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in options.items() if context.get_parameter_source(name) is not default}
