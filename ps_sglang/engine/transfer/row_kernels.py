"""Compiled loops that copy rows between buffers at the speed of memory, and digest them as they go.

KV pages of a request lie anywhere in a pool, one row in each of K and V of every layer: moving
them is hundreds of thousands of copies of less than a page. Three things bring that to the speed
of one large copy. Rows to come are prefetched, since no hardware sees where a list of pages goes
next. What is written is streamed past the caches, which would otherwise first read each line that
is about to be overwritten. And the digest is taken from the registers that hold a line anyway; a
second pass through a library costs as much as the copy.

The digest is a sum, over all lines of 64 bytes, of XXH3's step (a product of 32-bit halves, which
every processor multiplies eight or four at a time) keyed with the number of the line, so lines
that change places change it; XXH3 itself mixes the sum at the end (see `memory`). A row's
last line is filled up with zeros.

LLVM compiles them when this module is imported, in a tenth of a second, for the processor that
runs it. Addresses are trusted: callers check the row numbers. A call holds no lock of Python's.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, Final

from llvmlite import ir

from ps_sglang.engine.machine_code import compiled
from ps_sglang.engine.transfer.row_digest import KEY_STEP, LINE

STATE_BYTES: Final = 2 * LINE
"""A digest's state: the sum, and the key of the next line."""

_AHEAD: Final = 12288  # bytes between what is read and what is prefetched: a quarter of an L1 cache

_INT32, _INT64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(64).as_pointer()
_BYTES: Final = ir.IntType(8).as_pointer()
_WORDS: Final = LINE // 8
_VECTOR: Final = ir.VectorType(_INT64, _WORDS)
_NEIGHBOURS: Final = ir.Constant(ir.VectorType(_INT32, _WORDS), [1, 0, 3, 2, 5, 4, 7, 6])
_ZERO, _ONE = _INT64(0), _INT64(1)
_SIGNATURE: Final = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [_INT64] * 2 + [_POINTER])
_NAME: Final = "rows"

Kernel = Callable[..., None]


class _Digest:
    """Emits the code that digests lines; the sum and the key stay in registers."""

    def __init__(self, builder: Any, state: Any) -> None:
        self._builder = builder
        self._state = builder.bitcast(state, _VECTOR.as_pointer())
        self._registers = [builder.alloca(_VECTOR) for _ in range(2)]
        for number, register in enumerate(self._registers):
            builder.store(builder.load(self._at(number), align=8), register)

    def _at(self, number: int) -> Any:
        return self._builder.gep(self._state, [_INT64(number)])

    def add(self, line: Any) -> None:
        """Digest a line, a vector."""
        builder = self._builder
        total, key = (builder.load(register) for register in self._registers)
        mixed = builder.xor(line, key)
        low = builder.and_(mixed, _splat(0xFFFFFFFF))
        product = builder.mul(low, builder.lshr(mixed, _splat(32)))
        # Without the line itself, a half that is zero would hide what stands in the other.
        swapped = builder.shuffle_vector(line, line, _NEIGHBOURS)
        total = builder.add(builder.add(total, product), swapped)
        builder.store(total, self._registers[0])
        builder.store(builder.add(key, _splat(KEY_STEP)), self._registers[1])

    def save(self) -> None:
        """Write the state back."""
        for number, register in enumerate(self._registers):
            self._builder.store(self._builder.load(register), self._at(number), align=8)


