"""What 2.x's base class promises to a model: an object for every request, and values kept for the project."""

from __future__ import annotations

from typing import Any

_VALUES: dict[tuple[str, str], str] = {}


class LabelStudioMLBase:
    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        self.label_config = label_config
        self.setup()

    def setup(self) -> None:
        """For models."""

    def get(self, key: str) -> str | None:
        return _VALUES.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        _VALUES[self.project_id, key] = value

    @property
    def model_version(self) -> str | None:
        return self.get("model_version")

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def fit(self, event: str, data: dict[str, Any], **additional_params: Any) -> Any:
        raise NotImplementedError
