"""The frameworks that are installed: whether gpumon hooks them, and whether they see the GPU that is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from typing import Any, Final

from gpumon.doctor import gpu
from gpumon.doctor.check import Result, absent, failed, ok, warning
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import on_machine, pip_install

IMPORT_S: Final = 25.0
_MARK: Final = "gpumon-doctor:"
ASK: Final = {
    "torch": """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda or getattr(torch.version, "hip", None) and "ROCm" or None
    answer = {"seen": seen, "built": built, "archs": list(torch.cuda.get_arch_list())}
answer["said"] = [str(each.message) for each in said]
""",
    "tensorflow": """
import tensorflow
seen = tensorflow.config.list_physical_devices("GPU")
answer = {"seen": len(seen), "built": tensorflow.test.is_built_with_cuda()}
""",
    "jax": """
import jax
try:
    seen = len([each for each in jax.devices() if each.platform in ("gpu", "cuda")])
    answer = {"seen": seen, "said": []}
except RuntimeError as error:
    answer = {"seen": 0, "said": [str(error)]}
""",
}
"""What a framework is asked, in a process of its own: how many GPUs it sees, what it was built for, what it warned of.
None of it computes anything."""


@dataclass(frozen=True)
class Framework:
    """`through`: what gpumon hooks instead. `distributions`: the names that it is installed by."""

    name: str
    distributions: tuple[str, ...]
    oldest: str = ""  # that gpumon hooks
    through: str = ""
    is_main: bool = False  # said also where it is not installed


FRAMEWORKS: Final = (
    Framework("torch", ("torch",), "2.3", is_main=True),
    Framework(
        "tensorflow",
        ("tensorflow", "tensorflow-gpu", "tensorflow-cpu", "tf-nightly", "intel-tensorflow", "tensorflow-rocm"),
        is_main=True,
    ),
    Framework("jax", ("jax",), is_main=True),
    Framework("lightning", ("lightning", "pytorch-lightning"), through="torch"),
    Framework("transformers", ("transformers",), through="torch"),
    Framework("accelerate", ("accelerate",), through="torch"),
)


def is_hooked(framework: Framework) -> bool:
    """Whether gpumon has an integration of that name."""
    return find_spec(f"gpumon.integrations.{framework.name}") is not None


def framework(place: Place, wanted: Framework) -> Iterator[Result]:
    """One framework."""
    found = _version(wanted)
    if found is None:
        if wanted.is_main:
            yield absent("not installed")
        return
    if wanted.oldest and _number(found) < _number(wanted.oldest):
        text = f"{found}: gpumon hooks {wanted.oldest} and newer"
        yield warning(text, pip_install(f"{wanted.distributions[0]}>={wanted.oldest}", "--upgrade"))
    found = found or "version unknown"
    how = _how(wanted)
    if place.quick or wanted.name not in ASK:
        yield ok(f"{found}: {how}")
        return
    yield _seen(place, wanted, found, how)


def _how(wanted: Framework) -> str:
    if is_hooked(wanted):
        return "steps, phases and fetches are hooked" if wanted.name == "torch" else "hooked"
    if wanted.through:
        return f"seen through {wanted.through}"
    return "not hooked: `gpumon.steps(batches)` marks its steps"


def _version(wanted: Framework) -> str | None:
    """None where it is not installed; empty where its version is not told."""
    for name in wanted.distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    try:
        return "" if find_spec(wanted.name) is not None else None
    except (ImportError, ValueError):
        return None


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:2])


# -- its view of the GPU -----------------------------------------------------------------------------------


def _seen(place: Place, wanted: Framework, found: str, how: str) -> Result:
    try:
        gpus = gpu.look(place)
    except TimeoutError:
        return ok(f"{found}: {how}; not asked for GPUs, as NVML does not answer")
    if not gpus.usable(place):
        return ok(f"{found}: {how}")
    try:
        answer = ask(wanted.name, place, IMPORT_S)
    except subprocess.TimeoutExpired:
        text = f"{found}: does not say within {IMPORT_S:g} s whether it sees the GPU"
        return warning(text, f"{sys.executable} -X importtime -c 'import {wanted.name}'")
    if "error" in answer:
        package = wanted.distributions[0]
        return failed(f"{found}: cannot be imported ({answer['error']})", pip_install(package, "--force-reinstall"))
    if answer["seen"] and (problem := not_built_for(found, answer, gpus)):
        return problem
    if answer["seen"]:
        return ok(f"{found}: {how}; sees {answer['seen']} GPU{'s' if answer['seen'] > 1 else ''}")
    return why_none(place, wanted.name, found, answer, gpus)


def ask(name: str, place: Place, timeout_s: float) -> dict[str, Any]:
    """What a framework says of its GPUs, asked in a process of its own: nothing of it stays in this one.

    Raises:
        subprocess.TimeoutExpired: it says nothing.
    """
    code = f"import json, sys\n{ASK[name]}\nprint('\\n{_MARK}' + json.dumps(answer))"
    environment = {
        **place.environment,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # a training may run beside us
        "GPUMON_EXPORT": "none",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=timeout_s,
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            answer: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return answer
    return {"error": _last_line(done.stderr) or f"it ended with status {done.returncode}"}


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


# -- why it sees none ------------------------------------------------------------------------------------
_CUDA_OF_DRIVER: Final = ((580, 13.0), (570, 12.8), (560, 12.6), (550, 12.4), (535, 12.2), (525, 12.0), (450, 11.0))
_WHEELS: Final = ((13.0, "cu130"), (12.8, "cu128"), (12.0, "cu126"), (11.0, "cu118"))
"""CUDA that the driver has -> the newest wheels of PyTorch that run on it; minor versions of CUDA are compatible."""


def why_none(place: Place, name: str, version: str, answer: dict[str, Any], gpus: gpu.Gpus) -> Result:
    """The cause, as far as the framework's own words tell it."""
    count = gpus.usable(place)
    none = f"{version}: sees none of the {count} GPUs" if count > 1 else f"{version}: does not see the GPU"
    return _WHY[name](place, none, answer, gpus)


