"""Label Studio's own interface, as far as the commands need it."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx

from labelstudio_backend.image_fetch.locations import origin_of
from labelstudio_backend.image_fetch.tokens import REFUSED, Token
from tcl_core.errors import SettingsError
from tcl_core.images import SUPPORTED_EXTENSIONS

__all__ = [
    "GoneError",
    "LabelStudioClient",
    "LabelStudioError",
    "Project",
    "RefusedError",
    "SignInError",
    "uploaded_name",
]

_TRIES = 4
_PAUSE_SECONDS = 1.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_SHOWN = 300


class LabelStudioError(SettingsError):
    """Label Studio refused a request or cannot be reached."""


class GoneError(LabelStudioError):
    """What was asked for is not there (404)."""


class SignInError(LabelStudioError):
    """Label Studio does not accept the token (401), perhaps not any more."""


class RefusedError(LabelStudioError):
    """Label Studio does not take what was sent (400), such as a kind of file that it cannot show."""


@dataclass(frozen=True)
class Project:
    """A project.

    Attributes:
        id: its number.
        title: its name.
        label_config: its labeling configuration.
        key: number and time of creation, as ML backends are told.
    """

    id: int
    title: str
    label_config: str
    key: str


class LabelStudioClient:
    """A signed-in client. A context manager.

    Args:
        url: the server.
        token: a personal access token or a legacy key.

    Raises:
        SettingsError: the address is none.
    """

    def __init__(self, url: str, token: str) -> None:
        origin_of(url)
        self.url = url.rstrip("/")
        self._token = Token(token)
        self._client = httpx.Client(base_url=self.url, timeout=_TIMEOUT, follow_redirects=False)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        self._client.close()

    def project(self, number: int) -> Project:
        """Read a project.

        Raises:
            LabelStudioError: there is none, or it cannot be read.
        """
        return _project(self._json("GET", f"/api/projects/{number}/"))

    def create_project(self, title: str, label_config: str) -> Project:
        """Make a project.

        Raises:
            LabelStudioError: it cannot be made.
        """
        return _project(self._json("POST", "/api/projects/", json={"title": title, "label_config": label_config}))

    def find_project(self, title: str, label_config: str) -> Project | None:
        """The newest project of a title, if it has the same labeling configuration.

        Raises:
            LabelStudioError: they cannot be read.
            SettingsError: the newest one of this title has another configuration.
        """
        answer = self._json("GET", "/api/projects/", params={"title": title, "page_size": 100, "ordering": "-id"})
        same = [each for each in answer["results"] if each.get("title") == title]
        if not same:
            return None
        project = _project(max(same, key=lambda each: int(each["id"])))
        if project.label_config.strip() == label_config.strip():
            return project
        raise SettingsError(
            f"project {project.id} is called {title!r} already and has other labels; pass --project {project.id} to "
            "connect it as it is, or another --title"
        )

    def add_uncertain_tab(self, project: int) -> None:
        """Give the data manager a tab that lists the tasks with the lowest prediction score first.

        Raises:
            LabelStudioError: it cannot be made.
        """
        data = {"type": "list", "title": "Uncertain first", "ordering": ["tasks:predictions_score"]}
        self._json("POST", "/api/dm/views/", json={"project": project, "data": data})

    def backend_urls(self, project: int) -> frozenset[str]:
        """Addresses of the backends that are connected to a project.

        Raises:
            LabelStudioError: they cannot be read.
        """
        backends = self._json("GET", "/api/ml/", params={"project": project})
        return frozenset(str(backend.get("url", "")).rstrip("/") for backend in backends)

    def uploaded_names(self, project: int) -> frozenset[str]:
        """File names of a project's uploaded images, as Label Studio spells them.

        Raises:
            LabelStudioError: they cannot be read.
        """
        found = set()
        for page in self.tasks(project):
            for task in page:
                for value in (task.get("data") or {}).values():
                    place = unquote(urlsplit(value).path) if isinstance(value, str) else ""
                    if "/data/upload/" in place:
                        found.add(uploaded_name(place.rpartition("/")[2].partition("-")[2]))
        return frozenset(found)

    def connect_backend(self, project: int, url: str, title: str, credentials: str | None = None) -> None:
        """Connect an ML backend for default and interactive predictions.

        Args:
            project: its number.
            url: the backend, as Label Studio reaches it.
            title: what Label Studio calls it.
            credentials: ``name:password``, if it asks for them.

        Raises:
            LabelStudioError: Label Studio refuses it or cannot reach it.
        """
        body = {"project": project, "url": url, "title": title, "is_interactive": True}
        if credentials is not None:
            name, _, password = credentials.partition(":")
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": name, "basic_auth_pass": password}
        self._json("POST", "/api/ml/", json=body)

    def use_model(self, project: int, title: str) -> None:
        """Show the connected backend's predictions to annotators.

        Raises:
            LabelStudioError: it cannot be done.
        """
        # Each task is predicted when it is opened. If predictions were "evaluated automatically", the list of tasks
        # would wait for those of a whole page, and lose them all after 100 seconds.
        body = {"model_version": title, "show_collab_predictions": True, "evaluate_predictions_automatically": False}
        self._json("PATCH", f"/api/projects/{project}/", json=body)

    def upload(self, project: int, paths: Sequence[Path]) -> dict[Path, str]:
        """Upload images as tasks.

        Returns:
            Those that Label Studio does not take, each with what it says about it.

        Raises:
            LabelStudioError: one cannot be read, or Label Studio cannot be reached.
        """
        refused = {}
        for path in paths:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise LabelStudioError(f"{path}: cannot be read ({error.strerror})") from error
            try:
                self._json("POST", f"/api/projects/{project}/import", files={"file": (path.name, content)})
            except RefusedError as error:
                refused[path] = str(error).rpartition(" failed with 400: ")[2]
        return refused

    def add_local_storage(self, project: int, path: str) -> None:
        """Add a folder of the server's as a source of tasks, and read it.

        Args:
            project: its number.
            path: the folder, as the server sees it.

        Raises:
            LabelStudioError: it cannot be added or read.
        """
        body = {
            "project": project,
            "path": path,
            "use_blob_urls": True,
            "regex_filter": rf"(?i).*\.({'|'.join(ending[1:] for ending in SUPPORTED_EXTENSIONS)})$",
            "title": "local files",
        }
        storage = self._json("POST", "/api/storages/localfiles", json=body)
        self._json("POST", f"/api/storages/localfiles/{storage['id']}/sync")

    def tasks(
        self,
        project: int,
        *,
        view: int | None = None,
        model_version: str | None = None,
        page_size: int = 100,
        full: bool = False,
    ) -> Iterator[list[dict[str, Any]]]:
        """A project's tasks, page by page.

        Args:
            project: its number.
            view: number of a tab of the data manager, whose filters apply.
            model_version: only tasks that have a prediction of this version (instead of a view).
            page_size: tasks of a page.
            full: with annotations and predictions.

        Raises:
            LabelStudioError: they cannot be read.
        """
        # As a reviewer: otherwise Label Studio first has a connected backend predict the tasks that it lists.
        query: dict[str, Any] = {"project": project, "page_size": page_size, "review": "true"}
        query |= {"view": view} if view is not None else {}
        query |= {"fields": "all"} if full else {}
        if model_version is not None:
            query["query"] = json.dumps(_with_version(model_version))
        for page in itertools.count(1):
            try:
                answer = self._json("GET", "/api/tasks/", params={**query, "page": page})
            except GoneError:
                # Tasks that are deleted meanwhile take the last pages with them.
                if page > 1:
                    return
                raise
            tasks = answer["tasks"]
            if tasks:
                yield tasks
            if page * page_size >= int(answer["total"]) or not tasks:
                return

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Store predictions; returns how many Label Studio says it has made.

        Raises:
            LabelStudioError: they are refused as a whole.
        """
        answer = self._json("POST", f"/api/projects/{project}/import/predictions", json=list(predictions))
        return int(answer.get("created", 0))

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """A task's predictions, with ``id`` and ``model_version``.

        Raises:
            GoneError: there is no such task, perhaps not any more.
            LabelStudioError: they cannot be read.
        """
        try:
            return list(self._json("GET", "/api/predictions/", params={"task": task}))
        except SignInError:
            raise
        except LabelStudioError as error:
            # Label Studio calls it a bad request (400).
            if self.has_task(task):
                raise
            raise GoneError(f"{self.url}: there is no task {task}") from error

    def delete_prediction(self, number: int) -> None:
        """Delete a prediction; one that is gone already is fine.

        Raises:
            LabelStudioError: it cannot be deleted.
        """
        try:
            self._json("DELETE", f"/api/predictions/{number}/")
        except GoneError:
            pass

    def update_prediction(self, number: int, content: Mapping[str, Any]) -> None:
        """Change a prediction.

        Raises:
            LabelStudioError: it cannot be changed.
        """
        self._json("PATCH", f"/api/predictions/{number}/", json=dict(content))

    def model_versions(self, project: int) -> dict[str, int]:
        """Number of a project's predictions by model version.

        Raises:
            LabelStudioError: they cannot be read.
        """
        answer = self._json("GET", f"/api/projects/{project}/model-versions/")
        # Versions that the project names without having predictions of them count nothing.
        return {str(version): int(count) for version, count in answer.items() if count}

    def delete_version(self, project: int, version: str) -> int:
        """Delete a project's predictions of a model version; returns how many they were.

        Raises:
            LabelStudioError: they cannot be deleted.
        """
        chosen = self._json("GET", f"/api/projects/{project}/").get("model_version")
        answer = self._json("DELETE", f"/api/projects/{project}/model-versions/", json={"model_version": version})
        # Label Studio also forgets which model the project shows.
        if chosen and chosen != version:
            self._json("PATCH", f"/api/projects/{project}/", json={"model_version": chosen})
        found = answer.get("deleted_predictions") if isinstance(answer, Mapping) else answer
        return int(found or 0)

    def backend_versions(self, project: int) -> list[str]:
        """Model versions of the backends that are connected to a project.

        Raises:
            LabelStudioError: they cannot be read.
        """
        backends = self._json("GET", "/api/ml/", params={"project": project})
        return [str(backend["model_version"]) for backend in backends if backend.get("model_version")]

    def has_task(self, task: int) -> bool:
        """Whether a task still exists.

        Raises:
            LabelStudioError: it cannot be told.
        """
        try:
            # Reading the task itself may make Label Studio ask a backend for predictions.
            self._json("GET", f"/api/tasks/{task}/annotations/")
        except GoneError:
            return False
        return True

    def get(self, path: str, **params: Any) -> Any:
        """Read something else; see Label Studio's API.

        Raises:
            LabelStudioError: it is refused.
        """
        return self._json("GET", path, params=params)

    def _json(self, method: str, path: str, **content: Any) -> Any:
        response = self._send(method, path, **content)
        if response.status_code == httpx.codes.UNAUTHORIZED and self._token.reject():
            response = self._send(method, path, **content)
        if response.status_code >= httpx.codes.BAD_REQUEST:
            kinds: dict[int, type[LabelStudioError]] = {400: RefusedError, 401: SignInError, 404: GoneError}
            kind = kinds.get(response.status_code, LabelStudioError)
            raise kind(_refusal(self.url, method, path, response))
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise LabelStudioError(f"{self.url}{path}: the response is not JSON; is this Label Studio?") from error

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        for attempt in range(1, _TRIES + 1):
            try:
                if self._token.needs_refresh:
                    self._refresh()
                response = self._client.request(method, path, headers=self._token.header(), **content)
                # What was not made can be asked for again; a POST may have been carried out.
                if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR or method == "POST" or attempt == _TRIES:
                    return response
            except httpx.ConnectError as error:
                if attempt == _TRIES:
                    raise LabelStudioError(
                        f"{self.url}: Label Studio cannot be reached ({error}); start it, or give its URL as --url"
                    ) from error
            except httpx.HTTPError as error:
                if method == "POST" or attempt == _TRIES:
                    raise LabelStudioError(f"{self.url}{path}: no response ({type(error).__name__})") from error
            time.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _refresh(self) -> None:
        response = self._client.post("/api/token/refresh/", json={"refresh": self._token.secret})
        try:
            access = response.json()["access"] if response.status_code == httpx.codes.OK else None
        except (ValueError, KeyError, TypeError):
            access = None
        if response.status_code in REFUSED:
            raise SignInError(
                f"{self.url}: Label Studio refused the personal access token ({response.status_code}), which may have "
                "been revoked or have expired; create a new one under Account & Settings"
            )
        if response.status_code == httpx.codes.NOT_FOUND:
            raise LabelStudioError(
                f"{self.url}: this is not Label Studio, or it lies under another path (404); give its URL as --url"
            )
        if not isinstance(access, str):
            raise LabelStudioError(
                f"{self.url}: Label Studio returned no access token ({response.status_code}); try again once it works"
            )
        self._token.accept(access)


