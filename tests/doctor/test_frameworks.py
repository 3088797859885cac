"""Frameworks that are installed: hooked or not, and why one does not see the GPU that is there."""

import os
import pkgutil
import sys
import textwrap
from dataclasses import replace

import pytest

from doctor.examined import examine
from gpumon import integrations
from gpumon.doctor import CHECKS, gpu
from nvml.standin import standing_in

PYTHON = sys.executable
PIP = f"{PYTHON} -m pip install"


@pytest.fixture
def nvml(tmp_path):
    with standing_in(tmp_path) as standin:
        yield standin


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package of this name, version and code, in front of what there is."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def install(name, version, code=""):
        package = folder / name
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(code))
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return str(folder)

    return install


def torch(cuda="12.8", seen=0, warns="", archs=("sm_80", "sm_90")):
    return f"""
        import warnings
        class version: cuda = {cuda!r}; hip = None
        class cuda:
            @staticmethod
            def is_available():
                if {warns!r}: warnings.warn({warns!r})
                return {seen} > 0
            @staticmethod
            def device_count(): return {seen}
            @staticmethod
            def get_arch_list(): return {list(archs)!r}
    """


def test_what_is_installed_is_told(somewhere, installed):
    """torch is hooked; without a GPU nothing more is asked."""
    path = installed("torch", "2.7.1", "raise RuntimeError('nobody may import me')")

    examined = examine(somewhere.place(PYTHONPATH=path), "nvml", "torch")

    examined.is_fine()
    assert examined.only("torch")["summary"] == "2.7.1: steps, phases and fetches are hooked"


def test_what_is_not_installed_is_no_failure(somewhere, monkeypatch):
    """tensorflow is named all the same: somebody may look for it."""
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if "site-packages" not in entry])

    examined = examine(somewhere.place(), "tensorflow", "accelerate")

    examined.is_fine()
    assert examined.only("tensorflow")["status"] == "absent"
    assert examined.of("accelerate") == []


def test_torch_that_is_too_old(somewhere, installed):
    """Older than what gpumon hooks."""
    path = installed("torch", "1.13.1")

    examined = examine(somewhere.place(PYTHONPATH=path), "nvml", "torch")

    (old,) = [entry for entry in examined.of("torch") if entry["status"] == "warning"]
    assert old["summary"] == "1.13.1: gpumon hooks 2.3 and newer"
    assert old["repair"]["command"] == f"{PIP} --upgrade 'torch>=2.3'"


def test_torch_that_sees_the_gpus(somewhere, nvml, installed):
    """Asked in a process of its own, which prints what it likes."""
    path = installed("torch", "2.7.1", "print('hello')" + textwrap.dedent(torch(seen=2)))
    nvml.set(gpus=2)

    examined = examine(somewhere.place(PYTHONPATH=path), "torch")

    examined.is_fine()
    assert examined.only("torch")["summary"].endswith("; sees 2 GPUs")


@pytest.mark.parametrize(
    ("code", "cause", "repair"),
    [
        (torch(cuda=None), "this build is for the CPU only", "cu130"),
        (
            torch(cuda="14.0", warns="The NVIDIA driver on your system is too old (found version 13000)."),
            "built for CUDA 14.0, the driver 580.65.06 runs CUDA 13.0",
            "cu130",
        ),
        (
            torch(cuda="12.8", warns="Error 802: system not yet initialized"),
            "the NVSwitch fabric is not up (CUDA error 802)",
            "sudo systemctl start nvidia-fabricmanager",
        ),
        (
            torch(cuda="12.4", warns="CUDA initialization: Unexpected error from cudaGetDeviceCount()"),
            "Unexpected error from cudaGetDeviceCount()",
            "sudo modprobe nvidia-uvm",
        ),
    ],
)
def test_torch_that_does_not_see_the_gpu(somewhere, nvml, installed, code, cause, repair):
    """The driver has a GPU, torch has none: by torch's own words."""
    path = installed("torch", "2.7.1", code)

    wheels = f"{PIP} --force-reinstall --index-url https://download.pytorch.org/whl/{repair} torch"
    examined = examine(somewhere.place(PYTHONPATH=path), "torch")

    examined.names("failed", cause, wheels if repair.startswith("cu1") else repair)


