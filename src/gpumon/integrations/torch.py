"""Steps of a plain PyTorch loop, without an edit: stamps at the fetch, `backward` and the optimizer's update.

Only class and module attributes and PyTorch's own global hooks are used, so loops, loaders and optimizers
that exist already are seen too, and everything can be put back in the middle of a loop.
Nothing here imports torch: a post-import hook waits for it.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from time import perf_counter_ns as clock
from typing import Any

import wrapt

from gpumon.tracing import stamps as s
from gpumon.tracing.batch import size_of
from gpumon.tracing.device_time import DeviceTimer
from gpumon.tracing.guard import guard
from gpumon.tracing.stamps import ASKED, FETCHING, OUTSIDE, Stamps
from gpumon.tracing.steps import LoaderSettings, StepTracer

from . import torch_backward, torch_checkpoints

_tracer: StepTracer | None = None
_undo: list[Callable[[], None]] = []
_numbering: set[Any] = set()  # classes whose `__iter__` is ours
_hooked = False
_forks_watched = False
_loaders: dict[int, tuple[weakref.ref[Any], int]] = {}
_loader_numbers = itertools.count(1)
_STATEFUL = "torchdata.stateful_dataloader.stateful_dataloader"  # does not call DataLoader's `__iter__`


def instrument(tracer: StepTracer) -> None:
    """Stamp every training loop from now on; `uninstrument` puts everything back."""
    global _tracer, _hooked, _forks_watched
    if _tracer is not None:
        uninstrument()
    _tracer = tracer
    if not _forks_watched:
        _forks_watched = True
        os.register_at_fork(after_in_child=_in_child)
    if not _hooked:
        _hooked = True
        wrapt.register_post_import_hook(_patch, "torch")
        wrapt.register_post_import_hook(_skip_in_dynamo, "torch._dynamo")
        wrapt.register_post_import_hook(_patch_stateful, _STATEFUL)
        for writer in torch_checkpoints.WRITERS.keys() - {"torch"}:
            wrapt.register_post_import_hook(_watch_writer, writer)
    elif "torch" in sys.modules:
        _patch(sys.modules["torch"])


def uninstrument() -> None:
    """Restore what was patched, where it is still ours; where others wrapped it since, it passes through."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.stop()
    while _undo:
        with guard("uninstrument torch"):
            _undo.pop()()
    _numbering.clear()


def _in_child() -> None:
    """A forked loader worker must not stamp: nobody would empty its log."""
    global _tracer
    if _tracer is not None:
        _tracer.stop()
        _tracer = None


def _skip_in_dynamo(dynamo: Any) -> None:
    """Called once, when dynamo's import has finished; it stays, for without us it says nothing."""
    with guard("torch._dynamo"):
        from torch._dynamo import trace_rules  # type: ignore[import-not-found,unused-ignore]

        trace_rules.add(torch_backward.__name__)


def _patch(torch: Any) -> None:
    tracer = _tracer
    if tracer is None or _undo:
        return
    with guard("instrument torch"):
        _patch_fetch(torch, tracer)
        _patch_iter(torch.utils.data.DataLoader, tracer)
        _patch_backward(torch, tracer)
        _patch_update(torch, tracer)
        _patch_scaler(torch, tracer)
        _patch_capture(torch, tracer)
        _watch_exceptions(tracer)
        if (stateful := sys.modules.get(_STATEFUL)) is not None:
            _patch_stateful(stateful)
        for writer in torch_checkpoints.WRITERS:
            if (module := sys.modules.get(writer)) is not None:
                torch_checkpoints.watch(module, _replace)


def _patch_stateful(module: Any) -> None:
    if _tracer is not None and "torch" in sys.modules:
        with guard("instrument torchdata"):
            _patch_iter(module.StatefulDataLoader, _tracer)


def _watch_writer(module: Any) -> None:
    if _undo:
        with guard("checkpoint"):
            torch_checkpoints.watch(module, _replace)


def _replace(owner: Any, name: str, new: Any) -> None:
    original = owner.__dict__.get(name, _MISSING)
    setattr(owner, name, new)

    def restore() -> None:
        if owner.__dict__.get(name) is new:
            if original is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, original)

    _undo.append(restore)


_MISSING = object()

INLINE, WORKERS, OUT_OF_ORDER = range(3)
"""How an iterator fetches: in the training thread, in workers, in workers whose index is not the batch's."""

Mark = tuple[int, int, int, int]
"""(number of the iteration, INLINE | WORKERS | OUT_OF_ORDER, serial of the iterator, its generation)"""


