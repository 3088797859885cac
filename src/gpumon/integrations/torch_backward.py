"""The stand-in for `torch.autograd.backward`, in a file of its own: dynamo is told to skip this file.

So a compiled region that contains `.backward()` has as many graphs and breaks as without us.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter_ns as clock
from typing import Any

from gpumon.tracing import stamps as s
from gpumon.tracing.steps import StepTracer


def wrap(original: Callable[..., Any], compiling: Callable[[], bool], tracer: StepTracer) -> Callable[..., Any]:
    local = tracer.local

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        if compiling() or not tracer.on:
            return original(*args, **kwargs)
        try:
            st = local.stamps
        except AttributeError:
            st = tracer.stamps()
        if st.in_backward:  # checkpointing: a backward within a backward
            return original(*args, **kwargs)
        st.in_backward = True
        regular = st.n == 1
        if regular:
            st.n = 2
            st.b0 = clock()
        else:
            st.event(s.BACKWARD, clock())
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            st.in_backward = False
            st.event(s.BACKWARD_END, clock(), type(error).__name__)
            raise
        st.in_backward = False
        if regular and st.n == 2:
            st.b1 = clock()
            st.n = 3
        else:
            st.event(s.BACKWARD_END, clock(), None)
        return result

    return backward
