"""Fetching is an attack surface: one test for each way in."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from labelstudio_backend.client import LabelStudioClient, LabelStudioError, SignInError
from labelstudio_backend.image_fetch import addresses
from labelstudio_backend.image_fetch.fetching import ImageFetcher, SignInRefusedError
from labelstudio_backend.image_fetch.locations import Owner, Remote, Site, follow
from labelstudio_backend.settings import ImageSettings
from tcl_core.errors import ImageError, SettingsError
from tests.labelstudio.image_server import PNG, REFRESH_TOKEN, ImageServer


def fetch(url: object, settings: ImageSettings, token: str | None = None, owner: Owner | None = None) -> bytes:
    async def run() -> bytes:
        async with settings.fetcher(token) as fetcher:
            return await fetcher.fetch(url, owner)

    return anyio.run(run)


def ours(server: ImageServer, **settings: Any) -> ImageSettings:
    """Settings for which the server is Label Studio."""
    return ImageSettings(label_studio_url=server.url, **settings)


def foreign(server: ImageServer, **settings: Any) -> tuple[str, ImageSettings]:
    """The server under another host's name, and settings in which it is allowed."""
    return f"http://localhost:{server.port}", ImageSettings(
        label_studio_url="http://127.0.0.1:1", allow_hosts=("localhost",), **settings
    )


# -- forms of addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "/data/upload/1/864f98e9-a.png",
        "/data/local-files/?d=images/a.png",
        "{url}/data/local-files/?d=images/b%20with%20space.png",
        "{url}/data/upload/1/a.png?x=%2e",
    ],
)
def test_label_studios_own_addresses_get_the_token(form: str, image_server: ImageServer) -> None:
    image_server.token = "Token legacy-key"
    assert fetch(form.format(url=image_server.url), ours(image_server), "legacy-key") == PNG
    _, path, headers = image_server.requests[-1]
    assert path == form.format(url="") and headers["Host"] == f"127.0.0.1:{image_server.port}"


def test_recorded_addresses(payload: Callable[[str], dict[str, Any]], image_server: ImageServer) -> None:
    settings = ours(image_server, label_studio_aliases=("http://127.0.0.1:8080",))
    for task in payload("predict_batch")["body"]["tasks"]:
        url = task["data"]["image"]
        # The record of the image inside an address was cut short.
        assert url.startswith("data:") or fetch(url, settings) == PNG


def test_an_image_inside_its_address() -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert fetch(url, ImageSettings()) == PNG
    with pytest.raises(ImageError, match="not valid base64"):
        fetch("data:image/png;base64,@@@", ImageSettings())
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        fetch(url, ImageSettings(max_bytes=10))


def test_an_allowed_host_is_asked_without_the_token(image_server: ImageServer) -> None:
    url, settings = foreign(image_server, allow_addresses=("127.0.0.0/8", "::1"))
    assert fetch(f"{url}/a.png?X-Amz-Signature=1", settings, "legacy-key") == PNG
    _, path, headers = image_server.requests[-1]
    assert path == "/a.png?X-Amz-Signature=1" and "Authorization" not in headers


def test_local_files_are_read_directly(tmp_path: Path) -> None:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "b c.png").write_bytes(PNG)
    settings = ImageSettings(local_root=tmp_path / "root")
    assert fetch("/data/local-files/?d=sub/b%20c.png", settings) == PNG
    assert fetch("http://localhost:8080/data/local-files/?d=sub%2Fb%20c.png", settings) == PNG
    with pytest.raises(ImageError, match="gone.png: the local file cannot be read"):
        fetch("/data/local-files/?d=gone.png", settings)


@pytest.mark.parametrize("url", [None, 5, "", ["a"], "s3://bucket/a.png", "file:///etc/passwd", "a.png", "//host/a"])
def test_what_is_no_address_that_can_be_read(url: object) -> None:
    with pytest.raises(ImageError):
        fetch(url, ImageSettings())


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_personal_token_is_exchanged_once_and_again_on_401(image_server: ImageServer) -> None:
    image_server.token = "Bearer nobody-knows"

    async def run() -> None:
        async with ours(image_server, cache_bytes=0).fetcher(REFRESH_TOKEN) as fetcher:
            assert await fetcher.fetch("/data/upload/1/a.png") == PNG
            assert await fetcher.fetch("/data/upload/1/a.png") == PNG
            assert image_server.refreshed == 1
            image_server.token = "Bearer expired-meanwhile"
            assert await fetcher.fetch("/data/upload/1/a.png") == PNG
            assert image_server.refreshed == 2

    anyio.run(run)


