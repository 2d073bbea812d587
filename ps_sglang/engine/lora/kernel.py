"""A compiled loop that adds the low-rank products of many adapters to a layer's output.

In a decode step an adapter has a token or a few. The products of such a batch are tiny, a fifth of
a megaflop each, and there are hundreds in a step: done by PyTorch, starting them (and waking its
threads) costs more than computing them. Here a layer is one call. It reads each adapter's weights
once for up to four tokens, with exactly its rank, and touches no row without an adapter.

A token's result does not depend on what else is in the batch. LLVM compiles the loop when this
module is imported, for the processor that runs it; a call holds no lock of Python's and uses one
thread. Addresses are trusted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from llvmlite import binding, ir

from ps_sglang.engine.machine_code import compiled

_NAME: Final = "low_rank"
_INT, _FLOAT = ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = _INT.as_pointer(), _FLOAT.as_pointer()
_ZERO, _ONE = _INT(0), _INT(1)
_LANES: Final = 16 if binding.get_host_cpu_features().get("avx512f") else 8
TOKENS: Final = 4
"""How many tokens share one reading of the weights."""
_SUMS: Final = 8  # vectors that are added to side by side, so that no addition waits for the last

Kernel = Callable[[int, int, int, int, int, int], None]


class Emitter:
    """Emits the code of one function; `b` is llvmlite's builder."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def field(self, array: Any, index: Any) -> Any:
        """Element `index`, a number or a value, of an array of integers or floats."""
        at = _INT(index) if isinstance(index, int) else index
        return self.b.load(self.b.gep(array, [at]))

    def floats(self, address: Any) -> Any:
        """A pointer to the floats at an address, an integer."""
        return self.b.inttoptr(address, _FLOATS)

    def load(self, base: Any, index: Any, lanes: int) -> Any:
        """`lanes` floats from `base[index]` on."""
        return self.b.load(self._at(base, index, lanes), align=4)

    def store(self, value: Any, base: Any, index: Any, lanes: int) -> None:
        """Write `lanes` floats to `base[index]` and after."""
        self.b.store(value, self._at(base, index, lanes), align=4)

    def _at(self, base: Any, index: Any, lanes: int) -> Any:
        pointer = self.b.gep(base, [index])
        return pointer if lanes == 1 else self.b.bitcast(pointer, _vector(lanes).as_pointer())

    def variable(self, value: Any) -> Any:
        """A place for a value that a loop changes: LLVM makes it a register."""
        with self.b.goto_entry_block():
            place = self.b.alloca(value.type)
        self.b.store(value, place)
        return place

    def add_product(self, place: Any, left: Any, right: Any) -> None:
        """Add a product to a variable, in one rounding where the processor has that."""
        product = self.b.fmul(left, right, flags=("contract",))
        self.b.store(self.b.fadd(product, self.b.load(place), flags=("contract",)), place)

    def splat(self, value: Any, lanes: int) -> Any:
        """A vector of one float."""
        if lanes == 1:
            return value
        kind = _vector(lanes)
        first = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        indices = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return self.b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), indices)

    def total(self, vector: Any, lanes: int) -> Any:
        """The sum of a vector's floats, by halves."""
        while lanes > 1:
            lanes //= 2
            halves = (
                self.b.shuffle_vector(
                    vector,
                    ir.Constant(vector.type, ir.Undefined),
                    ir.Constant(
                        ir.VectorType(ir.IntType(32), lanes), list(range(start, start + lanes))
                    ),
                )
                for start in (0, lanes)
            )
            vector = self.b.fadd(*halves)
        return self.b.extract_element(vector, ir.IntType(32)(0))

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        """Code that runs for start, start + step... as long as a whole step is left."""
        b = self.b
        limit = b.sub(stop, _INT(step))
        entry, body = b.block, b.append_basic_block()
        after = b.append_basic_block()
        b.cbranch(b.icmp_signed("<=", start, limit), body, after)
        b.position_at_end(body)
        index = b.phi(_INT)
        index.add_incoming(start, entry)
        yield index
        following = b.add(index, _INT(step))
        index.add_incoming(following, b.block)
        b.cbranch(b.icmp_signed("<=", following, limit), body, after)
        b.position_at_end(after)

    def past(self, start: Any, stop: Any, step: int) -> Any:
        """Where `loop` with these arguments leaves off."""
        return self.b.sub(stop, self.b.urem(self.b.sub(stop, start), _INT(step)))


def _vector(lanes: int) -> Any:
    return _FLOAT if lanes == 1 else ir.VectorType(_FLOAT, lanes)


