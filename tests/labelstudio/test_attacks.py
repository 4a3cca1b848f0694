"""What the security page says about connections, bodies and restarts: a running server under attack on loopback."""

from __future__ import annotations

import base64
import io
import os
import resource
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.labelstudio.live.environment import REPOSITORY, Process
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("attacked server")]

FILES = 1024
"""The usual bound of open files of a process."""
HALF_OPEN = 1100
# Runs the command in a process that may open as many files as usual, whatever the tests may.
LIMITED = (
    "import resource, sys; from tcl_core.cli.main import main; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES})); sys.argv[0] = 'tcl-annotate'; main()"
)
SETTINGS = """
images: {label_studio_url: "http://127.0.0.1:9", max_bytes: 300000000}
model: {min_area: 4, max_pixels: 1000000}
max_names: 100
max_body_bytes: 20000000
connections: {header_seconds: 3, body_seconds: 4, send_seconds: 4, max_bodies_bytes: 30000000}
"""
CONFIG = (
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="cat"/></BrushLabels></View>'
)


@dataclass(frozen=True)
class Attacked:
    """A running server.

    Attributes:
        port: on loopback.
        log: all that it printed.
    """

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, content: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(content)
        return connection

    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/status", timeout=60, trust_env=False).json()

    @property
    def pid(self) -> int:
        """Of the server itself, the parent of its worker."""
        worker = self.status()["worker_pid"]
        return int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])

    def memory(self) -> int:
        """Bytes that the server holds."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def processor_seconds(self) -> float:
        """What the server and its worker have computed so far; unlike a clock, it does not see other programs."""
        ticks = 0
        for pid in (self.pid, self.status()["worker_pid"]):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def soon(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "settings.yaml").write_text(SETTINGS)
    port = free_port()
    words = [sys.executable, "-c", LIMITED, "label-studio", "serve", "--model", str(model_path), "--port", str(port)]
    words += ["--config", str(folder / "settings.yaml"), "--state-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with Process(words, folder / "server.log", f"http://127.0.0.1:{port}/health", environment, folder):
        found = Attacked(port, folder / "server.log")
        soon(lambda: found.status()["state"] == "ready", "the model is loaded", 600)
        yield found


@contextmanager
def more_files() -> Iterator[None]:
    """Enough open files for the attacker."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 4096)), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def closed_by_server(connection: socket.socket) -> bool:
    """Whether the other side has ended a connection, without waiting for it."""
    connection.settimeout(0)
    try:
        return connection.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def image(width: int, height: int) -> str:
    encoded = io.BytesIO()
    Image.new("L", (width, height)).save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def predict(server: Attacked, text: str | None = None, config: str = CONFIG, url: str = "") -> httpx.Response:
    typed = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": [text]}}
    body = {
        "tasks": [{"id": 1, "data": {"image": url or image(64, 48)}}],
        "project": "1.1",
        "label_config": config,
        "params": {"context": None if text is None else {"result": [typed]}},
    }
    return httpx.post(f"{server.url}/predict", json=body, timeout=120, trust_env=False)


def test_half_open_connections_keep_nobody_out(server: Attacked) -> None:
    """Slow headers: more of them than a process may open files."""
    size = server.log.stat().st_size
    held: list[socket.socket] = []
    quiet = [health_seconds(server) for _ in range(9)]
    attacked = []
    try:
        with more_files():
            for number in range(HALF_OPEN):
                held.append(server.connect(b"GET /health HTTP/1.1\r\nHos"))
                if number % 100 == 99:
                    attacked.append(health_seconds(server))
            attacked += [health_seconds(server) for _ in range(5)]
            assert server.files() < FILES
            # Whoever holds more than there may be loses the oldest first.
            assert closed_by_server(held[0]) and sum(map(closed_by_server, held)) >= HALF_OPEN - 512
            soon(lambda: all(map(closed_by_server, held)), "connections without a request are closed", 60)
    finally:
        for connection in held:
            connection.close()
    # Not until the attackers are gone; how long a request takes at all is the machine's affair.
    usual = statistics.median(attacked)
    assert usual < max(1, 20 * statistics.median(quiet)), f"/health took {usual:.2f} s, {max(attacked):.2f} s at most"
    assert server.log.stat().st_size - size < 1 << 20
    assert predict(server).status_code == 200


def health_seconds(server: Attacked) -> float:
    began = time.monotonic()
    assert httpx.get(f"{server.url}/health", timeout=60, trust_env=False).status_code == 200
    return time.monotonic() - began


