"""The stand-in for `torch.autograd.backward`, in a file of its own: dynamo is told to skip this file.

So a compiled region that contains `.backward()` has as many graphs and breaks as without us.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from time import perf_counter_ns as clock
from typing import Any

from gpumon.tracing import stamps as s
from gpumon.tracing.stamps import Stamps
from gpumon.tracing.steps import StepTracer

_PARAMETERS = ["tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs"]


def wrap(original: Callable[..., Any], tracer: StepTracer) -> Callable[..., Any]:
    """*original* between two stamps."""
    ident = threading.get_ident

    # Passing positional arguments on is cheaper than packing and unpacking whatever comes.
    @functools.wraps(original)
    def backward(
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        grad_variables: Any = None,
        inputs: Any = None,
    ) -> Any:
        st = tracer.last
        if st.ident != ident():
            if not tracer.on:
                return original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
            st = tracer.stamps()
        if st.n == 1:  # the regular step's; `st.n` says meanwhile that it runs
            st.n = 2
            st.b0 = clock()
            try:
                result = original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
            except BaseException as error:
                st.event(s.BACKWARD_END, clock(), type(error).__name__)
                st.in_backward = False
                raise
            if st.n == 2:
                st.b1 = clock()
                st.n = 3
            else:
                st.event(s.BACKWARD_END, clock(), None)
                st.in_backward = False
            return result
        if st.is_in_backward:  # checkpointing: a backward within a backward
            return original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
        return irregular(st, tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)

    def irregular(st: Stamps, *args: Any, **kwargs: Any) -> Any:
        st.event(s.BACKWARD, clock())
        st.in_backward = True
        failed = None
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            st.event(s.BACKWARD_END, clock(), failed)
            st.in_backward = False

    @functools.wraps(original)
    def backward_of_another_version(*args: Any, **kwargs: Any) -> Any:
        if not tracer.on or (st := tracer.stamps()).is_in_backward:
            return original(*args, **kwargs)
        return irregular(st, *args, **kwargs)

    is_known = list(inspect.signature(original).parameters) == _PARAMETERS
    return backward if is_known else backward_of_another_version