def test_a_refused_token_is_explained_and_not_shown(image_server: ImageServer) -> None:
    image_server.token = "Token right"
    with pytest.raises(ImageError, match="give the backend a token") as refused:
        fetch("/data/upload/1/a.png", ours(image_server), "wrong-secret")
    assert "wrong-secret" not in str(refused.value)
    with pytest.raises(ImageError, match="refused the personal access token"):
        fetch("/data/upload/1/a.png", ours(image_server), "another.wrong.one")


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_is_down_has_not_refused_the_token(status: int, image_server: ImageServer) -> None:
    """A bulk run must not end for good while Label Studio is started again."""
    image_server.token, image_server.refresh_status = "Bearer nobody-knows", status
    with pytest.raises(ImageError, match=f"returned no access token .{status}.") as failed:
        fetch("/data/upload/1/a.png", ours(image_server), REFRESH_TOKEN)
    assert not isinstance(failed.value, SignInRefusedError)
    with LabelStudioClient(image_server.url, REFRESH_TOKEN) as client:
        with pytest.raises(LabelStudioError, match=f"returned no access token .{status}.") as failed_there:
            client.project(1)
    assert not isinstance(failed_there.value, SignInError)


# -- attacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/", "//example.org/a"]
)
def test_a_redirect_elsewhere_is_not_followed(target: str, image_server: ImageServer) -> None:
    for place in ("data/upload/1/redirect", "tasks/1/resolve/"):
        with pytest.raises(ImageError, match="redirects to .* refused"):
            fetch(f"/{place}?to={target}", ours(image_server))
    url, settings = foreign(image_server, allow_addresses=("127.0.0.0/8", "::1"))
    with pytest.raises(ImageError, match="redirects to .* refused"):
        fetch(f"{url}/redirect?to={target}", settings)


@pytest.mark.parametrize(
    "target", ["/api/users", "/user/login/", "data:image/png;base64,AAAA", "file:///etc/passwd", ""]
)
def test_a_redirect_of_label_studio_leads_to_images_alone(target: str, image_server: ImageServer) -> None:
    """It is asked with the token, so a redirect must not make it carry out anything."""
    with pytest.raises(ImageError):
        fetch(f"/data/upload/1/redirect?to={target}", ours(image_server), "legacy-key")
    assert {path.partition("?")[0] for _, path, _ in image_server.requests} == {"/data/upload/1/redirect"}


def test_a_foreign_host_cannot_send_us_to_label_studio(image_server: ImageServer) -> None:
    settings = ours(image_server, allow_hosts=("localhost",), allow_addresses=("127.0.0.0/8", "::1"))
    url = f"http://localhost:{image_server.port}/redirect?to={image_server.url}/data/upload/1/a.png"
    with pytest.raises(ImageError, match="redirects to Label Studio or to a file"):
        fetch(url, settings, "legacy-key")
    assert len(image_server.requests) == 1


def test_a_presigned_address_on_an_allowed_host_is_followed_without_the_token(image_server: ImageServer) -> None:
    image_server.token = "Token legacy-key"
    settings = ours(image_server, allow_hosts=("localhost",))
    image_server.resolves_to = f"http://localhost:{image_server.port}/presigned/a.png?X-Amz-Signature=1"
    with pytest.raises(ImageError, match="private address"):
        fetch("s3://bucket/a b.png", settings, "legacy-key", Owner(7))
    settings = ours(image_server, allow_hosts=("localhost",), allow_addresses=("127.0.0.0/8", "::1"))
    assert fetch("s3://bucket/a b.png", settings, "legacy-key", Owner(7)) == PNG
    (_, resolve, first), (_, presigned, second) = image_server.requests[-2:]
    assert resolve == "/tasks/7/resolve/?fileuri=" + base64.urlsafe_b64encode(b"s3://bucket/a b.png").decode()
    assert first["Authorization"] == "Token legacy-key"
    assert presigned == "/presigned/a.png?X-Amz-Signature=1" and "Authorization" not in second
    with pytest.raises(ImageError, match="not in allow_hosts"):
        fetch("s3://bucket/a b.png", ours(image_server), "legacy-key", Owner(7))


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_storages_are_read_through_label_studio(scheme: str, image_server: ImageServer) -> None:
    url = f"{scheme}://bucket/päth/key with space.png"
    name = base64.urlsafe_b64encode(url.encode()).decode()
    for owner, place in ((Owner(7, 3), "tasks/7"), (Owner(None, 3), "projects/3")):
        assert fetch(url, ours(image_server), None, owner) == PNG
        assert image_server.requests[-1][1] == f"/{place}/resolve/?fileuri={name}"
    with pytest.raises(ImageError, match="the task's number is unknown"):
        fetch(url, ours(image_server))
    assert fetch(f"{image_server.url}/tasks/7/resolve/?fileuri={name}", ours(image_server)) == PNG