def _add_kernel(module: ir.Module) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_INT] * 6)
    function = ir.Function(module, kind, _NAME)
    x, x_stride, y, y_stride, layer, batch = function.args
    e = Emitter(ir.IRBuilder(function.append_basic_block()))
    layer, batch = (e.b.inttoptr(address, _INTS) for address in (layer, batch))
    a, a_stride, b, b_stride, inputs, outputs, slices, hidden = (
        e.field(layer, index) for index in range(8)
    )
    offsets = e.b.gep(layer, [_INT(8)])
    groups, starts, slots, ranks, scalings, rows = (e.field(batch, index) for index in range(6))
    starts, slots, ranks, rows = (
        e.b.inttoptr(address, _INTS) for address in (starts, slots, ranks, rows)
    )
    with e.loop(_ZERO, groups) as group:
        slot, rank = e.field(slots, group), e.field(ranks, group)
        work = _Group(
            e,
            a=e.b.gep(e.floats(a), [e.b.mul(slot, a_stride)]),
            b=e.b.gep(e.floats(b), [e.b.mul(slot, b_stride)]),
            hidden=e.floats(hidden),
            rank=rank,
            columns=e.b.mul(rank, slices),
            scaling=e.field(e.floats(scalings), group),
        )
        first, stop = e.field(starts, group), e.field(starts, e.b.add(group, _ONE))
        for tokens in (TOKENS, 1):
            with e.loop(first, stop, tokens) as token:
                places = [e.field(rows, e.b.add(token, _INT(more))) for more in range(tokens)]
                work.shrink(_rows(e, x, x_stride, places), inputs)
                outs = _rows(e, y, y_stride, places)
                with e.loop(_ZERO, slices) as number:
                    bounds = [e.field(offsets, e.b.add(number, _INT(more))) for more in range(2)]
                    work.expand(outs, e.b.mul(number, rank), bounds, outputs)
            first = e.past(first, stop, tokens)
    e.b.ret_void()


def _rows(e: Emitter, address: Any, stride: Any, places: Sequence[Any]) -> list[Any]:
    return [e.b.gep(e.floats(address), [e.b.mul(place, stride)]) for place in places]


class _Group:
    """Emits the products of one adapter with a few tokens; `a` is [columns, inputs] of it."""

    def __init__(
        self, e: Emitter, *, a: Any, b: Any, hidden: Any, rank: Any, columns: Any, scaling: Any
    ) -> None:
        self.e, self.a, self.b, self.hidden = e, a, b, hidden
        self.rank, self.columns, self.scaling = rank, columns, scaling

    def shrink(self, xs: Sequence[Any], inputs: Any) -> None:
        """`hidden` [tokens, columns]: each token's product with A, scaled."""
        e, first = self.e, _ZERO
        for width in (_SUMS // len(xs), 1):
            with e.loop(first, self.columns, width) as column:
                columns = [e.b.add(column, _INT(more)) for more in range(width)]
                weights = [e.b.gep(self.a, [e.b.mul(each, inputs)]) for each in columns]
                for token, sums in enumerate(self._dots(xs, weights, inputs)):
                    for each, total in zip(columns, sums, strict=True):
                        scaled = e.b.fmul(total, self.scaling)
                        e.store(scaled, self.hidden, self._at(token, each), 1)
            first = e.past(first, self.columns, width)

    def _dots(self, xs: Sequence[Any], weights: Sequence[Any], inputs: Any) -> list[list[Any]]:
        e, first, sums = self.e, _ZERO, [[_FLOAT(0.0)] * len(weights) for _ in xs]
        for lanes in (_LANES, 1):
            zero = ir.Constant(_vector(lanes), [0.0] * lanes if lanes > 1 else 0.0)
            places = [[e.variable(zero) for _ in weights] for _ in xs]
            with e.loop(first, inputs, lanes) as index:
                parts = [e.load(weight, index, lanes) for weight in weights]
                for x, row in zip(xs, places, strict=True):
                    value = e.load(x, index, lanes)
                    for place, part in zip(row, parts, strict=True):
                        e.add_product(place, value, part)
            first = e.past(first, inputs, lanes)
            for have, row in zip(sums, places, strict=True):
                for column, place in enumerate(row):
                    total = e.b.load(place) if lanes == 1 else e.total(e.b.load(place), lanes)
                    have[column] = e.b.fadd(have[column], total)
        return sums

    def expand(self, ys: Sequence[Any], column: Any, bounds: Sequence[Any], outputs: Any) -> None:
        """Add to a slice of the outputs the product of `hidden`, from `column` on, with B."""
        e, (first, stop) = self.e, bounds
        for lanes, width in ((_LANES, _SUMS // len(ys)), (_LANES, 1), (1, 1)):
            with e.loop(first, stop, lanes * width) as output:
                at = [e.b.add(output, _INT(lanes * more)) for more in range(width)]
                places = [[e.variable(e.load(y, each, lanes)) for each in at] for y in ys]
                with e.loop(_ZERO, self.rank) as number:
                    weights = e.b.gep(self.b, [e.b.mul(number, outputs)])
                    parts = [e.load(weights, each, lanes) for each in at]
                    for token, row in enumerate(places):
                        hidden = e.field(self.hidden, self._at(token, e.b.add(column, number)))
                        value = e.splat(hidden, lanes)
                        for place, part in zip(row, parts, strict=True):
                            e.add_product(place, value, part)
                for y, row in zip(ys, places, strict=True):
                    for each, place in zip(at, row, strict=True):
                        e.store(e.b.load(place), y, each, lanes)
            first = e.past(first, stop, lanes * width)

    def _at(self, token: int, column: Any) -> Any:
        return self.e.b.add(self.e.b.mul(self.columns, _INT(token)), column)


def _compiled() -> Kernel:
    module = ir.Module()
    _add_kernel(module)
    return compiled(module, _NAME, *[ctypes.c_int64] * 6)


add_low_rank: Final = _compiled()