def _add_kernel(module: ir.Module, *, write: bool, stream: bool, digest: bool) -> None:
    function = ir.Function(module, _SIGNATURE, _NAME)
    sources, source_rows, targets, target_rows, widths, buffers, rows, state = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    digested, cut_line = _Digest(builder, state), builder.alloca(_VECTOR)

    def element(array: Any, index: Any) -> Any:
        return builder.load(builder.gep(array, [index]))

    with _loop(builder, buffers) as buffer:
        base, width = element(sources, buffer), element(widths, buffer)
        following = builder.add(buffer, _ONE)
        is_last = builder.icmp_signed("==", following, buffers)
        next_base = element(sources, builder.select(is_last, buffer, following))
        cut = builder.and_(width, _INT64(LINE - 1))  # bytes of the last line, if it is not whole
        whole = builder.sub(width, cut)
        # Bytes of a row that are prefetched in the row itself, and rows ahead for the others.
        near = _larger(builder, builder.sub(whole, _INT64(_AHEAD)), _ZERO)
        skip = _larger(builder, builder.udiv(_INT64(_AHEAD), width), _ONE)
        with _loop(builder, rows) as row:
            source = builder.add(base, builder.mul(element(source_rows, row), width))
            later = builder.add(row, skip)
            inside = builder.icmp_signed("<", later, rows)
            later = builder.select(inside, later, builder.urem(builder.sub(later, rows), rows))
            ahead = builder.mul(element(source_rows, later), width)
            ahead = builder.add(builder.select(inside, base, next_base), ahead)
            ahead = builder.sub(ahead, near)
            if write:
                target_base = element(targets, buffer)
                target = builder.add(target_base, builder.mul(element(target_rows, row), width))
                # For its page walk: with pages anywhere that takes as long as the copy.
                later_target = builder.mul(element(target_rows, later), width)
                _prefetch(builder, builder.add(target_base, later_target))
            parts = (_ZERO, near, builder.add(source, _INT64(_AHEAD))), (near, whole, ahead)
            for start, stop, soon in parts:
                with _loop(builder, stop, _INT64(LINE), start) as offset:
                    _prefetch(builder, builder.add(soon, offset))
                    line = builder.load(_pointer(builder, builder.add(source, offset)), align=1)
                    if digest:
                        digested.add(line)
                    if write:
                        pointer = _pointer(builder, builder.add(target, offset))
                        store = builder.store(line, pointer, align=LINE if stream else 1)
                        if stream:
                            store.set_metadata("nontemporal", module.add_metadata([_INT32(1)]))
            with builder.if_then(builder.icmp_signed(">", cut, _ZERO), likely=False):
                builder.store(_splat(0), cut_line)
                rest = builder.add(source, whole)
                _copy(builder, builder.ptrtoint(cut_line, _INT64), rest, cut)
                if digest:
                    digested.add(builder.load(cut_line))
                if write:
                    _copy(builder, builder.add(target, whole), rest, cut)
    digested.save()
    if stream:  # the processor does not order streamed writes before what follows
        builder.fence("seq_cst")
    builder.ret_void()


@contextlib.contextmanager
def _loop(builder: Any, stop: Any, step: Any = _ONE, start: Any = _ZERO) -> Iterator[Any]:
    """Code that runs for start, start + step... below `stop`."""
    entry = builder.block
    body, after = builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", start, stop), body, after)
    builder.position_at_end(body)
    index = builder.phi(_INT64)
    index.add_incoming(start, entry)
    yield index
    following = builder.add(index, step)
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, stop), body, after)
    builder.position_at_end(after)


def _splat(value: int) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * _WORDS)


def _larger(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_signed(">", left, right), left, right)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _VECTOR.as_pointer())


def _prefetch(builder: Any, address: Any) -> None:
    """Start loading the line at an address, which may be any: this never faults."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTES], kind)
    pointer = builder.inttoptr(address, _BYTES)
    builder.call(function, [pointer, _INT32(0), _INT32(3), _INT32(1)])  # to read, keep, data


def _copy(builder: Any, target: Any, source: Any, size: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _BYTES, _INT64, ir.IntType(1)])
    function = builder.module.declare_intrinsic("llvm.memcpy", [_BYTES, _BYTES, _INT64], kind)
    pointers = (builder.inttoptr(address, _BYTES) for address in (target, source))
    builder.call(function, [*pointers, size, ir.IntType(1)(0)])


def build(*, write: bool = True, stream: bool = False, digest: bool = True) -> Kernel:
    """Compile a kernel, which goes buffer by buffer, and row by row in each.

    `write` copies the rows, `stream` does so past the caches, for what is not read again soon, and
    `digest` adds the rows to a digest. To be streamed, targets must be aligned to lines, and rows
    be whole lines.

    The kernel takes five addresses of int64 arrays: the sources' addresses, the row numbers in the
    sources, the targets' addresses, the row numbers in the targets, and the bytes of a row in each
    buffer, none of them zero. Then come how many buffers and how many rows there are, and the
    address of a digest's state.
    """
    module = ir.Module()
    _add_kernel(module, write=write, stream=stream, digest=digest)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return compiled(module, _NAME, *[pointer] * 5, size, size, pointer)


digest: Final = build(write=False)
copy: Final = build()
stream: Final = build(stream=True)
