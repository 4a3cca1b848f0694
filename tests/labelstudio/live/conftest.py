"""Fixtures: the server, and our backend beside it as its own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.predictor import Predictor
from tests.chromium import chromium
from tests.labelstudio.live.environment import (
    REPOSITORY,
    TOKEN,
    LabelStudioServer,
    NoEnvironmentError,
    Process,
    label_studio_python,
)
from tests.labelstudio.live.s3 import S3Server, s3_python
from tests.missing import missing
from tests.ports import free_port

SECONDS = 900
BROWSER_ARGUMENTS = (
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1500,1100",
)
BACKEND_USER = "label-studio:backend-secret"


@pytest.fixture(scope="session")
def server_python() -> Path:
    """Python of Label Studio's environment."""
    try:
        return label_studio_python()
    except NoEnvironmentError as error:
        missing(f"Label Studio's environment cannot be made: {error}")


@pytest.fixture(scope="session")
def label_studio(server_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """A running server with an empty data folder."""
    files = tmp_path_factory.mktemp("files")
    # Label Studio reads where S3 is when it starts; S3 itself starts with the first test that needs it.
    s3 = f"http://127.0.0.1:{free_port()}"
    with LabelStudioServer(server_python, tmp_path_factory.mktemp("label studio"), files, s3) as server:
        yield server


@pytest.fixture(scope="session")
def s3(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server with no bucket."""
    try:
        python = s3_python()
    except NoEnvironmentError as error:
        missing(f"moto's environment cannot be made: {error}")
    port = int(label_studio.s3.rpartition(":")[2])
    with S3Server(python, tmp_path_factory.mktemp("s3"), port) as server:
        yield server


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``token.txt`` and ``users.txt``."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "token.txt").write_text(TOKEN + "\n")
    (folder / "users.txt").write_text(BACKEND_USER + "\n")
    return folder


@pytest.fixture(scope="session")
def backend_url(
    label_studio: LabelStudioServer, secrets: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Our backend, which signs in to Label Studio with a personal access token."""
    folder = tmp_path_factory.mktemp("backend")
    personal = label_studio.api("POST", "/api/token/")["token"]
    (folder / "personal.txt").write_text(personal)
    port = free_port()
    words = [sys.executable, "-m", "tcl_core.cli", "label-studio", "serve", "--model", str(model_path)]
    words += ["--port", str(port), "--url", label_studio.url, "--token-file", str(folder / "personal.txt")]
    words += ["--auth-file", str(secrets / "users.txt"), "--state-dir", str(folder), "--min-area", "4"]
    words += ["--allow-host", "127.0.0.1", "--allow-address", "127.0.0.0/8"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    url = f"http://127.0.0.1:{port}"
    with Process(words, folder / "backend.log", f"{url}/health", environment, folder):
        yield url


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser; its pages may take long on a busy machine."""
    with chromium(tmp_path_factory.mktemp("chromium"), BROWSER_ARGUMENTS) as started:
        started.set_page_load_timeout(SECONDS)
        started.set_script_timeout(SECONDS)
        yield started


@pytest.fixture(scope="session")
def predictor(model_path: Path) -> Predictor:
    """The backend's model, in this process, to compare with."""
    options = ModelOptions(str(model_path), min_area=4)
    return Predictor(options.load(), options, cache_bytes=64 << 20)