def _patch_fetch(torch: Any, tracer: StepTracer) -> None:
    base = torch.utils.data.dataloader._BaseDataLoaderIter
    original = base.__next__
    grad_enabled = torch.is_grad_enabled
    tensor = torch.Tensor
    ident = threading.get_ident
    fetches = tracer.fetches

    @functools.wraps(original)
    def __next__(self: Any) -> Any:
        st = tracer.last
        if st.ident != ident():
            if not tracer.on:
                return original(self)
            st = tracer.stamps()
        if st.in_fetch:
            return fetch_for_another(self, st)
        try:
            number, kind, serial, generation = self._gpumon
        except AttributeError:
            number, kind, serial, generation = _marked(self, tracer)
        st.in_fetch = FETCHING
        account = tracer.account
        if account is not None:
            if kind == INLINE:
                account.begin()
            else:
                account = None
        begin = clock()
        try:
            batch = original(self)
        except BaseException as error:
            end = clock()
            st.in_fetch = OUTSIDE
            with guard("a fetch that ended"):
                is_stop = isinstance(error, StopIteration)
                if account is not None:
                    account.end(not is_stop)
                outcome = "stop" if is_stop else type(error).__name__
                st.event(s.FETCH, begin, end, outcome, number, grad_enabled(), 0)
            raise
        end = clock()
        st.in_fetch = OUTSIDE
        try:
            if account is not None:
                account.end()
                if not account.armed:
                    tracer.account = None
            if kind == WORKERS:
                fetches.append((serial, generation, self._rcvd_idx - 1, begin, end))
            data = batch[0] if type(batch) is list and batch else batch
            try:
                samples = data.shape[0] if type(data) is tensor else size_of(batch)
            except IndexError:  # a tensor without a dimension
                samples = size_of(batch)
            if st.n == 5:  # Stamps.row, without the call
                st.log.append((st.f0, st.f1, st.b0, st.b1, st.o0, st.o1, st.it, st.samples, begin))
            elif st.n:
                st.flush()
            if not grad_enabled():
                st.n = 0
                st.event(s.FETCH, begin, end, None, number, False, samples)
            elif st.gpu is not None and st.gpu.begins(begin):
                st.n = 0  # a step whose device time is taken: marked by its events
                st.event(s.FETCH, begin, end, None, number, True, samples)
            else:
                st.f0 = begin
                st.f1 = end
                st.it = number
                st.samples = samples
                st.n = 1
        except Exception:  # ours: the batch is delivered all the same
            with guard("a fetch"):
                raise
        return batch

    def fetch_for_another(iterator: Any, st: Stamps) -> Any:
        """A loader inside a data set fetches, or one that `gpumon.steps` iterates over."""
        if st.in_fetch == FETCHING:
            return original(iterator)
        st.inner, kind, serial, generation = _marked(iterator, tracer)
        account = tracer.account if kind == INLINE else None
        st.in_fetch = FETCHING
        if account is not None:
            account.begin()
        begin = clock()
        got = False
        try:
            batch = original(iterator)
            got = True
        except StopIteration:
            raise
        except BaseException:
            got = True  # the data set's error is a fetch too
            raise
        finally:
            end = clock()
            st.in_fetch = ASKED
            with guard("a fetch"):
                if account is not None:
                    account.end(got)
                    if not account.armed:
                        tracer.account = None
        if kind == WORKERS:
            fetches.append((serial, generation, iterator._rcvd_idx - 1, begin, end))
        return batch

    _replace(base, "__next__", __next__)


def _marked(iterator: Any, tracer: StepTracer) -> Mark:
    """The mark of an iterator that was made before we were there."""
    mark: Mark | None = iterator.__dict__.get("_gpumon")
    if mark is None:
        number = tracer.next_number()
        mark = _mark(iterator, tracer, number, number, 0)
    return mark


def _mark(iterator: Any, tracer: StepTracer, number: int, serial: int, generation: int) -> Mark:
    """*number* is of this iteration; *serial* of the iterator, which persistent workers serve for generations."""
    kind = INLINE
    if getattr(iterator, "_num_workers", 0):
        kind = WORKERS if getattr(iterator, "_in_order", True) else OUT_OF_ORDER
    # One attribute: more of them make the iterator's own slower to look up.
    iterator._gpumon = mark = number, kind, serial, generation
    if kind == INLINE:
        tracer.inline.add(number)
    return mark


def _patch_iter(loader_class: Any, tracer: StepTracer) -> None:
    """Number iterators when they are made; *loader_class* is a class with an `__iter__` of its own."""
    original = loader_class.__dict__.get("__iter__")
    if original is None or loader_class in _numbering:
        return
    _numbering.add(loader_class)

    @functools.wraps(original)
    def __iter__(self: Any) -> Any:
        if not tracer.on:
            return original(self)
        number = serial = tracer.next_number()
        kept, loader, generation = None, 0, 0
        with guard("a loader"):
            if getattr(self, "persistent_workers", False):
                kept = getattr(self, "_iterator", None)
            if (before := getattr(kept, "_gpumon", None)) is not None:
                *_, serial, generation = before
                generation += 1
            loader = _loader_number(self, tracer)
        for call in list(tracer.on_iterator):
            with guard("a new loader"):
                call(self, serial)
        begin = clock()
        iterator = original(self)
        end = clock()
        with guard("a new iterator"):
            st = tracer.stamps()
            if iterator is not kept:
                generation = 0
            _mark(iterator, tracer, number, serial, generation)
            if st.in_fetch != FETCHING:
                if st.n == 5:
                    st.row(begin)
                st.event(s.ITERATOR, begin, end, number, loader)
        return iterator

    _replace(loader_class, "__iter__", __iter__)