def test_a_second_request_may_be_as_slow_as_the_first(server: Attacked) -> None:
    """On a connection that has been answered already."""
    with closing(server.connect(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")) as connection:
        assert b"200 OK" in connection.recv(4096)
        connection.sendall(b"GET /health HTTP/1.1\r\nHos")
        soon(lambda: closed_by_server(connection), "the connection is closed", 30)


def test_a_body_that_does_not_come_is_not_waited_for(server: Attacked) -> None:
    head = b"POST /setup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with closing(server.connect(head)) as connection:
        assert b"408" in connection.recv(4096)
        soon(lambda: closed_by_server(connection), "the connection is closed", 30)


def test_bodies_that_nobody_needs_are_not_kept(server: Attacked) -> None:
    """The webhook needs no credentials."""
    before = server.memory()
    held = []
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 209715300\r\n\r\n"
    for path in (b"/webhook", b"/webhook", b"/health", b"/versions", b"/no-such-page", b"/status"):
        connection = server.connect(head % path)
        held.append(connection)
        try:
            for _ in range(60):
                connection.sendall(b" " * (1 << 20))
        except OSError:
            # Answered and closed before it has said everything.
            pass
    assert server.memory() - before < 64 << 20
    for connection in held:
        connection.close()


def test_a_webhook_is_answered(server: Attacked) -> None:
    answer = httpx.post(f"{server.url}/webhook", json={"annotation": "x" * 200_000}, timeout=60, trust_env=False)
    assert answer.json() == {"status": "ignored"}


def test_all_bodies_together_have_a_bound(server: Attacked) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 19000000\r\n\r\n"
    before = server.memory()
    first = server.connect(head)
    first.sendall(b" " * 18_000_000)
    with closing(first), closing(server.connect(head)) as second:
        second.settimeout(60)
        try:
            second.sendall(b" " * 18_000_000)
        except OSError:
            pass
        assert b"503" in second.recv(4096)
    soon(lambda: server.memory() - before < 64 << 20, "the memory is given back", 60)
    # What was held is counted no more.
    soon(lambda: predict(server).status_code == 200, "requests are taken again", 60)


def test_a_client_that_takes_no_answer_is_left(server: Attacked) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    before = server.files()
    with closing(connection):
        connection.settimeout(1)
        try:
            for _ in range(4000):
                connection.sendall(request * 50)
        except OSError:
            pass
        soon(lambda: server.files() < before, "the connection is closed", 60)
    health_seconds(server)


def test_requests_that_are_none_do_not_fill_the_log(server: Attacked) -> None:
    size = server.log.stat().st_size
    for _ in range(1000):
        with closing(server.connect(b"\x00\x01 nonsense\r\n\r\n")) as connection:
            connection.recv(4096)
    assert server.log.stat().st_size - size < 200_000


def test_a_malformed_token_is_not_taken(server: Attacked) -> None:
    """It came from a request, went into a header, and every later prediction failed."""
    for token in ("tökén", "two words", "line\nbreak", "x" * 1999 + "\x00"):
        body = {"project": "1.1", "schema": CONFIG, "hostname": "http://127.0.0.1:9", "access_token": token}
        assert httpx.post(f"{server.url}/setup", json=body, timeout=60, trust_env=False).status_code == 200
        answer = predict(server, url="/data/upload/1/a.png")
        assert answer.status_code == 200 and "could not be fetched" in answer.text
    assert "no: without a token" in server.status()["old_predictions_replaced"]
    body["access_token"] = "0123456789abcdef"
    assert httpx.post(f"{server.url}/setup", json=body, timeout=60, trust_env=False).status_code == 200
    assert server.status()["old_predictions_replaced"] == "yes"


def test_large_images_and_vocabularies_are_refused_at_once(server: Attacked) -> None:
    """Within the settings; the others would hold the model for many seconds."""
    before = server.processor_seconds()
    answer = predict(server, url=image(12_000, 12_000))
    (result,) = answer.json()["results"][0]["result"]
    assert "12000 x 12000" in result["value"]["text"][1] and "max_pixels" in result["value"]["text"][1]
    many = "".join(f'<Label value="label {number}"/>' for number in range(10_000))
    answer = predict(server, config=CONFIG.replace('<Label value="cat"/>', many))
    assert answer.status_code == 200 and "10000 labels and prompts, more than 100" in answer.text
    answer = predict(server, "cat", config=CONFIG.replace('<Label value="cat"/>', many))
    assert answer.status_code == 200 and "max_names" in answer.text
    # Taken as they are, the first took 19 and the second 17 seconds.
    assert server.processor_seconds() - before < 8


def test_anybody_can_add_prompts_and_the_status_says_so(server: Attacked) -> None:
    assert "from anybody" in server.status()["typed_prompts"]
    log = server.log.read_text()
    assert "anyone who can connect can add prompts" in log and "--no-remember-prompts" in log
    assert "old predictions stay beside new ones" in log


def test_a_worker_that_is_killed_while_it_loads_is_started_again(server: Attacked) -> None:
    """As often as it takes: the lack of memory that killed it may pass. Three starts in a row were the end before."""
    ready = server.status()["worker_pid"]
    os.kill(ready, signal.SIGKILL)
    killed = {ready}
    deadline = time.monotonic() + 300
    while len(killed) < 4 and time.monotonic() < deadline:
        status = server.status()
        pid = status["worker_pid"]
        if pid is not None and pid not in killed and status["state"] == "loading":
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    assert len(killed) == 4
    soon(lambda: server.status()["state"] == "ready", "the model is loaded again", 300)
    assert predict(server, "cat").status_code == 200
