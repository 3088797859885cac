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
    if st is None or st.manual:
        yield from batches
        return
    st.flush()
    st.manual += 1
    is_open = False
    first = True
    try:
        asked = clock()
        iterator = iter(batches)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except BaseException as error:
                st.log.append((s.BEGIN, asked, stage, epoch, first))
                st.log.append((s.PHASE, "data.wait", asked, clock()))
                st.log.append((s.END, clock(), type(error).__name__, 0))
                raise
            st.log.append((s.BEGIN, asked, stage, epoch, first))
            st.log.append((s.PHASE, "data.wait", asked, clock()))
            is_open, first = True, False
            samples = size_of(batch)
            yield batch
            asked = clock()
            st.log.append((s.END, asked, None, samples))
            is_open = False
    finally:
        # A `break`, or an exception in the loop's body, which a generator cannot tell apart.
        if is_open:
            st.log.append((s.END, clock(), None, samples))
        st.manual -= 1


class step:
    """One step, where there is no iterable: `with gpumon.step(): …`. It failed when its body raised.

    Raises:
        ValueError: *stage* is none of train, validation, test, predict.
    """

    __slots__ = ("_epoch", "_samples", "_stage", "_stamps")

    def __init__(self, *, epoch: int | None = None, stage: str = "train", samples: int = 0) -> None:
        _check(stage)
        self._epoch, self._stage, self._samples = epoch, stage, samples

    def __enter__(self) -> step:
        st = self._stamps = _stamps()
        if st is not None and st.manual:
            st = self._stamps = None
        if st is not None:
            st.flush()
            st.manual += 1
            st.log.append((s.BEGIN, clock(), self._stage, self._epoch, False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        st = self._stamps
        if st is not None:
            st.log.append((s.END, clock(), kind.__name__ if kind is not None else None, self._samples))
            st.manual -= 1


class phase:
    """A part of a step: transfer, forward, backward, optimizer, checkpoint, or a name of the user's.

    Its time is taken out of what it lies in, so that the phases of a step still add up to it.
    """

    __slots__ = ("_begin", "_name", "_stamps")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> phase:
        self._stamps = _stamps()
        self._begin = clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        st = self._stamps
        if st is not None:
            end = clock()
            st.flush()
            st.log.append((s.PHASE, self._name, self._begin, end))


def _check(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
