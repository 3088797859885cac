"""Numbers of the system calls that threads block in, and what each one waits on.

Source: the kernel's uapi headers: asm/unistd_64.h (x86_64), asm-generic/unistd.h (aarch64, riscv64).
"""

from __future__ import annotations

import platform
from typing import Literal

Waits = Literal[
    "file",  # on the descriptor that is the first argument, whatever it is
    "second",  # on the descriptor that is the second argument
    "path",  # on the file system that holds the path in the first argument
    "path_at",  # same, path in the second argument and relative to the descriptor in the first
    "mapping",  # on files mapped into memory
    "poll",
    "select",
    "epoll",
    "futex",
    "sleep",
    "child",
    "async_io",
    "lock",
    "other",
]

# (x86_64, asm-generic); None where that architecture has no such call.
_NUMBERS: dict[Waits, dict[str, tuple[int | None, int | None]]] = {
    "file": {
        "read": (0, 63),
        "write": (1, 64),
        "close": (3, 57),
        "fstat": (5, 80),
        "lseek": (8, 62),
        "pread64": (17, 67),
        "pwrite64": (18, 68),
        "readv": (19, 65),
        "writev": (20, 66),
        "connect": (42, 203),
        "accept": (43, 202),
        "sendto": (44, 206),
        "recvfrom": (45, 207),
        "sendmsg": (46, 211),
        "recvmsg": (47, 212),
        "fsync": (74, 82),
        "fdatasync": (75, 83),
        "ftruncate": (77, 46),
        "getdents": (78, None),
        "fstatfs": (138, 44),
        "readahead": (187, 213),
        "getdents64": (217, 61),
        "fadvise64": (221, 223),
        "splice": (275, 76),
        "sync_file_range": (277, 84),
        "fallocate": (285, 47),
        "accept4": (288, 242),
        "preadv": (295, 69),
        "pwritev": (296, 70),
        "recvmmsg": (299, 243),
        "sendmmsg": (307, 269),
        "copy_file_range": (326, 285),
        "preadv2": (327, 286),
        "pwritev2": (328, 287),
    },
    "second": {"sendfile": (40, 71)},
    "path": {
        "open": (2, None),
        "stat": (4, None),
        "lstat": (6, None),
        "access": (21, None),
        "rename": (82, None),
        "mkdir": (83, None),
        "unlink": (87, None),
        "readlink": (89, None),
        "statfs": (137, 43),
        "getxattr": (191, 8),
        "lgetxattr": (192, 9),
    },
    "path_at": {
        "openat": (257, 56),
        "mkdirat": (258, 34),
        "newfstatat": (262, 79),
        "unlinkat": (263, 35),
        "renameat": (264, 38),
        "readlinkat": (267, 78),
        "faccessat": (269, 48),
        "renameat2": (316, 276),
        "statx": (332, 291),
        "openat2": (437, 437),
        "faccessat2": (439, 439),
    },
    "mapping": {"mmap": (9, 222), "msync": (26, 227), "madvise": (28, 233)},
    "poll": {"poll": (7, None), "ppoll": (271, 73)},
    "select": {"select": (23, None), "pselect6": (270, 72)},
    "epoll": {"epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441)},
    "futex": {"futex": (202, 98), "futex_waitv": (449, 449), "futex_wait": (455, 455)},
    "sleep": {"nanosleep": (35, 101), "clock_nanosleep": (230, 115)},
    "child": {"wait4": (61, 260), "waitid": (247, 95)},
    "async_io": {
        "io_getevents": (208, 4),
        "io_pgetevents": (333, 292),
        "io_uring_enter": (426, 426),
    },
    "lock": {"fcntl": (72, 25), "flock": (73, 32)},
    "other": {
        "mprotect": (10, 226),
        "munmap": (11, 215),
        "brk": (12, 214),
        "ioctl": (16, 29),
        "mremap": (25, 216),
        "semop": (65, 193),
        "msgrcv": (70, 188),
        "rt_sigtimedwait": (128, 137),
        "restart_syscall": (219, 128),
        "semtimedop": (220, 192),
        "process_vm_readv": (310, 270),
    },
}
_COLUMNS = {"x86_64": 0, "amd64": 0, "aarch64": 1, "arm64": 1, "riscv64": 1}


def table(machine: str | None = None) -> dict[int, tuple[str, Waits]]:
    """Number -> (name, what it waits on), for *machine* (default this one); empty where it is not known."""
    column = _COLUMNS.get((machine or platform.machine()).lower())
    if column is None:
        return {}
    return {
        number: (name, waits)
        for waits, calls in _NUMBERS.items()
        for name, numbers in calls.items()
        if (number := numbers[column]) is not None
    }
