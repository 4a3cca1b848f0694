"""What the stages of a job take, and which of them holds the others up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["STAGES", "OverlappingTime", "StageTimes"]

STAGES = ("read", "network", "trace", "write")
_ALL = ("fetch", *STAGES)


@dataclass
class StageTimes:
    """Seconds of work of each stage, whichever process did it.

    Attributes:
        read: decoding and resizing.
        network: network, scores and arg-max; what two threads did at the same time counts once.
        trace: regions, polygons and what is written of them.
        write: the journal and the preview.
        elapsed: from the first image to the last.
        workers: processes that read and trace beside the one with the network.
        networks: machines of a cluster, or processes on them, that each have a network.
        fetch: waiting for images that were not there yet to be read, where they come from a server.
    """

    read: float = 0.0
    network: float = 0.0
    trace: float = 0.0
    write: float = 0.0
    elapsed: float = 0.0
    workers: int = 0
    networks: int = 1
    fetch: float = 0.0

    def add(self, other: StageTimes) -> None:
        """Add the work of another process, which is part of the same elapsed time."""
        for stage in _ALL:
            setattr(self, stage, getattr(self, stage) + getattr(other, stage))

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """A block whose time belongs to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)

    def shares(self) -> dict[str, float]:
        """Share of each stage in the work of all.

        >>> StageTimes(read=1, network=6, trace=2, write=1).shares()
        {'read': 0.1, 'network': 0.6, 'trace': 0.2, 'write': 0.1}
        """
        seconds = {stage: float(getattr(self, stage)) for stage in (_ALL if self.fetch else STAGES)}
        total = sum(seconds.values())
        return {stage: value / total if total else 0.0 for stage, value in seconds.items()}

    @property
    def network_busy(self) -> float:
        """Share of the elapsed time in which the network or the arg-max worked."""
        return min(1.0, self.network / self.networks / self.elapsed) if self.elapsed else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that the others wait for; empty before there is one.

        Reading and tracing are shared by the workers; network and writing, and waiting, have one process.

        >>> StageTimes(read=3, network=4, trace=3).bottleneck
        'network'
        >>> StageTimes(read=3, network=1, trace=4, workers=4).bottleneck
        'trace'
        >>> StageTimes(fetch=5, read=3, network=1, trace=4, workers=4).bottleneck
        'fetch'
        """
        shared, own = ("read", "trace"), ("fetch", "network", "write")
        candidates: tuple[str, ...]
        if not self.workers:
            candidates = _ALL
        else:
            in_workers = sum(getattr(self, stage) for stage in shared) / self.workers
            candidates = shared if in_workers > sum(getattr(self, stage) for stage in own) else own
        longest = max(candidates, key=lambda stage: float(getattr(self, stage)))
        return longest if getattr(self, longest) else ""

    def __str__(self) -> str:
        """All of it in a line.

        >>> print(StageTimes(read=1, network=6, trace=2, write=1, elapsed=8))
        read 10 %, network 60 %, trace 20 %, write 10 % of the work; network busy 75 % of the time; bottleneck: network
        """
        shares = ", ".join(f"{stage} {share:.0%}".replace("%", " %") for stage, share in self.shares().items())
        busy = f"{self.network_busy:.0%}".replace("%", " %")
        return f"{shares} of the work; network busy {busy} of the time; bottleneck: {self.bottleneck or 'none'}"


class OverlappingTime:
    """The time of a stage on which several threads work; each moment counts once.

    Args:
        times: to add to; no other thread may change this stage.
        stage: its name.
    """

    def __init__(self, times: StageTimes, stage: str) -> None:
        self._times, self._stage = times, stage
        self._lock = threading.Lock()
        self._threads = 0
        self._counted = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """A block of time in which the calling thread works."""
        with self._lock:
            if not self._threads:
                self._counted = time.perf_counter()
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                now = time.perf_counter()
                setattr(self._times, self._stage, getattr(self._times, self._stage) + now - self._counted)
                self._counted = now
                self._threads -= 1
