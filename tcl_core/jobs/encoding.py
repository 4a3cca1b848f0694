"""The network of a job: batches of images are encoded when they are asked for, or while the one before is worked on.

Encoding ahead keeps a GPU busy while this process decides, sends and writes. A batch has the same images either way,
so the numbers are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tcl_core.errors import is_out_of_memory

if TYPE_CHECKING:
    import torch

    from tcl_core.images import ResizedImage
    from tcl_core.segmentation.features import ImageFeatures
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["EncodedBatch", "Encoder", "can_encode_ahead"]

_Result = TypeVar("_Result")


def can_encode_ahead(segmenter: Segmenter) -> bool:
    """Whether a job gains from encoding ahead: on a CUDA device.

    On a CPU, both threads would compete for the same cores. Apple's GPUs work off their tasks in the order in which
    they come, so that deciding would wait for the batch ahead. With a cache of features, other threads could find some
    that are not there yet.
    """
    return segmenter.model.device.type == "cuda" and segmenter.cache is None


@dataclass(eq=False)
class EncodedBatch:
    """Images that go through the network together, see `Encoder.start`.

    Attributes:
        images: at the working size.
        ahead: their features, or ``None`` and whether memory ran out; ``None`` if they are encoded when asked for.
    """

    images: Sequence[ResizedImage]
    ahead: Future[tuple[list[ImageFeatures] | None, bool]] | None = None


class Encoder:
    """Encodes the batches of a job in their order.

    Memory that runs out because of a batch ahead costs no image: what is ahead is thrown away and encoded again later.
    If that helped, nothing is encoded ahead any more.

    Args:
        segmenter: the model.
        ahead: whether one batch is encoded in another thread while the features of the one before are used; see
            `can_encode_ahead`.
        working: a block of time in which the network works; several threads may be in one at a time.
        tell: takes a line for the user.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        ahead: bool,
        working: Callable[[], AbstractContextManager[object]],
        tell: Callable[[str], None],
    ) -> None:
        self._segmenter = segmenter
        self._working = working
        self._tell = tell
        self._closed = False
        self._started: list[EncodedBatch] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tcl-annotate network") if ahead else None
        self._user = _current_stream(segmenter) if ahead else None

    @property
    def ahead(self) -> int:
        """How many batches are started before the first of them is asked for, itself included."""
        return 1 if self._thread is None else 2

    def start(self, images: Sequence[ResizedImage]) -> EncodedBatch:
        """Encode a batch when its turn comes."""
        batch = EncodedBatch(images)
        if self._thread is not None:
            batch.ahead = self._thread.submit(self._encode_ahead, images)
        self._started.append(batch)
        return batch

    def features(self, batch: EncodedBatch) -> deque[ImageFeatures] | None:
        """The features of a batch's images, for whoever asks first; ``None`` if they cannot be encoded together."""
        self._started.remove(batch)
        if batch.ahead is None:
            return self._encode(batch.images)
        found, is_short = batch.ahead.result()
        batch.ahead = None
        if found is not None:
            return deque(found)
        if not is_short:
            return None
        self._discard()
        features = self._encode(batch.images)
        if features is not None:
            self._stay_behind()
        return features

    def with_memory(self, call: Callable[[], _Result]) -> _Result:
        """Make a call, and again without what is encoded ahead if memory runs out.

        Raises:
            Exception: whatever the call raises, the second time if there was one.
        """
        try:
            return call()
        except Exception as error:
            if not (is_out_of_memory(error) and self._discard()):
                raise
        # Not while the error is handled: it holds on to tensors.
        result = call()
        self._stay_behind()
        return result

    def close(self) -> None:
        """End the thread, after the windows that are in the network."""
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _encode(self, images: Sequence[ResizedImage]) -> deque[ImageFeatures] | None:
        features: deque[ImageFeatures] | None = None
        with suppress(Exception), self._working():
            features = deque(self._segmenter.encode_batch(images))
        return features

    def _discard(self) -> bool:
        """Give back the memory of what is ahead; whether there was anything."""
        ahead = [batch.ahead for batch in self._started if batch.ahead is not None]
        running = [future for future in ahead if not future.cancel()]
        wait(running)
        for batch in self._started:
            batch.ahead = None
        return bool(ahead)

    def _stay_behind(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
            self._tell(
                "there is not enough memory to encode images ahead, so from now on the device waits for the rest"
            )

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _encode_ahead(self, images: Sequence[ResizedImage]) -> tuple[list[ImageFeatures] | None, bool]:
        try:
            with self._working(), nullcontext() if self._user is None else _stream_after(self._user):
                return self._segmenter.encode_batch(images, self._check), False
        except Exception as error:
            # The error itself would hold on to the tensors of the batch.
            return None, is_out_of_memory(error)

    def _check(self, done: int, total: int) -> None:
        if self._closed:
            raise _ClosedError


class _ClosedError(Exception):
    """Nobody waits for the features any more."""


def _current_stream(segmenter: Segmenter) -> torch.cuda.Stream | None:
    """The stream of a CUDA device that this thread uses."""
    device = segmenter.model.device
    if device.type != "cuda":
        return None
    import torch

    return torch.cuda.current_stream(device)


@cache
def _own_stream(device: torch.device) -> Any:
    """One for all jobs, because memory that was used by a stream is kept for it."""
    import torch

    return torch.cuda.Stream(device)


@contextmanager
def _stream_after(user: torch.cuda.Stream) -> Iterator[None]:
    """Work on a stream of its own, so that decisions do not wait until a batch is through the network.

    The features are used on the user's stream. They are freed there after the label map that was made of them has
    arrived in main memory, so that nothing still reads them.

    Args:
        user: what is on it so far, such as weights, comes first.
    """
    import torch

    own = _own_stream(user.device)
    own.wait_stream(user)
    with torch.cuda.stream(own):
        yield
    # Another stream reads the features as soon as they are handed over.
    own.synchronize()
