"""Fetch accounts from PyTorch's DataLoader workers, and from the training thread where there are none.

The loop that a worker process runs (`_worker_loop`, looked up at every start of a worker) is replaced by one
that runs the original between two stand-ins for its queues: a fetch begins when a task comes out of the one,
and ends when its batch goes into the other. Data set, batches, `worker_init_fn`, `collate_fn` and what is
pickled of the loader stay untouched.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import wrapt

from gpumon.tracing.fetch_ring import RingWriter

ATTRIBUTE = "_worker_loop"
MODULES = (
    "torch.utils.data._utils.worker",
    "torchdata.stateful_dataloader.stateful_dataloader",
)
"""Where a worker's loop is looked up; each may be absent, or come later."""

_HOOKED_ON = {"torch.utils.data._utils.worker": "torch"}  # sub-modules fire in the middle of torch's import

Loop = Callable[..., Any]


class Accounts(Protocol):
    """What is needed of `tracing.accounts.FetchAccounts`."""

    tracer: Any
    inline: Any

    @property
    def folder(self) -> str | None: ...

    def expect(self) -> None: ...


_FOUND_BY_NAME = {
    ("torch.utils.data._utils.worker", ATTRIBUTE),
    ("torchdata.stateful_dataloader.worker", ATTRIBUTE),
}

_replaced: set[str] = set()  # modules that hold a loop of ours, maybe below one of somebody else
_accounts: Accounts | None = None
_owner = 0  # pid of the process that `_accounts` belongs to
_hooked = False
_iterator = threading.local()  # .serial: of the iterator that this thread is making


class WorkerLoop:
    """Stands where the original loop was. Pickled, it is a name and some plain values."""

    def __init__(self, module: str, original: Loop) -> None:
        functools.update_wrapper(self, original)
        self._module = module
        self._original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # In a forked worker, or called by whoever it may be.
        return _run(self._original, *self._target(os.getppid()), args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that is found by name cannot be pickled while its name leads to us: the worker looks it
        # up. What somebody else put there before us has to travel.
        own = (self._original.__module__, self._original.__qualname__) in _FOUND_BY_NAME
        return functools.partial, (
            worker_loop,
            self._module,
            None if own else self._original,
            *self._target(os.getpid()),
        )

    def _target(self, parent: int) -> tuple[str | None, int]:
        """The folder, where the worker's parent is a process that reads it, and the iterator's serial."""
        folder = _accounts.folder if _accounts is not None and parent == _owner else None
        return folder, getattr(_iterator, "serial", -1)


def worker_loop(module: str, original: Loop | None, folder: str | None, serial: int, *args: Any, **kwargs: Any) -> Any:
    """What a spawned worker runs: *original*, else the loop found in *module*, with accounts in *folder*."""
    if original is None:
        original = getattr(importlib.import_module(module), ATTRIBUTE)
        if isinstance(original, WorkerLoop):  # the script instruments itself when the worker imports it
            original = original._original
    return _run(original, folder, serial, args, kwargs)


def _run(original: Loop, folder: str | None, serial: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if folder is None:
        return original(*args, **kwargs)
    writer = None
    try:
        bound = inspect.signature(original).bind(*args, **kwargs)
        arguments = bound.arguments
        tasks, batches, worker_id = (arguments[name] for name in ("index_queue", "data_queue", "worker_id"))
        writer = RingWriter(folder, int(worker_id), serial)
        arguments["index_queue"] = _Tasks(tasks, writer)
        arguments["data_queue"] = _Batches(batches, writer)
        args, kwargs = bound.args, bound.kwargs
    except Exception:  # noqa: BLE001 - another signature, no room: no accounts, but never a broken worker
        writer = None
    try:
        return original(*args, **kwargs)
    finally:
        if writer is not None:
            writer.close()


class _Queue:
    """A queue that is another one, but for what a subclass defines."""

    def __init__(self, queue: Any, writer: RingWriter) -> None:
        self._gpumon_queue = queue
        self._gpumon_writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpumon_queue, name)


class _Tasks(_Queue):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        writer = self._gpumon_writer
        writer.drop()  # a task that was not worked on
        task = self._gpumon_queue.get(*args, **kwargs)
        try:
            if type(task) is tuple and type(task[0]) is int:
                writer.begin(task[0])
            elif type(task).__name__ == "_ResumeIteration":
                writer.next_generation()
        except Exception:  # noqa: BLE001
            _failed()
        return task


class _Batches(_Queue):
    def put(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if type(item) is tuple and type(item[0]) is int:
                data = item[1]
                if type(data) is tuple and data:  # torchdata: with the worker's state
                    data = data[0]
                if type(data).__name__ == "_IterableDatasetStopIteration":
                    self._gpumon_writer.drop()
                else:
                    self._gpumon_writer.end()
        except Exception:  # noqa: BLE001
            _failed()
        return self._gpumon_queue.put(item, *args, **kwargs)


def _failed() -> None:
    """A failure of ours costs a record, never a worker; our tests see it."""
    if os.environ.get("GPUMON_STRICT") == "1":
        raise


# -- the trainer's side -----------------------------------------------------------------------------------


def instrument(accounts: Accounts) -> None:
    """Take accounts of the workers that start from now on; `uninstrument` undoes it."""
    global _accounts, _owner, _hooked
    _accounts = accounts
    _owner = os.getpid()
    accounts.tracer.on_iterator.append(_on_iterator)
    accounts.tracer.account = accounts.tracer.inline_account = accounts.inline
    if not _hooked:
        _hooked = True
        for module in MODULES:
            hook = functools.partial(_when_imported, module)
            wrapt.register_post_import_hook(hook, _HOOKED_ON.get(module, module))
    else:
        for module in MODULES:
            if _HOOKED_ON.get(module, module) in sys.modules:
                _replace(module)


def uninstrument() -> None:
    """Put the original loops back; workers that run go on and keep their accounts."""
    global _accounts
    accounts, _accounts = _accounts, None
    if accounts is not None:
        if _on_iterator in accounts.tracer.on_iterator:
            accounts.tracer.on_iterator.remove(_on_iterator)
        if accounts.tracer.inline_account is accounts.inline:
            accounts.tracer.account = accounts.tracer.inline_account = None
    for module in list(_replaced):
        found = sys.modules.get(module)
        loop = getattr(found, ATTRIBUTE, None)
        # Whoever replaced ours since keeps it: without accounts it only passes through.
        if isinstance(loop, WorkerLoop):
            setattr(found, ATTRIBUTE, loop._original)
            _replaced.discard(module)


def _when_imported(module: str, _imported: Any) -> None:
    if _accounts is not None:
        _replace(module)


def _replace(module: str) -> None:
    if module in _replaced:
        return
    try:
        found = importlib.import_module(module)
    except ImportError:
        return
    loop = getattr(found, ATTRIBUTE, None)
    if loop is not None:
        setattr(found, ATTRIBUTE, WorkerLoop(module, loop))
        _replaced.add(module)


def _on_iterator(_loader: Any, serial: int) -> None:
    """In the training thread, before a loader makes an iterator: the workers that start now are its."""
    _iterator.serial = serial
    if _accounts is not None:
        _accounts.expect()
