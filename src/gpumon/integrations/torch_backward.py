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
        if st.in_backward:  # checkpointing: a backward within a backward
            return original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
        st.in_backward = True
        is_regular = st.n == 1
        if is_regular:
            st.n = 2
            st.b0 = clock()
        else:
            st.event(s.BACKWARD, clock())
        try:
            result = original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
        except BaseException as error:
            st.in_backward = False
            st.event(s.BACKWARD_END, clock(), type(error).__name__)
            raise
        st.in_backward = False
        if is_regular and st.n == 2:
            st.b1 = clock()
            st.n = 3
        else:
            st.event(s.BACKWARD_END, clock(), None)
        return result

    @functools.wraps(original)
    def backward_of_another_version(*args: Any, **kwargs: Any) -> Any:
        if not tracer.on or (st := tracer.stamps()).in_backward:
            return original(*args, **kwargs)
        st.in_backward = True
        st.event(s.BACKWARD, clock())
        failed = None
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            st.in_backward = False
            st.event(s.BACKWARD_END, clock(), failed)

    is_known = list(inspect.signature(original).parameters) == _PARAMETERS
    return backward if is_known else backward_of_another_version
