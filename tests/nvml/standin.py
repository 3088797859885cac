"""The real nvidia-ml-py over a stand-in for the driver's library: built from standin.c, driven by a text file."""

import atexit
import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("standin.c")
LIBRARY = "libnvidia-ml.so.1"
GIB = 1 << 30
HEALTHY = {
    "gpus": 1,
    "field.3": 0,
    "field.4": 0,
    "field.82": 70,
    "field.83": 5_000_000,
    "field.94": 2,
    "field.197": 3_000_000_000_000,
    "field.198": 4_000_000_000_000,
    "field.138": 1000,
    "field.139": 2000,
    "field.142": 1,
    "field.143": 0,
    "field.144": 0,
    "field.145": 0,
    "field.74": 3_500_000_000,
    "field.76": 0,
    "field.269": 1_000_000_000,
    "field.270": 0,
    "field.271": 0,
    "gpm.2": 80,
    "gpm.3": 40,
    "gpm.5": 30,
    "gpm.10": 60,
    "fan": 35,
}
"""A GPU that has everything of the table."""


@cache
def built() -> Path:
    """The folder with the library; for LD_LIBRARY_PATH of other processes."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs gcc")
    folder = Path(tempfile.mkdtemp(prefix="gpumon-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [compiler, "-shared", "-fPIC", "-O2", f"-Wl,-soname,{LIBRARY}", "-o", folder / LIBRARY, SOURCE]
    subprocess.run(command, check=True)
    return folder


class StandIn:
    """The library's state: what it says, what fails, and how often it was called."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.driver = ctypes.CDLL(str(built() / LIBRARY))
        self.driver.standin_function.restype = ctypes.c_char_p
        self.driver.standin_calls.restype = ctypes.c_long
        self._state: dict[str, object] = {}

    def set(self, state=None, /, **more):
        """Change some keys; None drops one."""
        self._state.update({**(state or {}), **more})
        self._state = {key: value for key, value in self._state.items() if value is not None}
        temporary = self.file.with_suffix(".new")
        temporary.write_text("".join(f"{key}={value}\n" for key, value in self._state.items()))
        temporary.replace(self.file)
        self.driver.standin_reload()

    def healthy(self, state=None, /, **more):
        """Only what a GPU with everything says, and these keys."""
        self._state = {}
        self.set({**HEALTHY, **(state or {})}, **more)

    def off(self):
        """No driver."""
        self._state = {}
        self.set()

    def functions(self) -> list[str]:
        """Every function that was called or named."""
        names, number = [], 0
        while name := self.driver.standin_function(number):
            names.append(name.decode())
            number += 1
        return names

    def calls(self, function: str, gpu: int = -1) -> int:
        return self.driver.standin_calls(function.encode(), gpu)

    def all_calls(self, gpu: int) -> dict[str, int]:
        """Function -> calls for a GPU so far."""
        counts = {name: self.calls(name, gpu) for name in self.functions()}
        return {name: count for name, count in counts.items() if count}

    def reset(self):
        self.driver.standin_reset()


@contextlib.contextmanager
def standing_in(folder: Path):
    """pynvml talks to the stand-in, in this process."""
    import pynvml

    from gpumon.system import nvml

    file = folder / "nvml.state"
    file.write_text("")
    before, started = os.environ.get("NVML_STANDIN"), nvml._started_in
    real = pynvml.nvmlLib
    os.environ["NVML_STANDIN"] = str(file)
    standin = StandIn(file)
    standin.reset()
    standin.healthy()
    pynvml.nvmlLib, nvml._started_in = standin.driver, 0
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield standin
    finally:
        standin.off()
        pynvml.nvmlLib, nvml._started_in = real, started
        pynvml._nvmlGetFunctionPointer_cache.clear()
        os.environ.pop("NVML_STANDIN")
        if before is not None:
            os.environ["NVML_STANDIN"] = before


def environment(file: Path) -> dict[str, str]:
    """Of another process that shall find the stand-in."""
    return {**os.environ, "LD_LIBRARY_PATH": str(built()), "NVML_STANDIN": str(file)}
