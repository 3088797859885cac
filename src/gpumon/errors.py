"""The exceptions of gpumon.

    GpumonError
    ├── NoDataError      this host has no such source: absent, not broken
    ├── CollectorError   the source is here and could not be read
    └── RunError         a recorded run that cannot be read; the message is what the user sees

`ValueError` is the user's configuration. Exceptions of the training itself pass through untouched.
"""


class GpumonError(Exception):
    """The root of gpumon's exceptions."""


class NoDataError(GpumonError):
    """This host has no such source; the text is the reason that `gpumon.collector.up` and reports show."""


class CollectorError(GpumonError):
    """The source is here but could not be read; the text is the reason."""


class RunError(GpumonError):
    """No readable run at the place that was named; the text is one line for the user."""
