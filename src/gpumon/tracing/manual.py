"""`gpumon.steps`, `gpumon.step` and `gpumon.phase`: boundaries that the training says itself.

All of them do nothing where gpumon is not instrumented; exceptions pass through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter_ns as clock
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from gpumon.tracing import stamps as s
from gpumon.tracing.batch import size_of

if TYPE_CHECKING:
    from gpumon.tracing.stamps import Stamps
    from gpumon.tracing.steps import StepTracer

T = TypeVar("T")
STAGES = ("train", "validation", "test", "predict")
_tracer: StepTracer | None = None


def use(tracer: StepTracer | None) -> None:
    """Where steps go from now on; None: nowhere."""
    global _tracer
    _tracer = tracer


def _stamps() -> Stamps | None:
    tracer = _tracer
    return tracer.stamps() if tracer is not None and tracer.on else None


def steps(batches: Iterable[T], *, epoch: int | None = None, stage: str = "train") -> Iterator[T]:
    """Go over *batches*; each is a step, from the request for it to the request for the next.

    Raises:
        ValueError: *stage* is none of train, validation, test, predict.
    """
    _check(stage)
    return _steps(batches, epoch, stage)


def _steps(batches: Iterable[T], epoch: int | None, stage: str) -> Iterator[T]:
    st = _stamps()
    if st is None or stage in st.manual:
        yield from batches
        return
    first, is_open = True, False
    st.manual.append(stage)
    try:
        asked = clock()
        iterator: Iterator[T] | None = None
        while True:
            outside, st.in_fetch, st.inner = st.in_fetch, s.ASKED, 0
            try:
                if iterator is None:
                    iterator = iter(batches)
                batch = next(iterator)
            except StopIteration:
                break
            except BaseException as error:
                end = clock()
                st.event(s.BEGIN, asked, end, stage, epoch, first, st.inner, 0)
                st.event(s.END, end, type(error).__name__)
                raise
            finally:
                st.in_fetch = outside
            st.event(s.BEGIN, asked, clock(), stage, epoch, first, st.inner, size_of(batch))
            is_open, first = True, False
            yield batch
            asked = clock()
            st.event(s.END, asked, None)
            is_open = False
    finally:
        # A `break`, or an exception in the loop's body, which a generator cannot tell apart.
        if is_open:
            st.event(s.END, clock(), None)
        _leave(st, stage)


class step:
    """One step, where there is no iterable: `with gpumon.step(): …`. It failed when its body raised.

    Raises:
        ValueError: *stage* is none of train, validation, test, predict.
    """

    __slots__ = ("_epoch", "_samples", "_stage", "_stamps")

    def __init__(self, *, epoch: int | None = None, stage: str = "train", samples: int = 0) -> None:
        _check(stage)
        self._epoch, self._stage, self._samples = epoch, stage, samples
        self._stamps: Stamps | None = None

    def __enter__(self) -> step:
        st = _stamps()
        if st is not None and self._stage not in st.manual:
            self._stamps = st
            st.manual.append(self._stage)
            st.event(s.BEGIN, clock(), 0, self._stage, self._epoch, False, 0, self._samples)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        st, self._stamps = self._stamps, None
        if st is not None:
            st.event(s.END, clock(), kind.__name__ if kind is not None else None)
            _leave(st, self._stage)


class phase:
    """A part of a step: transfer, forward, backward, optimizer, checkpoint, or a name of the user's.

    Its time is taken out of what it lies in, so that the phases of a step still add up to it; waits for data
    within it stay waits.
    """

    __slots__ = ("_begin", "_name", "_stamps")

    def __init__(self, name: str) -> None:
        self._name = name
        self._stamps: Stamps | None = None
        self._begin = 0

    def __enter__(self) -> phase:
        self._stamps = _stamps()
        self._begin = clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        st, self._stamps = self._stamps, None
        if st is not None:
            st.event(s.PHASE, self._name, self._begin, clock())


def _leave(st: Stamps, stage: str) -> None:
    if stage in st.manual:
        st.manual.remove(stage)


def _check(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
