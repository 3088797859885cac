"""Steps of a plain PyTorch loop, without an edit: stamps at the fetch, `backward` and the optimizer's update.

Only class and module attributes and PyTorch's own global hooks are used, so loops, loaders and optimizers
that exist already are seen too, and everything can be put back in the middle of a loop.
Nothing here imports torch: a post-import hook waits for it.
"""

from __future__ import annotations

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
from gpumon.tracing.guard import guard
from gpumon.tracing.stamps import Stamps
from gpumon.tracing.steps import LoaderSettings, StepTracer

from . import torch_backward

_tracer: StepTracer | None = None
_undo: list[Callable[[], None]] = []
_hooked = False
_forks_watched = False
_numbers: weakref.WeakKeyDictionary[Any, tuple[int, int, int]] = weakref.WeakKeyDictionary()


def instrument(tracer: StepTracer) -> None:
    """Stamp every training loop from now on; `uninstrument` puts everything back."""
    global _tracer, _hooked, _forks_watched
    _tracer = tracer
    if not _forks_watched:
        _forks_watched = True
        os.register_at_fork(after_in_child=_in_child)
    if not _hooked:
        _hooked = True
        wrapt.register_post_import_hook(_patch, "torch")
        wrapt.register_post_import_hook(_skip_in_dynamo, "torch._dynamo")
    elif "torch" in sys.modules:
        _patch(sys.modules["torch"])


