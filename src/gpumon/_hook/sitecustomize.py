"""What `gpumon run` starts in every Python interpreter of the command, through `PYTHONPATH`.

Here nothing is recorded yet, and next to nothing is imported: an interpreter that never trains must not
notice. Once the first of `TRIGGERS` has been imported, `gpumon.instrument()` is called.
Any Python of the machine may read this file, so it stays within the syntax of Python 3.6.
"""

import os
import sys

TRIGGERS = ("torch", "gpumon")

HELPERS = (
    "multiprocessing.resource_tracker",
    "multiprocessing.spawn",
    "multiprocessing.forkserver",
    "loky.backend",
    "torch/_inductor/compile_worker",
)
"""Words in what an interpreter runs that only serves another one."""

LAUNCHERS = (
    "torchrun",
    "accelerate",
    "accelerate-launch",
    "deepspeed",
    "fabric",
    "opentelemetry-instrument",
    "gpumon",
)
LAUNCHER_MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands",
    "deepspeed.launcher",
    "gpumon",
)
"""They import torch or gpumon, but train in processes of their own, which are recorded instead."""


def program(argv: "list[str]") -> "tuple[str, str, str]":
    """What a Python command line runs: its single-letter options, the kind, and the code, module or script.

    The kind is `c`, `m`, or the empty string for a script: `-Iu -m pkg.train` is ("Iu", "m", "pkg.train").
    """
    flags = ""
    rest = list(argv[1:])
    while rest:
        argument = rest.pop(0)
        if argument.startswith("--"):
            if argument == "--check-hash-based-pycs" and rest:
                rest.pop(0)
        elif argument.startswith("-") and argument != "-":
            for position, letter in enumerate(argument[1:], 2):
                value = argument[position:]
                if letter in "cmWX":
                    if not value and rest:
                        value = rest.pop(0)
                    if letter in "cm":
                        return flags, letter, value
                    break
                flags += letter
        else:
            return flags, "", argument
    return flags, "", ""


def trains_elsewhere(argv: "list[str]") -> bool:
    """Whether the interpreter with this command line leaves the training to other processes."""
    _, kind, target = program(argv)
    if "--multiprocessing-fork" in argv or any(word in target for word in HELPERS):
        return True
    if kind == "m":
        return (target + ".").startswith(tuple(module + "." for module in LAUNCHER_MODULES))
    return not kind and os.path.basename(target) in LAUNCHERS  # noqa: PTH119 - importing pathlib costs 5 ms


class Trigger:
    """A meta path finder that finds nothing itself; once one of TRIGGERS is imported, it calls `start`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name not in TRIGGERS:
            return None
        others = [finder for finder in _meta_path() if finder is not self]
        for finder in others:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(spec.loader, self)
                return spec
        return None

    def invalidate_caches(self) -> None:
        """Nothing is cached."""

    def fire(self) -> None:
        if self in _meta_path():
            _meta_path().remove(self)
            start()


def _meta_path() -> "list[object]":
    return sys.meta_path  # type: ignore[return-value]


class Loader:
    """Loads as the module's own loader does, puts that one back in place, then fires the trigger."""

    def __init__(self, loader: object, trigger: Trigger) -> None:
        self._loader = loader
        self._trigger = trigger

    def create_module(self, spec: object) -> object:
        return self._loader.create_module(spec)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # for those who only look whether torch is installed

    def exec_module(self, module: object) -> None:
        module.__loader__ = module.__spec__.loader = self._loader  # type: ignore[attr-defined]
        self._loader.exec_module(module)  # type: ignore[attr-defined]
        self._trigger.fire()


def start() -> None:
    """Record this interpreter; where that fails, say so in one line and let it run."""
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - any Python may run this
            raise RuntimeError("gpumon needs Python 3.10 or newer, this is " + sys.version.split()[0])
        import gpumon

        gpumon.instrument()
    except Exception as error:  # noqa: BLE001 - the training goes on
        give_up(error)


def give_up(error: Exception) -> None:
    """Leave the reason in the run directory, and print it: once per run, whatever the number of processes."""
    if os.environ.get("GPUMON_STRICT") == "1":
        import traceback

        traceback.print_exc()
    if isinstance(error, ImportError):
        import shlex

        repair = shlex.quote(sys.executable) + " -m pip install opentelemetry-instrumentation-gpumon"
        reason = sys.executable + " cannot import gpumon: " + str(error) + " -> " + repair
    else:
        reason = sys.executable + ": " + str(error)
    try:
        place = os.path.join(os.environ["GPUMON_RUN_DIR"], "not-recorded.txt")  # noqa: PTH118
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, reason.encode("utf-8", "replace") + b"\n")
        os.close(descriptor)
        sys.stderr.write("gpumon: not recorded: " + reason + "\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001
        return  # said already, or nobody to say it to


def install() -> None:
    argv = getattr(sys, "orig_argv", [])  # 3.10 and newer
    if os.environ.get("GPUMON_RUN_DIR") and not trains_elsewhere(argv):
        _meta_path().insert(0, Trigger())


def chain() -> None:
    """Run the `sitecustomize` that this one stands in front of; it raises what it raises."""
    own = sys.modules.pop("sitecustomize", None)
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]  # noqa: PTH100
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


if __name__ == "sitecustomize":
    try:
        install()
    except Exception:
        if os.environ.get("GPUMON_STRICT") == "1":
            raise
    chain()
