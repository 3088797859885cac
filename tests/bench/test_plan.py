"""What is read, and in which order."""

import random
from itertools import pairwise

import pytest

from gpumon.bench.files import Sample
from gpumon.bench.plan import ROUND, WHOLE, sequential, whole_files

MIB = 1 << 20


def samples(*sizes):
    return [Sample(f"{number:04}", size) for number, size in enumerate(sizes)]


def covered(pieces):
    """Bytes of the files by path, each counted once."""
    found = {}
    for piece in pieces:
        assert piece.length > 0
        assert piece.offset + piece.length <= piece.file.size
        assert piece.offset % MIB == 0
        found.setdefault(piece.file.path, set()).add((piece.offset, piece.length))
    return {path: sum(length for _, length in parts) for path, parts in found.items()}


def test_in_order_reads_all_of_little_data_block_by_block():
    """Files one after the other, whole, the unaligned tail included, in every plan."""
    files = samples(100, 3 * MIB + 5, 4096)
    for plan in sequential(files, 2, random.Random(1)):
        assert [(piece.file.path, piece.offset, piece.length) for piece in plan] == [
            ("0000", 0, 100),
            ("0001", 0, MIB),
            ("0001", MIB, MIB),
            ("0001", 2 * MIB, MIB),
            ("0001", 3 * MIB, 5),
            ("0002", 0, 4096),
        ]


def test_in_order_takes_stretches_from_all_over_large_data():
    """Of a terabyte in a few files half a GiB per plan, other data in each, and every stretch in order."""
    files = samples(1 << 40, 37 * MIB + 11, 1 << 38)
    plans = sequential(files, 2, random.Random(1))

    for plan in plans:
        size = sum(covered(plan).values())
        assert 0.8 * ROUND <= size <= ROUND + 64 * MIB
        follows = sum(
            later.file == piece.file and later.offset == piece.offset + MIB for piece, later in pairwise(plan)
        )
        assert follows > 0.9 * len(plan)
    blocks = [{(piece.file.path, piece.offset) for piece in plan} for plan in plans]
    assert not blocks[0] & blocks[1]


def test_random_order_reads_whole_files_once_per_round():
    """Every small file exactly once, whole, and not in the order of their names."""
    files = samples(*range(1, 400))
    first, second = whole_files(files, 2, random.Random(1))

    for plan in (first, second):
        assert sorted(piece.file.path for piece in plan) == [file.path for file in files]
        assert all((piece.offset, piece.length) == (0, piece.file.size) for piece in plan)
    assert [piece.file for piece in first] != [piece.file for piece in second] != files


def test_random_order_takes_blocks_of_large_files():
    """A memory map or a shard: single blocks all over it, none twice."""
    [plan] = whole_files(samples(1 << 38), 1, random.Random(1))
    offsets = [piece.offset for piece in plan]

    assert sum(covered(plan).values()) == ROUND
    assert len(set(offsets)) == len(offsets)
    assert offsets != sorted(offsets)
    assert max(offsets) > (1 << 38) / 2 > min(offsets)


@pytest.mark.parametrize(
    "sizes", [[1] * 5000, [WHOLE] * 200, [WHOLE + 1] * 3, [1, 1 << 34], [300 * MIB, 400 * MIB], [7]]
)
def test_every_plan_has_something_and_not_too_much(sizes):
    """Whatever the sizes: within the files, at most a round (and the last file)."""
    files = samples(*sizes)
    for plan in (*sequential(files, 2, random.Random(2)), *whole_files(files, 2, random.Random(2))):
        size = sum(covered(plan).values())
        assert min(sum(sizes), ROUND // 4) <= size <= ROUND + 64 * MIB


def test_with_enough_data_no_plan_reads_what_another_has_read():
    """The second round of a cache below would otherwise be taken for the disk."""
    first, second = whole_files(samples(*[MIB] * 1200), 2, random.Random(3))

    assert not {piece.file.path for piece in first} & {piece.file.path for piece in second}


def test_nothing_to_read_is_no_plan():
    """No file, no pieces."""
    assert whole_files([], 2, random.Random(1)) == [[], []]
    assert sequential([], 2, random.Random(1)) == [[], []]
