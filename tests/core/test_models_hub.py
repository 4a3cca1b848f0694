"""Files of the Hugging Face hub, from one on the loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from tcl_core.errors import WeightsError
from tcl_core.models.download import check_file, fetch_file, pin_path
from tcl_core.models.manifest import HubFile, RemoteFile, load_manifest

from .hub_server import HubServer, serve_hub

REPO, NAME = "org/a-model", "open_clip_model.safetensors"
CONTENT = save({"x": torch.arange(50_000, dtype=torch.float32)})
OTHER = save({"x": torch.ones(60_000)})


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for variable in ("TCL_ANNOTATE_MIRROR", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
    # The library hands on ten megabytes at a time, and pauses before it tries again.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))


@pytest.fixture(params=[False, True], ids=["direct", "redirected"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub(HubServer({REPO: {NAME: CONTENT}}, redirect=request.param)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def fetch(hub: HubServer, folder: Path, name: str = NAME, **values: object) -> Path:
    return fetch_file(hub.file(REPO, name, **values), folder, progress=False)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_addresses_of_the_hub() -> None:
    def hub(url: str) -> HubFile | None:
        return RemoteFile("f", "f", url, None, None, "MIT", "s").hub  # type: ignore[call-arg]

    base = "https://huggingface.co"
    assert hub(f"{base}/a/b/resolve/main/c/d.bin?download=true") == ("a/b", "main", "c/d.bin")
    assert hub(f"{base}/a/resolve/refs%2Fpr%2F1/d%20e.bin") == ("a", "refs/pr/1", "d e.bin")
    for other in (
        f"{base}/datasets/a/b/resolve/main/c",
        f"{base}/a/b/blob/main/c",
        "https://huggingface.co.example/a/b/resolve/main/c",
        "http://huggingface.co/a/b/resolve/main/c",
        "https://github.com/a/b/resolve/main/c",
    ):
        assert hub(other) is None
    files = load_manifest().files
    assert files["clip-vit-b16-openai"].hub == ("timm/vit_base_patch16_clip_224.openai", "main", NAME)
    assert files["tcl-v1.0.0"].hub is None


def test_download_once(hub: HubServer, tmp_path: Path) -> None:
    path = fetch(hub, tmp_path)
    assert path == tmp_path / NAME and path.read_bytes() == CONTENT
    assert fetch(hub, tmp_path) == path
    assert names(tmp_path) == {NAME, f"{NAME}.pin.json"}
    # One question and one answer, for the commit that the question led to; nothing about who asks.
    asked = [(request["method"], request["path"]) for request in hub.requests if "/storage/" not in request["path"]]
    assert asked == [
        ("HEAD", f"/{REPO}/resolve/main/{NAME}"),
        ("GET", f"/{REPO}/resolve/{hub.commit(REPO)}/{NAME}"),
    ]
    assert all("torch" not in request["user-agent"] for request in hub.requests)


def test_files_in_folders_and_on_disk(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "stored").write_bytes(OTHER)
    hub.repos["org/other"] = {"sub folder/x.safetensors": tmp_path / "stored"}
    url = "https://huggingface.co/org/other/resolve/main/sub%20folder/x.safetensors"
    path = fetch_file(hub.file(REPO, "kept.safetensors", url=url), tmp_path / "d", progress=False)
    assert path.read_bytes() == OTHER


def test_a_later_call_continues(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [60_000, 0, 0, 0, 0, 0, 0]
    message = f"{NAME} could not .*: the connection ended after 60000 of {len(CONTENT)} bytes; they are kept"
    with pytest.raises(WeightsError, match=message):
        fetch(hub, tmp_path)
    assert names(tmp_path) == {f".{NAME}.hub"}
    hub.cuts.clear()
    hub.requests.clear()
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    assert set(hub.ranges_asked()) == {"bytes=60000-"}
    assert names(tmp_path) == {NAME, f"{NAME}.pin.json"}


def test_cut_answers_are_continued_at_once(hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Versions of the library before 1.20 leave this to the next call.
    hub.cuts = [60_000, 20_000]
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    assert list(dict.fromkeys(hub.ranges_asked())) == ["", "bytes=60000-", "bytes=80000-"]
    assert capfd.readouterr() == ("", "")


def test_a_killed_run_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    code = (
        "import json, sys, pathlib\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
        "from tcl_core.models.manifest import RemoteFile\n"
        "from tcl_core.models.download import fetch_file\n"
        "fetch_file(RemoteFile(**json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]), progress=False)\n"
    )
    values = json.dumps(dataclasses.asdict(hub.file(REPO, NAME)))
    process = subprocess.Popen([sys.executable, "-c", code, values, str(tmp_path)])

    def received() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob(".*.hub/*"))

    try:
        while process.poll() is None and received() < 50_000:
            time.sleep(0.01)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        hub.gate.set()
    kept = received()
    hub.requests.clear()
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    assert set(hub.ranges_asked()) == {f"bytes={kept}-"}


def test_hub_without_ranges_restarts(hub: HubServer, tmp_path: Path) -> None:
    hub.ranges = False
    hub.cuts = [60_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(WeightsError):
        fetch(hub, tmp_path)
    hub.cuts.clear()
    assert fetch(hub, tmp_path).read_bytes() == CONTENT


def test_file_changed_between_parts(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [60_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(WeightsError):
        fetch(hub, tmp_path)
    hub.cuts.clear()
    hub.requests.clear()
    hub.repos[REPO][NAME] = OTHER
    assert fetch(hub, tmp_path).read_bytes() == OTHER
    assert set(hub.ranges_asked()) == {""}


@pytest.mark.parametrize("kept", [len(CONTENT), len(CONTENT) + 1, 0])
def test_any_remainder_of_an_earlier_run_is_of_use_or_replaced(hub: HubServer, tmp_path: Path, kept: int) -> None:
    hub.cuts = [60_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(WeightsError):
        fetch(hub, tmp_path)
    hub.cuts.clear()
    (beginning,) = tmp_path.glob(".*.hub/*")
    beginning.write_bytes((CONTENT + b"x")[:kept])
    assert fetch(hub, tmp_path).read_bytes() == CONTENT


def test_damage_on_the_way(hub: HubServer, tmp_path: Path) -> None:
    hub.damaged[NAME] = CONTENT[:-1] + b"\1"
    with pytest.raises(WeightsError, match="does not match the SHA-256 that the hub announced; run the command again"):
        fetch(hub, tmp_path)
    hub.damaged[NAME] = CONTENT[:-8]
    with pytest.raises(WeightsError, match=f"ended after {len(CONTENT) - 8} of {len(CONTENT)} bytes|SHA-256"):
        fetch(hub, tmp_path)
    hub.damaged[NAME] = CONTENT + b"more"
    with pytest.raises(WeightsError, match=f"sent more than the {len(CONTENT)} bytes|SHA-256"):
        fetch(hub, tmp_path)
    hub.damaged.clear()
    assert fetch(hub, tmp_path).read_bytes() == CONTENT


def test_file_changed_since_the_first_download(hub: HubServer, tmp_path: Path) -> None:
    fetch(hub, tmp_path).unlink()
    hub.repos[REPO][NAME] = OTHER
    with pytest.raises(WeightsError, match="the first download had"):
        fetch(hub, tmp_path)
    assert names(tmp_path) == {f"{NAME}.pin.json"}
    pin_path(hub.file(REPO, NAME), tmp_path).unlink()
    fetch(hub, tmp_path)
    check_file(hub.file(REPO, NAME), tmp_path)
    with pytest.raises(WeightsError, match="instead of 0000"):
        fetch(hub, tmp_path / "other", sha256="0" * 64)


def test_error_page_is_not_pinned(hub: HubServer, tmp_path: Path) -> None:
    hub.repos[REPO][NAME] = b"<html>please log in</html>"
    with pytest.raises(WeightsError, match="perhaps an error page"):
        fetch(hub, tmp_path)
    assert names(tmp_path) == set()


def one_sentence(error: pytest.ExceptionInfo[WeightsError], *parts: str) -> None:
    text = str(error.value)
    assert text.startswith(f"{NAME} could not be downloaded from https://huggingface.co/{REPO}/resolve/main/{NAME}: ")
    assert "\n" not in text and text.count("run the command again") >= 1
    for part in parts:
        assert part in text


def test_refusals(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, part in ((403, "HF_TOKEN"), (404, "404 Not Found"), (418, "418 I'm a Teapot"), (599, "answered 599")):
        hub.statuses = [status]
        with pytest.raises(WeightsError) as error:
            fetch(hub, tmp_path)
        one_sentence(error, part, str(tmp_path))
    hub.gated = True
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, "401 Unauthorized", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    stored = [request for request in hub.requests if "/storage/" in request["path"]]
    assert len(stored) == hub.redirect and not any("authorization" in request for request in stored)


def test_missing_file_and_repository(hub: HubServer, tmp_path: Path) -> None:
    del hub.repos[REPO][NAME]
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, "404 Not Found")
    del hub.repos[REPO]
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, "401")


def test_busy_hub_is_asked_again(hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub.statuses = [503, 429]
    assert fetch(hub, tmp_path / "a").read_bytes() == CONTENT
    hub.statuses = [500] * 9
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path / "b")
    one_sentence(error, "500 Internal Server Error; try again later")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_is_no_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.is_hub = False
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, f"{hub.endpoint} does not respond like a Hugging Face hub", "HF_ENDPOINT")


def test_no_network_and_offline_mode(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, "unset HF_HUB_OFFLINE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError) as error:
        fetch(hub, tmp_path)
    one_sentence(error, "no connection: Connection refused", str(tmp_path))
    assert not hub.requests
    # What the message tells people to do works.
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(hub, tmp_path) == tmp_path / NAME


def test_full_disk_keeps_what_was_received(hub: HubServer, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, limits[1]))
    try:
        with pytest.raises(WeightsError, match=r"cannot be written: File too large .*TCL_ANNOTATE_HOME.*resumes"):
            fetch(hub, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    received = sum(path.stat().st_size for path in tmp_path.glob(".*.hub/*"))
    assert 0 < received <= 80_000
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    assert hub.ranges_asked()[-1] == f"bytes={received}-"


def test_mirror_is_a_plain_web_server(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", hub.endpoint)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(hub, tmp_path).read_bytes() == CONTENT
    assert {request["method"] for request in hub.requests} == {"GET"}


@pytest.mark.parametrize("progress", [False, True])
def test_progress(hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    fetch_file(hub.file(REPO, NAME), tmp_path, progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert (f"{NAME}: 100%" in err and "Error" not in err) if progress else err == ""


def test_the_library_is_left_as_it_was(hub: HubServer, tmp_path: Path) -> None:
    before = (huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY, huggingface_hub.utils.logging.get_verbosity())
    fetch(hub, tmp_path)
    hub.statuses = [404]
    with pytest.raises(WeightsError):
        fetch(hub, tmp_path / "other")
    after = (huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY, huggingface_hub.utils.logging.get_verbosity())
    assert before == after and "HF_HUB_DISABLE_TELEMETRY" not in os.environ
