"""What all kinds of image-caption data have in common."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tcl_core.images import ImageSource

__all__ = ["DataReport", "JoinedSource", "Pair", "Source"]


@dataclass(frozen=True)
class Pair:
    """An image that is not decoded yet, and its caption.

    Attributes:
        image: encoded bytes, or a file.
        caption: not empty.
        name: for messages.
    """

    image: ImageSource
    caption: str
    name: str


@dataclass
class DataReport:
    """What was found.

    Attributes:
        pairs: that can be used, as far as an index can tell.
        files: shards or tables that were read.
        dropped: number of samples that were left out, by reason.
        damaged: what is wrong with files that are not whole, by file.
        examples: the first sample that was left out, by reason, where its name helps.
    """

    pairs: int = 0
    files: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, other: DataReport) -> None:
        """Count another report in."""
        self.pairs += other.pairs
        self.files += other.files
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.damaged |= other.damaged
        self.examples = other.examples | self.examples

    def lines(self) -> list[str]:
        """For people; damaged files by name, up to ten."""
        found = [
            f"{self.pairs:,} image-caption pair{'s' * (self.pairs != 1)} in "
            f"{self.files:,} file{'s' * (self.files != 1)}"
        ]
        if self.dropped:
            listed = (f"{count:,} {reason}{self._example(reason)}" for reason, count in sorted(self.dropped.items()))
            found.append(f"left out: {', '.join(listed)}")
        found += [f"damaged: {name}: {what}" for name, what in list(self.damaged.items())[:10]]
        if len(self.damaged) > 10:
            found.append(f"damaged: {len(self.damaged) - 10} more files")
        return found

    def _example(self, reason: str) -> str:
        return f" (such as {self.examples[reason]})" if reason in self.examples else ""


class Source(ABC):
    """Numbered pairs of images and captions, in groups that are quick to read one after the other.

    Attributes:
        report: what was found.
        groups: number of pairs of each group; together they are all pairs.
    """

    report: DataReport
    groups: Sequence[int]

    def __len__(self) -> int:
        """Number of pairs."""
        return sum(self.groups)

    @abstractmethod
    def read(self, index: int) -> Pair:
        """The pair of a number from 0; safe to call in several processes.

        Raises:
            OSError: the file cannot be read any more.
            SettingsError: the file is another one than when it was indexed.
        """

    @abstractmethod
    def identity(self) -> str:
        """What decides which pair has which number; changes with the data."""


class JoinedSource(Source):
    """Several sources in a row."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = list(accumulate(len(source) for source in sources))
        self.groups = [size for source in sources for size in source.groups]
        self.report = DataReport()
        for source in sources:
            self.report.add(source.report)

    def read(self, index: int) -> Pair:
        """The pair of a number."""
        number = bisect.bisect_right(self._ends, index)
        return self._sources[number].read(index - (self._ends[number - 1] if number else 0))

    def identity(self) -> str:
        """Those of all sources."""
        return "+".join(source.identity() for source in self._sources)