def not_built_for(version: str, answer: dict[str, Any], gpus: gpu.Gpus) -> Result | None:
    """A result where a GPU is newer than the build: it is seen, and no kernel runs on it."""
    built = [(int(each[1]), int(each[2])) for arch in answer.get("archs") or () if (each := _ARCH.match(arch))]
    for major, minor in gpus.capabilities:
        runs = any(other == major and part <= minor for other, part in built)
        if built and not runs and (major, minor) > max(built):
            text = f"{version}: built for GPUs up to sm_{max(built)[0]}{max(built)[1]}, this one is sm_{major}{minor}"
            return failed(text, _torch_wheels(cuda_of(gpus.driver)))
    return None


_ARCH: Final = re.compile(r"sm_(\d+)(\d)")


def cuda_of(driver: str) -> float | None:
    """The newest CUDA that a driver runs, by its branch."""
    branch = int(driver.partition(".")[0] or 0) if driver.partition(".")[0].isdigit() else 0
    return next((cuda for oldest, cuda in _CUDA_OF_DRIVER if branch >= oldest), None)


def _torch(place: Place, none: str, answer: dict[str, Any], gpus: gpu.Gpus) -> Result:
    built, said = answer.get("built"), " ".join(answer.get("said") or ())
    cuda = cuda_of(gpus.driver)
    if not built:
        return failed(f"{none}: this build is for the CPU only", _torch_wheels(cuda))
    if built == "ROCm":
        return failed(f"{none}: this build is for AMD's GPUs (ROCm)", _torch_wheels(cuda))
    if "Error 802" in said or "not yet initialized" in said:
        text = f"{none}: the NVSwitch fabric is not up (CUDA error 802)"
        return failed(text, on_machine(place, "systemctl start nvidia-fabricmanager"))
    if "too old" in said or (cuda is not None and int(float(built)) > int(cuda)):
        text = f"{none}: built for CUDA {built}, the driver {gpus.driver} runs CUDA {cuda or '?'}"
        return failed(text, _torch_wheels(cuda))
    told = f" ({' '.join(said.split())[:160]})" if said else ""
    return failed(f"{none}{told}", on_machine(place, "modprobe nvidia-uvm"))


def _torch_wheels(cuda: float | None) -> str:
    wheels = next((wheels for oldest, wheels in _WHEELS if (cuda or 12.8) >= oldest), "cu118")
    return pip_install("torch", "--force-reinstall", "--index-url", f"https://download.pytorch.org/whl/{wheels}")


def _tensorflow(place: Place, none: str, answer: dict[str, Any], gpus: gpu.Gpus) -> Result:
    with_cuda = pip_install("tensorflow[and-cuda]", "--upgrade")
    if not answer.get("built"):
        return failed(f"{none}: this build is for the CPU only", with_cuda)
    return failed(f"{none}: CUDA's libraries are missing, or another version than it was built for", with_cuda)


def _jax(place: Place, none: str, answer: dict[str, Any], gpus: gpu.Gpus) -> Result:
    if (platforms := place.environment.get("JAX_PLATFORMS", "")) and not re.search("cuda|gpu", platforms):
        return failed(f"{none}: JAX_PLATFORMS={platforms}", "unset JAX_PLATFORMS")
    extra = "jax[cuda13]" if (cuda_of(gpus.driver) or 12.0) >= 13 else "jax[cuda12]"
    installed = [name.lower() for each in distributions() if (name := each.metadata["Name"])]
    if not any(re.match(r"jax[-_]cuda\d+[-_](plugin|pjrt)|jax[-_]cuda", name) for name in installed):
        return failed(
            f"{none}: its CUDA plugin is not installed, it computes on the CPU", pip_install(extra, "--upgrade")
        )
    said: Sequence[str] = answer.get("said") or ()
    told = f" ({' '.join(' '.join(said).split())[:160]})" if said else ""
    return failed(f"{none}: its CUDA plugin does not start{told}", pip_install(extra, "--force-reinstall"))


_WHY: Final = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}