def test_gpu_that_is_newer_than_the_build(somewhere, nvml, installed, monkeypatch):
    """is_available() is True and every kernel fails: "no kernel image is available"."""
    path = installed("torch", "2.4.0", torch(seen=1))
    place = somewhere.place(PYTHONPATH=path)
    found = replace(gpu.look(place), capabilities=((12, 0),))  # the stand-in for NVML does not tell this
    other = somewhere.place(PYTHONPATH=path)
    other.share("gpus", lambda: found)

    examined = examine(other, "torch")

    wheels = f"{PIP} --force-reinstall --index-url https://download.pytorch.org/whl/cu130 torch"
    examined.names("failed", "built for GPUs up to sm_90, this one is sm_120", wheels)


def test_the_real_torch_for_the_cpu(somewhere, nvml):
    """The build that tests run on, beside a driver that lists a GPU."""
    real = pytest.importorskip("torch", reason="pip install torch")
    if real.version.cuda:
        pytest.skip("this torch has CUDA; pip install a build for the CPU")
    examined = examine(somewhere.place(PATH=os.environ["PATH"]), "torch")

    assert "does not see the GPU: this build is for the CPU only" in examined.only("torch")["summary"]
    assert examined.code == 1


@pytest.mark.parametrize(
    ("built", "cause"),
    [(False, "this build is for the CPU only"), (True, "CUDA's libraries are missing, or another version")],
)
def test_tensorflow_that_does_not_see_the_gpu(somewhere, nvml, installed, built, cause):
    """The plain wheel has no CUDA libraries of its own."""
    code = f"""
        class config:
            @staticmethod
            def list_physical_devices(kind): return []
        class test:
            @staticmethod
            def is_built_with_cuda(): return {built}
    """
    path = installed("tensorflow", "2.19.0", code)

    examined = examine(somewhere.place(PYTHONPATH=path), "tensorflow")

    examined.names("failed", cause, f"{PIP} --upgrade 'tensorflow[and-cuda]'")


def test_jax_without_its_plugin(somewhere, nvml, installed):
    """`pip install jax` computes on the CPU, with a warning at most."""
    code = """
        class Cpu: platform = "cpu"
        def devices(): return [Cpu()]
    """
    path = installed("jax", "0.7.0", code)

    examined = examine(somewhere.place(PYTHONPATH=path), "jax")

    examined.names("failed", "its CUDA plugin is not installed", f"{PIP} --upgrade 'jax[cuda13]'")


def test_jax_that_was_told_to_use_the_cpu(somewhere, nvml, installed):
    """A variable left over from a test."""
    path = installed("jax", "0.7.0", "class Cpu: platform = 'cpu'\ndef devices(): return [Cpu()]")

    examined = examine(somewhere.place(PYTHONPATH=path, JAX_PLATFORMS="cpu"), "jax")

    examined.names("failed", "JAX_PLATFORMS=cpu", "unset JAX_PLATFORMS")


def test_framework_that_cannot_be_imported(somewhere, nvml, installed):
    """The last line of its traceback says why."""
    path = installed("torch", "2.7.1", "raise ImportError('libcudnn.so.9: cannot open shared object file')")

    examined = examine(somewhere.place(PYTHONPATH=path), "torch")

    cause = "cannot be imported (ImportError: libcudnn.so.9: cannot open shared object file)"
    examined.names("failed", cause, f"{PIP} --force-reinstall torch")


def test_framework_that_takes_too_long(somewhere, nvml, installed, monkeypatch):
    """An import that hangs is ended; the command shows where the time goes."""
    monkeypatch.setattr("gpumon.doctor.frameworks.IMPORT_S", 1.0)
    path = installed("torch", "2.7.1", "import time\ntime.sleep(60)")

    examined = examine(somewhere.place(PYTHONPATH=path), "torch")

    examined.names("warning", "does not say within 1 s", f"{PYTHON} -X importtime -c 'import torch'")


def test_quick_imports_nothing(somewhere, nvml, installed):
    """--quick: no process is started for it."""
    path = installed("torch", "2.7.1", "import time\ntime.sleep(60)")

    examined = examine(replace(somewhere.place(PYTHONPATH=path), quick=True), "torch")

    examined.is_fine()


def test_every_integration_has_its_check():
    """A framework that gpumon hooks is looked for."""
    hooked = {module.name.partition("_")[0] for module in pkgutil.iter_modules(integrations.__path__)}
    assert hooked <= {check.name for check in CHECKS}