def test_a_redirect_on_the_same_host_is_followed_a_few_times(image_server: ImageServer) -> None:
    assert fetch("/data/upload/1/redirect?to=/data/upload/1/a.png", ours(image_server)) == PNG
    with pytest.raises(ImageError, match="more than 3 times"):
        fetch("/data/upload/1/loop", ours(image_server))


def test_encryption_is_not_given_up_by_a_redirect() -> None:
    site = Site("https://studio.example", hosts=frozenset({"bucket.example"}))
    source = Remote("https://studio.example/tasks/1/resolve/", site.origin, is_label_studio=True)
    assert follow(source, "https://bucket.example/a.png", site).url == "https://bucket.example/a.png"
    with pytest.raises(ImageError, match="from https to http"):
        follow(source, "http://bucket.example/a.png", site)


@pytest.mark.parametrize(
    "url", ["/label-studio{path}", "{path}", "{url}/label-studio{path}", "http://studio.example/label-studio{path}"]
)
def test_a_server_under_a_path_is_asked_there_once(url: str, image_server: ImageServer) -> None:
    settings = ImageSettings(
        label_studio_url=f"{image_server.url}/label-studio/", label_studio_aliases=("http://studio.example",)
    )
    for path in ("/data/upload/1/a.png", "/data/local-files/?d=a.png", "/tasks/5/resolve/?fileuri=czM6Ly9iL2E="):
        assert fetch(url.format(path=path, url=image_server.url), settings) == PNG
        assert image_server.requests[-1][1] == f"/label-studio{path}"


def test_a_server_that_browsers_reach_under_a_path(image_server: ImageServer) -> None:
    """The proxy in front of it adds the path; the backend asks the server itself."""
    settings = ours(image_server, label_studio_aliases=("https://studio.example/label-studio",))
    for url in ("/label-studio/data/upload/1/a.png", "https://studio.example/label-studio/data/upload/1/a.png"):
        assert fetch(url, settings) == PNG
        assert image_server.requests[-1][1] == "/data/upload/1/a.png"


@pytest.mark.parametrize(
    "url",
    [
        "/data/upload/../../api/users",
        "/data/upload/%2e%2e/%2e%2e/api/users",
        "/data/upload/1/..\\..\\..\\api\\users",
        "{url}/data/upload/../../api/users",
        "/api/users",
        "/user/account",
        "/data/../api/users",
        "/label-studio/data/upload/1/a.png",
        "/tasks/5/",
        "/tasks/5/resolve/../../../api/users",
        "/projects/1/resolve/x",
        "/storage-data/uploaded/?filepath=../../etc/passwd",
        "/data/upload",
        "//data/upload/1/a.png",
    ],
)
def test_only_images_are_asked_for_with_the_token(url: str, image_server: ImageServer) -> None:
    with pytest.raises(ImageError):
        fetch(url.format(url=image_server.url), ours(image_server), "legacy-key")
    assert image_server.requests == []


@pytest.mark.parametrize("host", ["example.org", "169.254.169.254", "127.0.0.1:1", "[::1]", "metadata.google.internal"])
def test_a_host_outside_the_list_is_not_asked(host: str) -> None:
    with pytest.raises(ImageError, match="not in allow_hosts"):
        fetch(f"http://{host}/a.png", ImageSettings(label_studio_url="http://127.0.0.2:8080"))


def test_an_allowed_host_with_a_private_address_is_not_asked(image_server: ImageServer) -> None:
    url, settings = foreign(image_server)
    with pytest.raises(ImageError, match="private address"):
        fetch(f"{url}/a.png", settings)
    assert image_server.requests == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "::"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    import ipaddress

    assert not addresses.is_public(ipaddress.ip_address(address))


