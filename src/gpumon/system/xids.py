"""XIDs: the driver's numbers for what happened to a GPU.

Source: https://docs.nvidia.com/deploy/xid-errors/
"""

from typing import Final

FATAL: Final = frozenset((48, 62, 63, 64, 74, 79, 95, 119, 120))
"""XIDs after which a GPU computes no more, or not reliably, until it is reset or replaced."""
MEANINGS: Final = {
    13: "graphics engine exception, mostly an error of the program",
    31: "GPU memory page fault, mostly an error of the program",
    43: "GPU stopped processing, mostly an error of the program",
    45: "preemptive cleanup after an earlier error",
    48: "double-bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    63: "row remapping or page retirement recorded",
    64: "row remapping or page retirement failed",
    68: "video processor exception",
    69: "graphics engine class error",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of single-bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP RPC timeout",
    120: "GSP error",
}
