"""Rows that are copied, packed, unpacked and digested, against numpy."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from ps_sglang.engine.transfer import row_kernels
from ps_sglang.engine.transfer.memory import HostRows

ROWS = 300
# Whole lines, narrower than a line, wider than what is prefetched, and none of these.
LAYOUTS = {
    "lines": [768] * 4,
    "narrow": [1, 8, 48, 64],
    "wide": [12288, 6144, 6208, 64],
    "odd": [777, 63, 65, 7000],
}


class Buffers:
    """Random memory; `shift` takes it off the boundaries of lines."""

    def __init__(self, widths: list[int], *, seed: int, shift: int = 0, count: int = ROWS) -> None:
        random = np.random.default_rng(seed)
        self.arrays: list[npt.NDArray[np.uint8]] = []
        for width in widths:
            memory = np.zeros(count * width + 128, dtype=np.uint8)
            start = -memory.ctypes.data % 64 + shift
            array = memory[start : start + count * width].reshape(count, width)
            array[:] = random.integers(256, size=array.shape, dtype=np.uint8)
            self.arrays.append(array)
        addresses = [array.ctypes.data for array in self.arrays]
        self.rows = HostRows(addresses, [array.nbytes for array in self.arrays], widths)

    def packed(self, rows: Any) -> bytes:
        return b"".join(array[rows].tobytes() for array in self.arrays)


def some_rows(count: int, *, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).permutation(ROWS)[:count].astype(np.int32)


@pytest.fixture(params=LAYOUTS)
def widths(request: pytest.FixtureRequest) -> list[int]:
    return LAYOUTS[request.param]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_rows_arrive_and_no_other_changes(widths: list[int], shift: int, count: int) -> None:
    source, target = Buffers(widths, seed=1, shift=shift), Buffers(widths, seed=2, shift=shift)
    from_, to = some_rows(count, seed=3), some_rows(count, seed=4)
    others = np.setdiff1d(np.arange(ROWS), to)
    before = target.packed(others)

    packed = source.rows.gather(from_)
    assert packed.tobytes() == source.packed(from_)
    digest = source.rows.digest(from_)

    assert target.rows.copy_from(source.rows, from_, to) == digest
    assert target.packed(to) == source.packed(from_)
    assert target.packed(others) == before

    again = some_rows(count, seed=5)
    assert target.rows.scatter(again, packed.data) == digest
    assert target.packed(again) == source.packed(from_)
    assert target.rows.digest(again) == digest


def test_rows_of_another_order_or_number_have_another_digest(widths: list[int]) -> None:
    rows = Buffers(widths, seed=1).rows
    picked = some_rows(10)
    digests = {
        rows.digest(choice)
        for choice in (picked, picked[::-1], picked[:9], np.append(picked, picked[0]), picked[:0])
    }
    assert len(digests) == 5


def test_every_flipped_bit_changes_the_digest() -> None:
    buffers = Buffers([72], seed=1)
    row = buffers.arrays[0][5]
    rows = np.array([5])
    seen = {buffers.rows.digest(rows)}
    for byte in range(72):
        for bit in range(8):
            row[byte] ^= 1 << bit
            seen.add(buffers.rows.digest(rows))
            row[byte] ^= 1 << bit
    assert len(seen) == 1 + 72 * 8


@pytest.mark.parametrize("value", [0, 1, 255])
def test_equal_bytes_in_other_places_change_the_digest(value: int) -> None:
    """What a sum is bad at: few bits set, and lines, words and halves that change places."""
    buffers = Buffers([768, 768], seed=1)
    for array in buffers.arrays:
        array[:] = value
    rows = np.arange(8)
    seen = {buffers.rows.digest(rows)}
    for array in buffers.arrays:
        for row in range(8):
            for place in range(0, 768, 4):
                array[row, place] ^= 128
                seen.add(buffers.rows.digest(rows))
                array[row, place] ^= 128
    assert len(seen) == 1 + 2 * 8 * 192


@pytest.mark.parametrize("wrong", [-1, ROWS, 1 << 40, -(1 << 40)])
def test_a_row_outside_is_refused_before_anything_happens(wrong: int) -> None:
    source, target = Buffers([768], seed=1), Buffers([768], seed=2)
    before = target.packed(np.arange(ROWS))
    bad, good = np.array([0, wrong]), np.array([0, 1])
    for move in (
        lambda: target.rows.gather(bad),
        lambda: target.rows.digest(bad),
        lambda: target.rows.scatter(bad, bytes(2 * 768)),
        lambda: target.rows.copy_from(source.rows, bad, good),
        lambda: target.rows.copy_from(source.rows, good, bad),
    ):
        with pytest.raises(ValueError, match=rf"{max(wrong, 0)} of {ROWS}|rows {wrong}\.\."):
            move()
    assert target.packed(np.arange(ROWS)) == before


def test_a_row_outside_a_smaller_source_is_refused() -> None:
    source, target = Buffers([768], seed=1, count=10), Buffers([768], seed=2)
    with pytest.raises(ValueError, match="10 of 10"):
        target.rows.copy_from(source.rows, np.array([10]), np.array([10]))
    source.rows.copy_from(target.rows, np.array([10]), np.array([9]))
    assert source.packed([9]) == target.packed([10])


def test_a_copy_of_another_size_is_refused() -> None:
    rows = Buffers([768, 64], seed=1).rows
    for size in (2 * 832 - 1, 2 * 832 + 1, 0):
        with pytest.raises(ValueError, match=f"{size} bytes, not 2 rows x 832"):
            rows.scatter(some_rows(2), bytes(size))


def test_pools_that_do_not_fit_each_other_are_refused() -> None:
    rows = Buffers([768, 64], seed=1).rows
    with pytest.raises(ValueError, match="one layout"):
        rows.copy_from(Buffers([64, 768], seed=1).rows, some_rows(2), some_rows(2))
    with pytest.raises(ValueError, match="3 rows to copy into 2"):
        rows.copy_from(rows, some_rows(3), some_rows(2))


def test_the_digest_is_what_it_says() -> None:
    """It travels between hosts, so its value is part of the protocol."""
    buffers = Buffers([100, 128], seed=1)
    picked = some_rows(5)
    words = 2**64 - 1
    total = [0] * 8
    key = [xxhash.xxh3_64_intdigest(bytes([word])) for word in range(8)]
    key = [int.from_bytes(value.to_bytes(8, "big"), "little") for value in key]
    for array in buffers.arrays:
        for row in picked:
            for line in range(0, array.shape[1], 64):
                padded = array[row, line : line + 64].tobytes().ljust(64, b"\0")
                word = struct.unpack("<8Q", padded)
                for index in range(8):
                    mixed = word[index] ^ key[index]
                    product = (mixed & 0xFFFFFFFF) * (mixed >> 32)
                    total[index] = total[index] + product + word[index ^ 1] & words
                    key[index] = key[index] + 0x9E3779B97F4A7C15 & words
    expected = xxhash.xxh3_128_digest(struct.pack("<16Q", *total, *key))
    assert buffers.rows.digest(picked) == expected


def test_streamed_and_plain_writes_agree_with_and_without_a_digest() -> None:
    source = Buffers([768], seed=1)
    rows = np.arange(ROWS, dtype=np.int64)
    base, width = np.array([source.arrays[0].ctypes.data]), np.array([768])
    for options in ({}, {"stream": True}, {"digest": False}):
        target = Buffers([768], seed=2)
        place = np.array([target.arrays[0].ctypes.data])
        state = np.zeros(row_kernels.STATE_BYTES, dtype=np.uint8)
        arrays = (base, rows, place, rows[::-1].copy(), width)
        addresses = [array.ctypes.data for array in arrays]
        row_kernels.build(**options)(*addresses, 1, ROWS, state.ctypes.data)
        assert (target.arrays[0] == source.arrays[0][::-1]).all()
        assert state.any() == options.get("digest", True)


def test_it_needs_neither_sglang_nor_torch() -> None:
    code = (
        "import sys; from ps_sglang.engine.transfer import memory, shared_pool;"
        "print([name for name in ('torch', 'sglang', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
