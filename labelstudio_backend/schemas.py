"""What Label Studio sends, as far as it is used; everything else in its requests is passed over."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PredictRequest", "SetupRequest", "TaskData", "Versions", "project_number"]

Text = Annotated[str, Field(max_length=1 << 20)]
ProjectKey = Annotated[str, Field(max_length=200)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class TaskData(_Request):
    """A task to predict."""

    id: int | None = None
    data: dict[str, Any] = Field(description="The task's data; the labeling configuration says where the image is.")
    predictions: Any = Field(None, description="The task's predictions so far, which new ones replace.")
    annotations: Any = Field(None, description="The task's annotations.")
    drafts: Any = Field(None, description="What the annotator has drawn and not submitted yet.")


class Parameters(_Request):
    """What belongs to an interactive request."""

    context: dict[str, Any] | None = Field(None, description="What was typed or drawn; null asks for everything.")


class PredictRequest(_Request):
    """A request for predictions."""

    tasks: list[TaskData]
    label_config: Text
    project: ProjectKey | None = Field(None, description="Project and time of its creation, such as 4.1795222240.")
    params: Parameters | None = None


class SetupRequest(_Request):
    """What Label Studio tells about a project."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True, protected_namespaces=())

    project: ProjectKey | None = None
    labeling_config: Text = Field("", alias="schema", description="The project's labeling configuration.")
    hostname: str | None = Field(None, max_length=2000)
    access_token: str | None = Field(None, max_length=2000)


class Versions(BaseModel):
    """Model versions that can predict."""

    versions: list[str]


def project_number(key: str | None) -> int | None:
    """A project's number, from the key that Label Studio gives it.

    >>> project_number("4.1795222240"), project_number("")
    (4, None)
    """
    number = (key or "").partition(".")[0]
    return int(number) if number.isdecimal() and len(number) < 16 else None
