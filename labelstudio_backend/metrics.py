"""Numbers for Prometheus, of one server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter("tcl_tasks", "Tasks by outcome.", ["outcome"], registry=self.registry)
        self.refused = Counter(
            "tcl_requests_refused", "Requests refused because the queue was full.", registry=self.registry
        )
        self.restarts = Counter("tcl_worker_restarts", "Number of worker restarts.", registry=self.registry)
        self.requests = Gauge("tcl_requests", "Requests that are running or queued.", registry=self.registry)
        self.seconds = Histogram(
            "tcl_task_seconds", "Time from a task's request to its response.", ["kind"], registry=self.registry
        )

    def count(self, outcome: str) -> float:
        """Number of tasks with an outcome."""
        return self.registry.get_sample_value("tcl_tasks_total", {"outcome": outcome}) or 0.0

    def render(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)