def uninstrument() -> None:
    """Restore what was patched, where it is still ours; where others wrapped it since, it passes through."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.on = False
    while _undo:
        with guard("uninstrument torch"):
            _undo.pop()()


def _in_child() -> None:
    """A forked loader worker must not stamp: nobody would empty its log."""
    global _tracer
    if _tracer is not None:
        _tracer.on = False
        _tracer = None


def _skip_in_dynamo(dynamo: Any) -> None:
    with guard("torch._dynamo"):
        from torch._dynamo import trace_rules  # type: ignore[import-not-found,unused-ignore]

        trace_rules.add(torch_backward.__name__)


def _patch(torch: Any) -> None:
    tracer = _tracer
    if tracer is None or _undo:
        return
    with guard("instrument torch"):
        _patch_fetch(torch, tracer)
        _patch_iter(torch, tracer)
        _patch_backward(torch, tracer)
        _patch_update(torch, tracer)
        _patch_scaler(torch, tracer)
        _watch_exceptions(tracer)
        if "torch._dynamo" in sys.modules:
            _skip_in_dynamo(sys.modules["torch._dynamo"])


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


def _patch_fetch(torch: Any, tracer: StepTracer) -> None:
    base = torch.utils.data.dataloader._BaseDataLoaderIter
    original = base.__next__
    grad_enabled = torch.is_grad_enabled
    states = tracer._stamps
    ident = threading.get_ident
    fetches = tracer.fetches

    def __next__(self: Any) -> Any:
        if not tracer.on:
            return original(self)
        st = states.get(ident()) or tracer.stamps()
        if st.in_fetch:  # a loader inside a data set
            return original(self)
        if st.manual:  # within a step that the training marks itself
            begin = clock()
            try:
                return original(self)
            finally:
                st.log.append((s.PHASE, "data.wait", begin, clock()))
        st.in_fetch = True
        account = inline = None
        if not self._num_workers and (inline := tracer.account) is not None and inline.armed:
            account = inline
            account.begin()
        begin = clock()
        try:
            batch = original(self)
        except BaseException as error:
            end = clock()
            st.in_fetch = False
            if account is not None:
                account.end(not isinstance(error, StopIteration))
            st.flush()
            outcome = "stop" if isinstance(error, StopIteration) else type(error).__name__
            st.log.append((s.FETCH, begin, end, outcome, _number(self, tracer), True, 0))
            raise
        end = clock()
        st.in_fetch = False
        if account is not None:
            account.end()
        elif inline is not None:
            inline.count += 1
            inline.wall_ns += end - begin
        try:
            number = self._gpumon_number
        except AttributeError:
            number = _number(self, tracer)
        data = batch[0] if type(batch) is list and batch else batch
        try:
            samples = data.size(0)
        except Exception:
            samples = size_of(batch)
        if st.n == 5:
            st.log.append((st.f0, st.f1, st.b0, st.b1, st.o0, st.o1, st.it, st.samples, begin))
        elif st.n:
            st.flush()
        if grad_enabled():
            st.f0 = begin
            st.f1 = end
            st.it = number
            st.samples = samples
            st.n = 1
        else:
            st.n = 0
            st.log.append((s.FETCH, begin, end, None, number, False, samples))
        if self._num_workers and getattr(self, "_in_order", True):  # else the index is not the batch's
            fetches.append((self._gpumon_serial, self._gpumon_generation, self._rcvd_idx - 1, begin, end))
        return batch

    __next__.__wrapped__ = original  # type: ignore[attr-defined]
    _replace(base, "__next__", __next__)


def _number(iterator: Any, tracer: StepTracer) -> int:
    """The number of an iterator that was made before we were there."""
    number = iterator.__dict__.get("_gpumon_number")
    if number is None:
        number = tracer.next_number()
        iterator._gpumon_number = iterator._gpumon_serial = number
        iterator._gpumon_generation = 0
    return int(number)


def _patch_iter(torch: Any, tracer: StepTracer) -> None:
    loader_class = torch.utils.data.DataLoader
    loaders: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
    keys = itertools.count(1)

    def patch(owner: Any) -> None:
        original = owner.__dict__["__iter__"]

        def __iter__(self: Any) -> Any:
            if not tracer.on:
                return original(self)
            number = tracer.next_number()
            st = tracer.stamps()
            kept = getattr(self, "_iterator", None) if getattr(self, "persistent_workers", False) else None
            serial = kept.__dict__.get("_gpumon_serial", number) if kept is not None else number
            if self not in loaders:
                with guard("a loader's settings"):
                    loaders[self] = next(keys)
                    tracer.settings[loaders[self]] = _settings(self)
            for call in list(tracer.on_iterator):
                with guard("a new loader"):
                    call(self, serial)
            begin = clock()
            iterator = original(self)
            end = clock()
            with guard("a new iterator"):
                generation = iterator.__dict__.get("_gpumon_generation", -1) + 1 if iterator is kept else 0
                iterator._gpumon_number = number
                iterator._gpumon_serial = serial
                iterator._gpumon_generation = generation
                if st.n == 5:
                    st.n = 0
                    st.log.append((st.f0, st.f1, st.b0, st.b1, st.o0, st.o1, st.it, st.samples, begin))
                st.flush()
                if not (st.in_fetch or st.manual):
                    st.log.append((s.ITERATOR, begin, end, number, loaders.get(self, 0)))
            return iterator

        _replace(owner, "__iter__", __iter__)

    patch(loader_class)
    if stateful := sys.modules.get("torchdata.stateful_dataloader.stateful_dataloader"):
        patch(stateful.StatefulDataLoader)


def _settings(loader: Any) -> LoaderSettings:
    workers = loader.num_workers
    return LoaderSettings(
        workers,
        loader.prefetch_factor if workers else None,
        loader.batch_size,
        bool(loader.persistent_workers) if workers else None,
    )


def _patch_backward(torch: Any, tracer: StepTracer) -> None:
    wrapper = torch_backward.wrap(torch.autograd.backward, torch.compiler.is_compiling, tracer)
    _replace(torch.autograd, "backward", wrapper)


def _patch_update(torch: Any, tracer: StepTracer) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    compiling = torch.compiler.is_compiling
    states = tracer._stamps
    ident = threading.get_ident

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling() or not tracer.on:
            return
        st = states.get(ident()) or tracer.stamps()
        if st.n == 3:
            st.opt = id(optimizer)
            st.o0 = clock()
            st.n = 4
        else:
            if st.n:
                st.flush()
            st.log.append((s.UPDATE, clock(), id(optimizer)))

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling() or not tracer.on:
            return
        st = states.get(ident()) or tracer.stamps()
        if st.n == 4 and st.opt == id(optimizer):
            st.o1 = clock()
            st.n = 5
        else:
            if st.n:
                st.flush()
            st.log.append((s.UPDATE_END, clock(), id(optimizer)))

    for handle in (register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)):
        _undo.append(handle.remove)


def _patch_scaler(torch: Any, tracer: StepTracer) -> None:
    scaler = getattr(torch.amp, "GradScaler", None)
    if scaler is None:
        return
    original = scaler.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not tracer.on:
            return original(self, *args, **kwargs)
        st = tracer.stamps()
        st.flush()
        st.log.append((s.SCALER, clock()))
        result = original(self, *args, **kwargs)
        st.flush()
        st.log.append((s.SCALER_END, clock()))
        return result

    step.__wrapped__ = original  # type: ignore[attr-defined]
    _replace(scaler, "step", step)


def _watch_exceptions(tracer: StepTracer) -> None:
    def note(kind: Any) -> None:
        st: Stamps | None = tracer._stamps.get(threading.get_ident())
        if tracer.on and st is not None and kind is not None:
            st.flush()
            st.log.append((s.UNCAUGHT, clock(), kind.__name__))

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