def uploaded_name(name: str) -> str:
    """How Label Studio spells the name of an uploaded file, without what it puts in front.

    Example:
        >>> uploaded_name("my cat (2).png")
        'my_cat_2.png'
    """
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _with_version(model_version: str) -> dict[str, Any]:
    """A query of the data manager. Its "contains" looks inside each version, so none may be a part of another."""
    item = {
        "filter": "filter:tasks:predictions_model_versions",
        "operator": "contains",
        "type": "List",
        "value": [model_version],
    }
    return {"filters": {"conjunction": "and", "items": [item]}, "selectedItems": {"all": True, "excluded": []}}


def _project(data: Mapping[str, Any]) -> Project:
    created = datetime.fromisoformat(str(data["created_at"]))
    return Project(
        id=int(data["id"]),
        title=str(data.get("title", "")),
        label_config=str(data.get("label_config", "")),
        key=f"{data['id']}.{int(created.timestamp())}",
    )


def _refusal(url: str, method: str, path: str, response: httpx.Response) -> str:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return (
            f"{url}: Label Studio refused the token (401); legacy tokens are disabled by default, so use a personal "
            "access token"
        )
    if path.startswith("/api/ml") and method == "POST" and "connect to ML backend" in response.text:
        return (
            f"{url}: Label Studio cannot reach the backend's address; give --backend-url as Label Studio sees it, and "
            "--auth-file if the backend asks for a password"
        )
    if response.status_code == httpx.codes.FORBIDDEN and path.startswith("/api/ml"):
        return (
            f"{url}: Label Studio refuses the backend's address (403); to allow private addresses, start it with "
            "USE_DEFAULT_BANNED_SUBNETS=false"
        )
    return f"{url}: {method} {path} failed with {response.status_code}: {_reason(response)}"


def _reason(response: httpx.Response) -> str:
    """What Label Studio says, out of the many fields that it says it in, as a sentence."""
    try:
        said = response.json()
    except ValueError:
        said = response.text
    if isinstance(said, Mapping):
        said = said.get("validation_errors") or said.get("detail") or said
    text = " ".join("; ".join(_sentences(said)).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN].rsplit(' ', 1)[0]} ..."


def _sentences(said: object, field: str = "") -> Iterator[str]:
    """The texts in an answer, each with the field that it is about."""
    if isinstance(said, Mapping):
        for name, value in said.items():
            yield from _sentences(value, "" if name == "non_field_errors" else str(name))
    elif isinstance(said, Sequence) and not isinstance(said, str):
        for value in said:
            yield from _sentences(value, field)
    elif said not in (None, ""):
        yield f"{field}: {said}" if field else str(said)
