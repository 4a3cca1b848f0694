"""A real S3 server: moto's, in an environment of its own under ``build/``, made once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self
from urllib.parse import quote

import httpx

from tests.labelstudio.live.environment import Process, python_with

__all__ = ["S3Server", "s3_python"]

VERSION = "5.2.5"
ENVIRONMENT_VARIABLE = "TCL_MOTO_ENV"


def s3_python() -> Path:
    """Python of an environment with moto's server; ``TCL_MOTO_ENV`` names one that exists already.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    return python_with([f"moto[s3,server]=={VERSION}"], f"moto-{VERSION}", ENVIRONMENT_VARIABLE)


class S3Server(Process):
    """An S3 server on loopback, which keeps its objects in memory.

    Args:
        python: of its environment.
        folder: for its log.
        port: where it listens.
    """

    def __init__(self, python: Path, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        words = [str(python.with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        super().__init__(words, folder / "moto.log", f"{self.url}/moto-api/data.json", environment, folder)
        self._client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def put(self, bucket: str, key: str, content: bytes, kind: str = "image/png") -> str:
        """Store an object, in a bucket that is made if need be; returns its ``s3://`` address."""
        headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
        self._client.put(f"/{bucket}", headers=headers)
        answer = self._client.put(f"/{bucket}/{quote(key)}", content=content, headers={**headers, "Content-Type": kind})
        assert answer.is_success, answer.text
        return f"s3://{bucket}/{key}"
