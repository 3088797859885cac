"""Set-ups of a test's own making, broken in one place each. What is broken, by file:

test_gpu.py         no driver, not loaded, not built, nouveau; a library missing, elsewhere, of another version;
                    a container without its GPUs; device files closed or missing; a GPU lost, hidden, cut up (MIG)
test_frameworks.py  torch, TensorFlow, JAX: built for the CPU, too old, too new, cannot be imported, hang
test_disks.py       smartctl missing, old, without rights, hanging; a data set on the network, in an image,
                    not mounted, closed; /sys, /proc/diskstats, pressure files that are not there
test_otlp.py        a receiver that is down, unknown, silent, slow, at another path, behind TLS, a token, a proxy,
                    of the other protocol; settings that make no sense; a clock that is wrong
test_host.py        more workers than CPUs, little /dev/shm, few open files
test_recording.py   no room or right to record, a Python that is not gpumon's, another gpumon, Yama and hidepid,
                    an agent that is deaf, closed or old
"""

import pytest

from doctor.examined import Somewhere


@pytest.fixture
def somewhere(tmp_path):
    return Somewhere(tmp_path)
