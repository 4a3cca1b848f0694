"""Credentials and sizes, in front of an application that does nothing."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from labelstudio_backend import middleware
from labelstudio_backend.middleware import BasicAuth, BodyLimit, NoTracebacks, read_auth_file
from tcl_core.errors import SettingsError


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/health")
    @app.get("/status")
    async def fine() -> dict[str, str]:
        return {}

    @app.post("/predict")
    async def take(body: dict[str, Any]) -> dict[str, int]:
        return {"keys": len(body)}

    @app.post("/webhook")
    async def ignore(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret-in-a-message")

    app.add_middleware(BodyLimit, max_bytes=1000)
    app.add_middleware(BasicAuth, credentials=("u1:p1", "ünï:pass:word"))
    app.add_middleware(NoTracebacks)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("pair", ["u1:p1", "ünï:pass:word"])
def test_right_credentials(pair: str, client: TestClient) -> None:
    assert client.get("/status", headers=basic(pair)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("u1:p2"),
        basic("u1"),
        basic(""),
        basic("u1:p1x"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic ***"},
        {"Authorization": "Bearer " + base64.b64encode(b"u1:p1").decode()},
        {"Authorization": "u1:p1"},
    ],
)
def test_wrong_and_missing_credentials(headers: dict[str, str], client: TestClient) -> None:
    for path in ("/status", "/predict", "/openapi.json", "/no-such-path", "/health/", "//health"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
        assert "p1" not in answer.text


def test_health_and_webhooks_need_none(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    assert client.post("/webhook", json={"large": "x" * 5000}).json() == {"bytes": 0}


def test_all_pairs_are_compared_in_constant_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    original = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return original(one, other)

    monkeypatch.setattr(middleware.hmac, "compare_digest", compare)
    assert client.get("/status", headers=basic("u1:p1")).status_code in (200, 401)
    assert compared == [b"u1:p1", "ünï:pass:word".encode()]


def test_a_body_declared_as_ten_gigabytes_is_refused_unread(client: TestClient) -> None:
    headers = {**basic("u1:p1"), "Content-Length": str(10 << 30), "Content-Type": "application/json"}
    answer = client.post("/predict", headers=headers, content=b"{}")
    assert answer.status_code == 413 and "larger than 1000 bytes" in answer.json()["detail"]


def test_a_body_of_undeclared_length_is_cut_off(client: TestClient) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000:
            sent += 100
            yield b" " * 100

    assert client.post("/predict", headers=basic("u1:p1"), content=parts()).status_code == 413


@pytest.mark.parametrize("length", ["-5", "ten", "1e9"])
def test_a_length_that_is_none_is_refused(length: str, client: TestClient) -> None:
    answer = client.post("/predict", headers={**basic("u1:p1"), "Content-Length": length}, content=b"{}")
    assert answer.status_code == 413


def test_a_body_within_the_limit_arrives(client: TestClient) -> None:
    assert client.post("/predict", headers=basic("u1:p1"), json={"a": 1, "b": 2}).json() == {"keys": 2}


def test_an_error_shows_neither_traceback_nor_message(client: TestClient) -> None:
    answer = client.get("/broken", headers=basic("u1:p1"))
    assert answer.status_code == 500
    assert "secret" not in answer.text and "Traceback" not in answer.text and "RuntimeError" not in answer.text


def test_auth_file(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("# people\nu1:p1\n\nu2:with:colon\n")
    assert read_auth_file(path) == ("u1:p1", "u2:with:colon")
    for text in ("", "# nobody\n", "u1\n", ":p\n", "u:\n"):
        path.write_text(text)
        with pytest.raises(SettingsError, match="users.txt"):
            read_auth_file(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_auth_file(tmp_path / "missing")
