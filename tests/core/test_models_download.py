from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import save

from tcl_core.errors import SettingsError, TclError, WeightsError
from tcl_core.models.download import check_file, fetch_file, pin_path
from tcl_core.models.manifest import RemoteFile, load_manifest, parse_manifest
from tcl_core.models.paths import download_folder, home_folder, mirrored, models_folder
from tcl_core.models.reasons import TransferError
from tcl_core.models.sources import _check_response
from tcl_core.models.transfer_progress import Transfer

from .hub_server import HubServer, serve_hub
from .weights_server import FileServer, serve

CONTENT = save({"x": torch.arange(50_000, dtype=torch.float32)})
OTHER = save({"x": torch.ones(50_000)})
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TCL_ANNOTATE_MIRROR", raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(FileServer(CONTENT)) as running:
        yield running


def fetch(server: FileServer, folder: Path, **values: object) -> Path:
    return fetch_file(server.file(**values), folder, progress=False)


def start_fetch(server: FileServer, folder: Path) -> subprocess.Popen[bytes]:
    code = (
        "import json, sys, pathlib\n"
        "from tcl_core.models.manifest import RemoteFile\n"
        "from tcl_core.models.download import fetch_file\n"
        "fetch_file(RemoteFile(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]), progress=False)\n"
    )
    values = json.dumps(dataclasses.asdict(server.file()))
    return subprocess.Popen([sys.executable, "-c", code, values, str(folder)])