def test_dns_is_asked_once_so_that_it_cannot_be_swapped(
    image_server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is allowed, all later ones would lead elsewhere."""
    answers = ["127.0.0.1", "127.0.0.9"]
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", (answers[min(len(asked), 2) - 1], port))]

    monkeypatch.setattr(addresses.anyio, "getaddrinfo", getaddrinfo)
    settings = ImageSettings(allow_hosts=("images.example",), allow_addresses=("127.0.0.1/32",))
    assert fetch(f"http://images.example:{image_server.port}/a.png", settings) == PNG
    assert asked == ["images.example"]
    assert image_server.requests[0][2]["Host"] == f"images.example:{image_server.port}"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e%252fetc%252fpasswd",
        "..%5c..%5cetc%5cpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "sub/../../secret.png",
        "a%00.png",
        "link.png",
        ".",
        "",
    ],
)
def test_no_path_leads_out_of_the_root(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError):
        fetch(f"/data/local-files/?d={name}", ImageSettings(local_root=root))


@pytest.mark.parametrize("path", ["/data/local-files/?d=../../etc/passwd", "/data/upload/..%2f..%2fetc/passwd"])
def test_climbing_paths_are_not_even_sent(path: str, image_server: ImageServer) -> None:
    with pytest.raises(ImageError, match="outside its folder"):
        fetch(path, ours(image_server))
    assert image_server.requests == []


def test_a_named_pipe_does_not_hold_us_up(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a file"):
        fetch("/data/local-files/?d=pipe.png", ImageSettings(local_root=tmp_path))


def test_a_body_declared_as_ten_gigabytes_is_not_read(image_server: ImageServer) -> None:
    with pytest.raises(ImageError, match="larger than"):
        fetch("/data/upload/1/declared", ours(image_server))


def test_a_body_without_end_is_cut_off(image_server: ImageServer) -> None:
    with pytest.raises(ImageError, match="larger than 300000 bytes"):
        fetch("/data/upload/1/endless", ours(image_server, max_bytes=300_000))


def test_a_slow_server_is_given_up(image_server: ImageServer) -> None:
    # The server would go on for twenty seconds, a byte at a time, and its answer would then be complete.
    with pytest.raises(ImageError, match="timed out after 1 seconds"):
        fetch("/data/upload/1/slow", ours(image_server, seconds=1.0))


def test_a_large_local_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"x" * 2000)
    with pytest.raises(ImageError, match="larger than 1000 bytes"):
        fetch("/data/local-files/?d=large.png", ImageSettings(local_root=tmp_path, max_bytes=1000))


def test_credentials_in_an_address_are_refused() -> None:
    with pytest.raises(ImageError, match="name or password"):
        fetch("http://me:secret@localhost:8080/data/upload/1/a.png", ImageSettings())


def test_proxies_and_cookies_are_not_used(image_server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def run() -> None:
        async with ours(image_server, cache_bytes=0).fetcher(None) as fetcher:
            assert await fetcher.fetch("/data/upload/1/a.png") == PNG
            assert await fetcher.fetch("/data/upload/1/a.png") == PNG

    anyio.run(run)
    assert len(image_server.requests) == 2
    assert not any("Cookie" in headers for _, _, headers in image_server.requests)


# -- the cache -----------------------------------------------------------------------------------------------------


def test_images_are_fetched_once_within_the_bound(image_server: ImageServer) -> None:
    async def run(cache_bytes: int) -> int:
        async with ours(image_server, cache_bytes=cache_bytes).fetcher(None) as fetcher:
            before = len(image_server.requests)
            for _ in range(3):
                await fetcher.fetch("/data/upload/1/a.png")
            return len(image_server.requests) - before

    assert anyio.run(run, 1 << 20) == 1
    assert anyio.run(run, len(PNG) - 1) == 3


def test_a_local_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"

    async def run() -> list[bytes]:
        async with ImageSettings(local_root=tmp_path).fetcher(None) as fetcher:
            read = []
            for content in (b"one", b"one", b"two", b"three"):
                if not file.exists() or file.read_bytes() != content:
                    (tmp_path / "new").write_bytes(content)
                    os.replace(tmp_path / "new", file)
                read.append(await fetcher.fetch("/data/local-files/?d=a.png"))
            # Written in place, with the old time put back.
            before = file.stat()
            file.write_bytes(b"seven")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            read.append(await fetcher.fetch("/data/local-files/?d=a.png"))
            # What is kept of a file is no way around its removal.
            file.unlink()
            with pytest.raises(ImageError, match=r"a\.png: the local file cannot be read"):
                await fetcher.fetch("/data/local-files/?d=a.png")
            return read

    assert anyio.run(run) == [b"one", b"one", b"two", b"three", b"seven"]


def test_a_missing_image_names_the_status(image_server: ImageServer) -> None:
    with pytest.raises(ImageError, match="/missing.png: the server responded with 404"):
        fetch("/data/upload/1/missing.png", ours(image_server))


def test_an_alias_leads_to_the_configured_server(image_server: ImageServer) -> None:
    async def run() -> bytes:
        fetcher: ImageFetcher = ours(image_server).fetcher(None)
        async with fetcher:
            fetcher.add_alias("http://169.254.169.254")
            return await fetcher.fetch("http://169.254.169.254/data/upload/1/a.png")

    assert anyio.run(run) == PNG
    assert image_server.requests[-1][2]["Host"] == f"127.0.0.1:{image_server.port}"


@pytest.mark.parametrize(
    "settings",
    [
        {"label_studio_url": "localhost:8080"},
        {"label_studio_aliases": ("ftp://a",)},
        {"allow_addresses": ("10.0.0.0/99",)},
        {"local_root": Path("/no/such/folder")},
        {"max_bytes": 0},
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        ImageSettings(**settings)
