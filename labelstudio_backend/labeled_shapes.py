"""Regions that Label Studio writes as two results: a shape, and the label that a ``Labels`` tag gave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from labelstudio_backend.config_tags import DRAWING_TAGS

__all__ = ["join_labels", "value_of_result"]


def join_labels(results: Iterable[object]) -> list[dict[str, Any]]:
    """Give shapes the labels that stand in a result of their own with the same id.

    Args:
        results: of an annotation, a prediction or a request; what is no mapping is left out.

    Returns:
        The results in their order. A ``polygon`` with a label is like one of ``PolygonLabels`` (type
        ``polygonlabels``), and so on for the other shapes; the results that only hold a label are gone. A shape without
        a label stays as it is.

    Example:
        >>> shape = {"id": "a", "type": "keypoint", "from_name": "point", "value": {"x": 1, "y": 2}}
        >>> label = {"id": "a", "type": "labels", "from_name": "labels", "value": {"x": 1, "y": 2, "labels": ["Cat"]}}
        >>> [(each["type"], each["from_name"], each["value"]) for each in join_labels([shape, label])]
        [('keypointlabels', 'point', {'x': 1, 'y': 2, 'keypointlabels': ['Cat']})]
    """
    known = [dict(result) for result in results if isinstance(result, Mapping)]
    labels: dict[object, object] = {}
    shapes = {result.get("id") for result in known if _is_shape(result)}
    for result in known:
        if result.get("type") == "labels" and _hashable(result.get("id")):
            labels[result.get("id")] = value_of_result(result).get("labels")
    joined = []
    for result in known:
        if result.get("type") == "labels" and _hashable(result.get("id")) and result.get("id") in shapes:
            continue
        if _is_shape(result) and labels.get(result.get("id")):
            kind = f"{result['type']}labels"
            result |= {"type": kind, "value": {**value_of_result(result), kind: labels[result.get("id")]}}
        joined.append(result)
    return joined


def _is_shape(result: Mapping[str, Any]) -> bool:
    return isinstance(result.get("type"), str) and result["type"] in DRAWING_TAGS and _hashable(result.get("id"))


def value_of_result(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value of a result, empty where it is no mapping."""
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _hashable(key: object) -> bool:
    # What a request calls an id may be anything.
    return isinstance(key, str | int)
