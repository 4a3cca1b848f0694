"""A real Label Studio server: its environment under ``build/``, made once, and a process with an empty data folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

from tests.ports import free_port

__all__ = [
    "REPOSITORY",
    "VERSION",
    "LabelStudioServer",
    "NoEnvironmentError",
    "Process",
    "label_studio_python",
    "label_studio_tables",
    "python_with",
    "server_variables",
]

REPOSITORY = Path(__file__).parents[3]
VERSION = "1.23.2"
DATABASE = "label_studio.sqlite3"
ENVIRONMENT_VARIABLE = "TCL_LABEL_STUDIO_ENV"
SECONDS_TO_INSTALL = 3600
SECONDS_TO_START = 1800
TOKEN = "0123456789abcdef0123456789abcdef01234567"
EMAIL, PASSWORD = "admin@example.com", "secret-123"


class NoEnvironmentError(Exception):
    """The server's environment cannot be made here."""


def label_studio_python() -> Path:
    """Python of an environment with Label Studio, which is made if it is not there.

    ``TCL_LABEL_STUDIO_ENV`` names an environment that exists already.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    return python_with([f"label-studio=={VERSION}"], f"label-studio-{VERSION}", ENVIRONMENT_VARIABLE)


def label_studio_tables(python: Path) -> Path:
    """A database that has all tables of Label Studio and nothing in them, made once under ``build/``.

    A server that starts with it is up in seconds, instead of the minute or two that the tables take.

    Args:
        python: of Label Studio's environment.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    path = REPOSITORY / "build" / f"label-studio-{VERSION}-tables.sqlite3"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            (manage,) = python.parent.parent.glob("lib/python3.*/site-packages/label_studio/manage.py")
            (Path(folder) / "data").mkdir()
            variables = server_variables(Path(folder), Path(folder), "http://127.0.0.1")
            done = subprocess.run(
                [str(python), str(manage), "migrate", "--verbosity", "0"],
                env={"PATH": os.environ["PATH"], **variables},
                cwd=folder,
                capture_output=True,
                encoding="utf-8",
                timeout=SECONDS_TO_START,
            )
            if done.returncode != 0:
                raise NoEnvironmentError(f"Label Studio's tables: {done.stderr.strip()[-500:]}")
            os.replace(Path(folder) / "data" / DATABASE, path)
    return path


def python_with(packages: list[str], name: str, variable: str, finish: Callable[[Path], None] | None = None) -> Path:
    """Python of an environment of its own under ``build/``, which is made if it is not there.

    Args:
        packages: what is installed into it.
        name: of its folder.
        variable: environment variable that names an environment that exists already, to be taken instead.
        finish: given the folder once the packages are in it.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    chosen = os.environ.get(variable)
    folder = Path(chosen) if chosen else REPOSITORY / "build" / name
    python = folder / "bin" / "python"
    if chosen:
        if not python.exists():
            raise NoEnvironmentError(f"{variable}={chosen} has no bin/python")
        return python
    stamp = folder / ".installed"
    if not stamp.exists():
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, encoding="utf-8", timeout=SECONDS_TO_INSTALL)
            if done.returncode != 0:
                raise NoEnvironmentError(f"{' '.join(step[1:])} failed: {done.stderr.strip()[-500:]}")
        if finish is not None:
            finish(folder)
        stamp.touch()
    return python


class Process:
    """A server of its own process group, with its output in a file. A context manager.

    Args:
        words: its command line.
        log: file for all it prints.
        health: address that answers with 200 once it is up.
        environment: its variables.
        folder: where it runs.
    """

    def __init__(self, words: list[str], log: Path, health: str, environment: dict[str, str], folder: Path) -> None:
        self._words, self._log, self._health = words, log, health
        self._environment, self._folder = environment, folder
        self._file: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = open(self._log, "wb")
        self._process = subprocess.Popen(
            self._words,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                if httpx.get(self._health, timeout=30, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            tail = self._log.read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, f"{self._words[0]} ended:\n{tail}"
            assert time.monotonic() < deadline, f"{self._words[0]} does not answer:\n{tail}"
            time.sleep(0.5)

    def _stop(self) -> None:
        assert self._process is not None and self._file is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        self._file.close()


def server_variables(folder: Path, files: Path, url: str, s3: str = "") -> dict[str, str]:
    """Variables of a server that needs nothing beyond this machine, see :class:`LabelStudioServer`."""
    settings = {
        "BASE_DATA_DIR": str(folder / "data"),
        "USERNAME": EMAIL,
        "PASSWORD": PASSWORD,
        "USER_TOKEN": TOKEN,
        "ENABLE_LEGACY_API_TOKEN": "true",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(files),
        "HOST": url,
    }
    return {
        "HOME": str(folder),
        "DJANGO_DB": "sqlite",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        # An address that is set here may be on loopback, one in a storage's own settings may not.
        **({"S3_ENDPOINT": s3} if s3 else {}),
        **{f"LABEL_STUDIO_{name}": value for name, value in settings.items()},
    }


class LabelStudioServer(Process):
    """Label Studio on a free port, with empty tables and one user.

    Args:
        python: of its environment.
        folder: for its data.
        files: folder of its local files.
        s3: address of the S3 server that its storages are on.
    """

    def __init__(self, python: Path, folder: Path, files: Path, s3: str = "") -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.files = files
        self.folder = folder
        self.s3 = s3
        (folder / "data").mkdir()
        shutil.copyfile(label_studio_tables(python), folder / "data" / DATABASE)
        environment = {"PATH": os.environ["PATH"], **server_variables(folder, files, self.url, s3)}
        program = str(python.with_name("label-studio"))
        words = [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
        super().__init__(words, folder / "label-studio.log", f"{self.url}/health", environment, folder)
        self._client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Token {TOKEN}"}, timeout=600, trust_env=False
        )

    def api(self, method: str, path: str, **content: Any) -> Any:
        """Call Label Studio's interface; anything but success fails the test."""
        answer = self._client.request(method, path, **content)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:1000]}"
        return answer.json() if answer.content else None
