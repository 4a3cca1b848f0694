"""An environment with Ray, and servers of object storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.environment import cluster_python, variables_for
from tests.labelstudio.live.environment import NoEnvironmentError, Process
from tests.labelstudio.live.s3 import S3Server, s3_python
from tests.missing import missing
from tests.ports import free_port


@pytest.fixture(scope="session")
def python() -> Path:
    """Python of an environment with Ray, s3fs and gcsfs."""
    try:
        return cluster_python()
    except NoEnvironmentError as error:
        missing(f"Ray's environment cannot be made: {error}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server with no bucket."""
    try:
        server_python = s3_python()
    except NoEnvironmentError as error:
        missing(f"moto's environment cannot be made: {error}")
    with S3Server(server_python, tmp_path_factory.mktemp("s3"), free_port()) as server:
        yield server


@pytest.fixture(scope="session")
def gcs(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running Google Cloud Storage emulator with the bucket ``photos``."""
    folder, port = tmp_path_factory.mktemp("gcs"), free_port()
    program = str(python.with_name("gcp-storage-emulator"))
    words = [program, "start", f"--port={port}", "--host=127.0.0.1", "--in-memory", "--default-bucket=photos"]
    address = f"http://127.0.0.1:{port}"
    with Process(words, folder / "gcs.log", f"{address}/storage/v1/b", variables_for(), folder):
        yield address