def names(folder: Path) -> set[str]:
    # Lock files stay: deleting one would let two processes hold different locks of the same name.
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_download_once(server: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "Prüf ordner"
    path = fetch(server, folder, sha256=SHA256, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert fetch(server, folder, sha256=SHA256, size=len(CONTENT)) == path
    assert len(server.requests) == 1
    assert names(folder) == {"file.safetensors"}


@pytest.mark.parametrize("cut", [0, 5, 60_000])
def test_truncated_answer(server: FileServer, tmp_path: Path, cut: int) -> None:
    server.cuts = [cut]
    with pytest.raises(WeightsError, match="file.safetensors could not .*: the connection ended before all 200072"):
        fetch(server, tmp_path)
    assert names(tmp_path) == set()
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_killed_run_starts_anew(server: FileServer, tmp_path: Path) -> None:
    server.gate = threading.Event()
    process = start_fetch(server, tmp_path)
    try:
        while process.poll() is None and not server.requests:
            time.sleep(0.01)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        server.gate.set()
    assert "file.safetensors" not in names(tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == {"file.safetensors", "file.safetensors.pin.json"}


def test_truncated_without_announced_length(server: FileServer, tmp_path: Path) -> None:
    server.announce_length = False
    server.cuts = [60_000]
    with pytest.raises(WeightsError, match="has 60000 bytes instead of"):
        fetch(server, tmp_path, size=len(CONTENT))
    server.cuts = [60_000]
    with pytest.raises(WeightsError, match="incomplete file"):
        fetch(server, tmp_path)
    assert names(tmp_path) == set()


def test_wrong_hash_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"SHA-256 {SHA256} instead of {'0' * 64}"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("announced", [True, False])
def test_wrong_size(server: FileServer, tmp_path: Path, announced: bool) -> None:
    server.announce_length = announced
    with pytest.raises(WeightsError, match="100[ ;]"):
        fetch(server, tmp_path, size=100)
    assert names(tmp_path) == set()


def test_error_page_with_status_200(server: FileServer, tmp_path: Path) -> None:
    server.content, server.content_type = b"<html>please log in</html>", "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="web page instead of the file"):
        fetch(server, tmp_path)
    server.content_type = "application/octet-stream"
    for filename in ("file.safetensors", "tcl.pth"):
        with pytest.raises(WeightsError, match="perhaps an error page"):
            fetch(server, tmp_path, filename=filename)
    assert names(tmp_path) == set()


def test_not_found_names_file_address_and_folder(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(WeightsError) as error:
        fetch(server, tmp_path)
    for part in ("404", "file.safetensors", server.file().url, str(tmp_path)):
        assert part in str(error.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "401 Unauthorized; .*HF_TOKEN"), (403, "HF_TOKEN"), (503, "503 Service Unavailable; try again later")],
)
def test_refusals_name_the_remedy(server: FileServer, tmp_path: Path, status: int, message: str) -> None:
    server.statuses = [status]
    with pytest.raises(WeightsError, match=f"^file.safetensors could not be downloaded from .*{message}"):
        fetch(server, tmp_path)
    assert names(tmp_path) == set()


def test_no_network_names_file_address_and_folder(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        offline = FileServer(CONTENT, port=unused.getsockname()[1])
        with pytest.raises(WeightsError) as error:
            fetch(offline, tmp_path)
    for part in (
        "no connection: Connection refused",
        "file.safetensors",
        offline.file().url,
        str(tmp_path),
        "if this machine has no network access",
    ):
        assert part in str(error.value)
    # What the message tells people to do works.
    (tmp_path / "file.safetensors").write_bytes(CONTENT)
    assert fetch(offline, tmp_path) == tmp_path / "file.safetensors"


def test_first_download_is_pinned(server: FileServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    assert check_file(server.file(), tmp_path) == SHA256
    path.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f"the first download had {SHA256}"):
        check_file(server.file(), tmp_path)
    with pytest.raises(WeightsError, match="the first download had"):
        fetch(server, tmp_path)
    path.unlink()
    server.content = OTHER
    with pytest.raises(WeightsError, match="the first download had"):
        fetch(server, tmp_path)
    assert names(tmp_path) == {"file.safetensors.pin.json"}
    pin_path(server.file(), tmp_path).unlink()
    assert fetch(server, tmp_path).read_bytes() == OTHER


def test_damaged_pin_is_not_ignored(server: FileServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    for content in ("", "[]", "{}", "\0"):
        pin_path(server.file(), tmp_path).write_text(content)
        with pytest.raises(WeightsError, match="pinned hash cannot be read"):
            check_file(server.file(), tmp_path)


def test_missing_file_is_not_fetched_by_a_check(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="models fetch file"):
        check_file(server.file(), tmp_path)
    assert not server.requests


def test_mirror_address(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", server.base + "/mirror/")
    path = fetch(server, tmp_path, url="https://unreachable.invalid/a/b%20c.safetensors?x=1")
    assert path.read_bytes() == CONTENT
    assert server.requests[0]["path"] == "/mirror/a/b%20c.safetensors?x=1"
    server.statuses = [404]
    with pytest.raises(WeightsError, match="through the mirror"):
        fetch(server, tmp_path / "other")


def test_mirror_folder(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", str(mirror))
    url = "https://unreachable.invalid/a/b%20c.safetensors"
    with pytest.raises(WeightsError, match="No such file"):
        fetch(server, tmp_path / "d", url=url)
    (mirror / "a").mkdir(parents=True)
    (mirror / "a" / "b c.safetensors").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "d", url=url, sha256=SHA256).read_bytes() == CONTENT
    with pytest.raises(WeightsError, match="instead of"):
        fetch(server, tmp_path / "e", url=url, sha256="1" * 64)
    assert not server.requests


def test_mirror_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("ftp://host/x", "file:///tmp", "http://"):
        monkeypatch.setenv("TCL_ANNOTATE_MIRROR", value)
        with pytest.raises(SettingsError, match="TCL_ANNOTATE_MIRROR"):
            mirrored("https://host/file")


def test_redirects(server: FileServer, tmp_path: Path) -> None:
    with serve(FileServer(b"", location=server.file().url)) as front:
        assert fetch(front, tmp_path / "a").read_bytes() == CONTENT
        for target in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
            front.location = target
            with pytest.raises(WeightsError, match=f"redirects to {target}, which is not https:// or http://"):
                fetch(front, tmp_path / "b")
        front.location = front.file().url
        with pytest.raises(WeightsError, match="Exceeded 30 redirects"):
            fetch(front, tmp_path / "b")
        front.location = "http://127.0.0.1:9/file"
        with pytest.raises(WeightsError, match="no connection"):
            fetch(front, tmp_path / "b")
        front.location = "http://[broken"
        with pytest.raises(WeightsError, match="Invalid"):
            fetch(front, tmp_path / "b")


def test_redirects_never_leave_https() -> None:
    response = requests.Response()
    response.url, response.status_code = "https://host/file", 302
    for target in ("http://host/file", "file:///etc/hostname", "HTTP://host/file"):
        response.headers["Location"] = target
        with pytest.raises(TransferError, match=f"redirects to {target}, which is not https://$"):
            _check_response(response, None)
    for target in ("https://cdn/file", "/elsewhere"):
        response.headers["Location"] = target
        _check_response(response, None)


@pytest.mark.slow
def test_processes_share_one_download(server: FileServer, tmp_path: Path) -> None:
    server.pause = 0.2
    processes = [start_fetch(server, tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "file.safetensors").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_threads_share_one_download(server: FileServer, tmp_path: Path) -> None:
    server.pause = 0.2
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(server, tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.requests) == 1


@pytest.mark.parametrize("mirror", [False, True])
def test_full_disk(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool) -> None:
    if mirror:
        (tmp_path / "mirror/some/where").mkdir(parents=True)
        (tmp_path / "mirror/some/where/file.safetensors").write_bytes(CONTENT)
        monkeypatch.setenv("TCL_ANNOTATE_MIRROR", str(tmp_path / "mirror"))
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, limits[1]))
    try:
        with pytest.raises(WeightsError, match=r"cannot be written: File too large .*MB are free.*TCL_ANNOTATE_HOME"):
            fetch(server, tmp_path / "downloads")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path / "downloads") == set()
    assert fetch(server, tmp_path / "downloads").read_bytes() == CONTENT


@pytest.mark.parametrize("progress", [False, True])
def test_progress(server: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    fetch_file(server.file(), tmp_path / "a", progress=progress)
    server.announce_length = False
    fetch_file(server.file(), tmp_path / "b", progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("file.safetensors: 100%" in err) if progress else err == ""


def test_folder_that_cannot_be_made(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="download folder cannot be used.*TCL_ANNOTATE_HOME"):
        fetch(server, tmp_path / "file" / "downloads")


def test_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    assert (home_folder(), download_folder()) == (tmp_path / "home", tmp_path / "home" / "downloads")
    assert models_folder() == tmp_path / "home" / "models"
    monkeypatch.delenv("TCL_ANNOTATE_HOME")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert home_folder() == tmp_path / "tcl-annotate"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert home_folder() == Path.home() / ".cache" / "tcl-annotate"


@pytest.mark.parametrize("protocol", [2, 4])
def test_checkpoints_of_both_formats_are_known(server: FileServer, tmp_path: Path, protocol: int) -> None:
    for filename, zipped in (("new.pth", True), ("old.pt", False), ("old.bin", False)):
        path = tmp_path / "made"
        torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        server.content = path.read_bytes()
        assert fetch(server, tmp_path / "downloads", filename=filename).read_bytes() == server.content
    server.content = pickle.dumps({"x": 1}, protocol=protocol)
    with pytest.raises(WeightsError, match="is not a PyTorch checkpoint"):
        fetch(server, tmp_path / "downloads", filename="other.bin")


def test_manifest_of_the_package() -> None:
    manifest = load_manifest()
    assert manifest.models["playground"].files == ()
    assert [file.filename for file in manifest.models["tcl-vit-b16"].files] == [
        "tcl.pth",
        "clip-vit-b16-openai.safetensors",
    ]
    assert all(file.url.startswith("https://") and file.license for file in manifest.files.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "https://"}, "url"),
        ({"filename": "../x"}, "filename"),
        ({"filename": ".hidden"}, "filename"),
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"sha256": "ABC"}, "sha256"),
    ],
)
def test_manifest_is_checked(change: dict[str, object], message: str) -> None:
    file = {"filename": "x", "url": "https://host/x", "size": None, "sha256": None, "license": "MIT", "source": "s"}
    model = {"method": "tcl", "description": "d", "license": "MIT", "source": "s", "checkpoint": "f"}
    entry = {"format": 1, "files": {"f": file}, "models": {"m": model}, "clips": {}}
    assert parse_manifest(entry).models["m"].files[0].filename == "x"
    with pytest.raises(TclError, match=f"files.f.{message}"):
        parse_manifest({**entry, "files": {"f": {**file, **change}}})
    for broken, text in [
        ({**entry, "format": 2}, "format"),
        ({**entry, "models": {"m": {**model, "checkpoint": "g"}}}, "not listed"),
        ({**entry, "models": {"m": {**model, "asset": "a"}}}, "either"),
        ({**entry, "clips": {"x": "f"}}, "clips.x"),
    ]:
        with pytest.raises(TclError, match=text):
            parse_manifest(broken)


