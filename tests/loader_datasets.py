"""Data sets whose fetches spend their time in a known way; importable by spawned workers."""

import os
import signal
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset, IterableDataset


def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))


def spanned(samples):
    """Collate samples that are times: when the fetch began and when it ended [ns]."""
    return samples[0], time.perf_counter_ns()


class Timed(Dataset):
    """Each sample is the time at which its own making began, `perf_counter_ns`."""

    def __init__(self, length=32, sleep_s=0.0, burn_s=0.0):
        self.length, self.sleep_s, self.burn_s = length, sleep_s, burn_s

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        begin = time.perf_counter_ns()
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if self.burn_s:
            burn(self.burn_s)
        return begin


class Files(Dataset):
    """One sample per file, dropped from the page cache after each read."""

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.bin"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        begin = time.perf_counter_ns()
        descriptor = os.open(self.files[index], os.O_RDONLY)
        try:
            os.read(descriptor, 1 << 16)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        return begin


class Random(Dataset):
    """Samples from the worker's own random state."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return index, torch.rand(3)


class Stream(IterableDataset):
    """Five samples per worker."""

    def __iter__(self):
        yield from range(5)


class Deadly(Dataset):
    """The worker that makes sample 6 is killed."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.01)
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Faulty(Dataset):
    """Sample 3 raises."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise LookupError("sample 3")
        return index