def _loader_number(loader: Any, tracer: StepTracer) -> int:
    """A loader's number; never `id()`, which the next loader may have."""
    known = _loaders.get(id(loader))
    if known is not None and known[0]() is loader:
        number = known[1]
    else:
        number = next(_loader_numbers)
        _loaders[id(loader)] = weakref.ref(loader), number
        for key in [key for key, (ref, _) in _loaders.items() if ref() is None]:
            del _loaders[key]
    if number not in tracer.settings:
        tracer.settings[number] = _settings(loader)
    return number


def _settings(loader: Any) -> LoaderSettings:
    workers = loader.num_workers
    return LoaderSettings(
        workers,
        loader.prefetch_factor if workers else None,
        loader.batch_size,
        bool(loader.persistent_workers) if workers else None,
    )


def _patch_backward(torch: Any, tracer: StepTracer) -> None:
    wrapper = torch_backward.wrap(torch.autograd.backward, tracer)
    _replace(torch.autograd, "backward", wrapper)


def _patch_update(torch: Any, tracer: StepTracer) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    # The cheapest of the functions that dynamo folds away.
    compiling = getattr(torch.compiler, "is_dynamo_compiling", torch.compiler.is_compiling)
    ident = threading.get_ident

    # Dynamo traces these two: the first line folds them away, and nothing else may come before it.
    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling():
            return
        st = tracer.last
        if st.ident != ident():
            if not tracer.on:
                return
            st = tracer.stamps()
        if st.n == 3:
            st.opt = id(optimizer)
            st.o0 = clock()
            st.n = 4
        else:
            st.event(s.UPDATE, clock(), id(optimizer))

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling():
            return
        st = tracer.last
        if st.ident != ident():
            if not tracer.on:
                return
            st = tracer.stamps()
        if st.n == 4:  # of the same optimizer: another one's begin would not have left it at 4
            st.o1 = clock()
            st.n = 5
        else:
            st.event(s.UPDATE_END, clock(), id(optimizer))

    _undo.append(register_optimizer_step_pre_hook(before).remove)
    _undo.append(register_optimizer_step_post_hook(after).remove)


def _patch_capture(torch: Any, tracer: StepTracer) -> None:
    """Time steps on the device from when the training has begun to use it, but never while a graph is captured."""
    captures = 0

    def timer() -> DeviceTimer | None:
        return DeviceTimer(torch.cuda, lambda: captures > 0) if torch.cuda.is_initialized() else None

    tracer.device_timer = timer
    graph = torch.cuda.graph
    enter, leave = graph.__enter__, graph.__exit__

    @functools.wraps(enter)
    def __enter__(self: Any) -> Any:
        nonlocal captures
        captures += 1
        try:
            return enter(self)
        except BaseException:
            captures -= 1
            raise

    @functools.wraps(leave)
    def __exit__(self: Any, *raised: Any) -> Any:
        nonlocal captures
        try:
            return leave(self, *raised)
        finally:
            captures -= 1

    _replace(graph, "__enter__", __enter__)
    _replace(graph, "__exit__", __exit__)


def _patch_scaler(torch: Any, tracer: StepTracer) -> None:
    scaler = getattr(torch.amp, "GradScaler", None)
    if scaler is None:
        return
    original = scaler.step

    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not tracer.on:
            return original(self, optimizer, *args, **kwargs)
        st = tracer.stamps()
        st.event(s.SCALER, clock(), id(optimizer))
        try:
            result = original(self, optimizer, *args, **kwargs)
        except BaseException as error:
            st.event(s.SCALER_END, clock(), id(optimizer), type(error).__name__)
            raise
        st.event(s.SCALER_END, clock(), id(optimizer), None)
        return result

    _replace(scaler, "step", step)


def _watch_exceptions(tracer: StepTracer) -> None:
    def note(kind: Any) -> None:
        st: Stamps | None = getattr(tracer.local, "stamps", None)
        if tracer.on and st is not None and kind is not None:
            st.in_fetch, st.in_backward = s.OUTSIDE, False
            st.event(s.UNCAUGHT, clock(), kind.__name__)

    main_hook, thread_hook = sys.excepthook, threading.excepthook

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        with guard("excepthook"):
            note(kind)
        main_hook(kind, error, trace)

    def thread_excepthook(arguments: Any) -> None:
        with guard("excepthook"):
            note(arguments.exc_type)
        thread_hook(arguments)

    _replace(sys, "excepthook", excepthook)
    _replace(threading, "excepthook", thread_excepthook)