def test_progress_is_told_and_can_cancel(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    told: list[Transfer] = []

    def stop(transfer: Transfer) -> None:
        told.append(transfer)
        raise Enough

    def check(folder: Path, file: RemoteFile) -> None:
        told.clear()
        with pytest.raises(Enough):
            fetch_file(file, folder, progress=stop)
        assert len(told) == 1 and 0 < told[0].done <= len(CONTENT)
        assert not {name for name in names(folder) if not name.endswith(".hub")}
        told.clear()
        assert fetch_file(file, folder, progress=told.append).read_bytes() == CONTENT
        assert {transfer.file_name for transfer in told} == {file.filename}
        assert told[-1].done == told[-1].total == len(CONTENT)
        assert [transfer.done for transfer in told] == sorted(transfer.done for transfer in told)

    check(tmp_path / "web", server.file())
    with serve_hub(HubServer({"a/b": {"file.safetensors": CONTENT}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        check(tmp_path / "hub", hub.file("a/b", "file.safetensors"))
    (tmp_path / "mirror/a").mkdir(parents=True)
    (tmp_path / "mirror/a/file.safetensors").write_bytes(CONTENT)
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", str(tmp_path / "mirror"))
    check(tmp_path / "copied", server.file(url="https://unreachable.invalid/a/file.safetensors"))
