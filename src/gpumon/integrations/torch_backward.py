"""The stand-in for `torch.autograd.backward`, in a file of its own: dynamo is told to skip this file.

So a compiled region that contains `.backward()` has as many graphs and breaks as without us.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from time import perf_counter_ns as clock
from typing import Any

from gpumon.tracing import stamps as s
from gpumon.tracing.steps import StepTracer


def wrap(original: Callable[..., Any], compiling: Callable[[], bool], tracer: StepTracer) -> Callable[..., Any]:
    states = tracer._stamps
    ident = threading.get_ident

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> Any:
        if compiling() or not tracer.on:
            return original(*args, **kwargs)
        st = states.get(ident()) or tracer.stamps()
        regular = st.n == 1
        if regular:
            st.n = 2
            st.b0 = clock()
        else:
            if st.n:
                st.flush()
            st.log.append((s.BACKWARD, clock()))
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            end = clock()
            st.flush()
            st.log.append((s.BACKWARD_END, end, type(error).__name__))
            raise
        if regular and st.n == 2:
            st.b1 = clock()
            st.n = 3
        else:
            end = clock()
            st.flush()
            st.log.append((s.BACKWARD_END, end, None))
        return result

    return backward
