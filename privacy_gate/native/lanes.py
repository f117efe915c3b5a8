"""Vector code written by hand in LLVM's language: products of small matrices in registers, and the softmax.

Numba can turn loops into vector code, but it keeps only plain variables in registers, and checks before each loop that
arrays do not overlap. Both cost more than the arithmetic if a batch has 32 rows. So the code of a tile, a block of a
product whose sums fit into the registers, is written out here, for vectors as wide as the processor's.

How to read it: an intrinsic returns the types of its arguments and a function `code`, which Numba calls to write the
instructions of one call. Python loops in `code` run while it writes, so their bodies are written out many times;
`cgutils.for_range` writes a loop that runs later. A sum lives in an `alloca`, which LLVM turns into a register.
Indices count numbers from the beginning of an array, and are not checked. Import this module only if Numba is
installed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

written: Callable[[Callable[..., Any]], Callable[..., None]] = intrinsic
"""Turns a function that returns types and `code` into one that compiled functions can call."""

WIDE = bool(dict(llvmlite.binding.get_host_cpu_features()).get("avx512f"))
"""Whether the processor has 32 registers of 64 bytes; if not, it has at least 16 of 32 bytes, or 32 of 16."""

VECTOR_BYTES = 64 if WIDE else 32

FORWARD, BACKWARD = (2, 4) if WIDE else (2, 2)
"""Vectors side by side in a tile: of logits, and of a gradient."""

DOWN, ACROSS = (4, 5) if WIDE else (2, 4)
"""Rows on either side of a tile of inner products."""

LEAST = -80.0
"""Smallest difference of logits: e^-80 is negligible next to 1, but not a denormal number, which would be slow."""


def lanes(dtype: Any) -> int:
    """Numbers in a vector."""
    return int(VECTOR_BYTES // np.dtype(dtype).itemsize)


def _tile(rows: int, vectors: int) -> Callable[..., None]:
    """Code for out[r, :] = sum over k < count of a[r, k] b[k, :]: `rows` x `vectors` sums in registers.

    a[r, k] is at a0 + r ar + k of array a; b[k, :] at b0 + k bk of b; out[r, :] at o0 + r ostep of out. Each turn of
    the loop over k reads one piece of b, and adds it to the sums of every row, times that row's a[r, k].
    """

    @written
    def tile(
        context: Any, a: Any, a0: Any, ar: Any, b: Any, b0: Any, bk: Any, count: Any, out: Any, o0: Any, ostep: Any
    ) -> Any:
        places = types.intp
        signature = types.void(a, places, places, b, places, places, places, out, places, places)

        def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            vector = _vector(context, signature.args[0])
            left, a0, ar, right, b0, bk, count, target, o0, ostep = values
            left, right, target = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in zip(_arrays(signature), (left, right, target), strict=True)
            )
            sums = [[cgutils.alloca_once_value(builder, vector(None)) for _ in range(vectors)] for _ in range(rows)]
            starts = [builder.add(a0, builder.mul(ar, a0.type(r))) for r in range(rows)]
            with cgutils.for_range(builder, count) as loop:
                begin = builder.add(b0, builder.mul(bk, loop.index))
                columns = [
                    _load(builder, right, builder.add(begin, b0.type(v * vector.count)), vector) for v in range(vectors)
                ]
                for start, mine in zip(starts, sums, strict=True):
                    factor = _splat(builder, builder.load(builder.gep(left, [builder.add(start, loop.index)])), vector)
                    for place, column in zip(mine, columns, strict=True):
                        builder.store(_fma(builder, factor, column, builder.load(place)), place)
            for r, mine in enumerate(sums):
                begin = builder.add(o0, builder.mul(ostep, o0.type(r)))
                for v, place in enumerate(mine):
                    _store(builder, builder.load(place), target, builder.add(begin, o0.type(v * vector.count)))
            return context.get_dummy_value()

        return signature, code

    return tile


TILES = {(rows, vectors): _tile(rows, vectors) for rows in (10, 5, 2, 1) for vectors in (4, 2, 1)}


@written
def dots(context: Any, rows: Any, places: Any, count: Any, out: Any) -> Any:
    """Code for the inner products of DOWN with ACROSS rows: out[a ACROSS + b] = rows[p_a :] . rows[p_(DOWN + b) :].

    The rows are `count` numbers long, a multiple of `lanes`, and begin at places (DOWN + ACROSS,). Each turn of the
    loop reads one vector of every row and adds all DOWN x ACROSS products; the sums' vectors are added up at the end.
    """
    signature = types.void(rows, places, types.intp, out)

    def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        vector = _vector(context, signature.args[0])
        count = values[2]
        data, begins, target = (
            context.make_array(signature.args[k])(context, builder, values[k]).data for k in (0, 1, 3)
        )
        starts = [builder.load(builder.gep(begins, [count.type(k)])) for k in range(DOWN + ACROSS)]
        sums = [cgutils.alloca_once_value(builder, vector(None)) for _ in range(DOWN * ACROSS)]
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(vector.count), count.type) as (k, _):
            read = [_load(builder, data, builder.add(first, k), vector) for first in starts]
            for place, total in enumerate(sums):
                left, right = read[place // ACROSS], read[DOWN + place % ACROSS]
                builder.store(_fma(builder, left, right, builder.load(total)), total)
        for place, total in enumerate(sums):
            builder.store(_sum(builder, builder.load(total)), builder.gep(target, [count.type(place)]))
        return context.get_dummy_value()

    return signature, code


def _meeting(classes: int) -> Callable[..., None]:
    """Code for out[c + a, b + d] = x[rows[b + d]] . heads[c + a], for d < DOWN and a < classes.

    x (N, W), rows (B,) of it, heads (C, W), out (C, B'), each in C order; W is a multiple of `lanes`. As `dots`, but
    one side are rows of a table by their numbers.
    """

    @written
    def tile(context: Any, x: Any, rows: Any, b: Any, heads: Any, c: Any, out: Any) -> Any:
        signature = types.void(x, rows, types.intp, heads, types.intp, out)

        def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            vector = _vector(context, signature.args[0])
            b, c = values[2], values[4]
            table, chosen, weights, target = (
                context.make_array(signature.args[k])(context, builder, values[k]) for k in (0, 1, 3, 5)
            )
            width, beyond = (builder.extract_value(each.shape, 1) for each in (table, target))
            mine = [builder.mul(_item(builder, chosen.data, b, d), width) for d in range(DOWN)]
            theirs = [builder.mul(builder.add(c, c.type(a)), width) for a in range(classes)]
            sums = [cgutils.alloca_once_value(builder, vector(None)) for _ in range(DOWN * classes)]
            with cgutils.for_range_slice(builder, c.type(0), width, c.type(vector.count), c.type) as (k, _):
                left = [_load(builder, table.data, builder.add(first, k), vector) for first in mine]
                for a, first in enumerate(theirs):
                    right = _load(builder, weights.data, builder.add(first, k), vector)
                    for d, value in enumerate(left):
                        total = sums[a * DOWN + d]
                        builder.store(_fma(builder, value, right, builder.load(total)), total)
            for place, total in enumerate(sums):
                row = builder.mul(builder.add(c, c.type(place // DOWN)), beyond)
                column = builder.add(b, c.type(place % DOWN))
                builder.store(_sum(builder, builder.load(total)), builder.gep(target.data, [builder.add(row, column)]))
            return context.get_dummy_value()

        return signature, code

    return tile


MEETING = {classes: _meeting(classes) for classes in (ACROSS, 2, 1)}


FETCHED = BACKWARD // 2
"""Vectors of a row that a tile fetches into the cache; with more of them, fetches would wait for each other."""


def _gathered(classes: int, vectors: int) -> Callable[..., None]:
    """Code for out[c + a, v:] = sum over b < B of error[c + a, b] x[rows[b], v:], for `classes` x `vectors` sums.

    error (C, B'), x (N, W), rows (B,) of it, out (C, W), each in C order. Meanwhile FETCHED vectors, from column `far`
    on, of each row of the next batch, ahead (B,), are fetched into the core's cache: from the cache that cores share,
    they would arrive too late.
    """

    @written
    def tile(context: Any, error: Any, c: Any, x: Any, rows: Any, v: Any, out: Any, ahead: Any, far: Any) -> Any:
        signature = types.void(error, types.intp, x, rows, types.intp, out, ahead, types.intp)

        def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            vector = _vector(context, signature.args[0])
            c, v, far = values[1], values[4], values[7]
            wrong, table, chosen, target, wanted = (
                context.make_array(signature.args[k])(context, builder, values[k]) for k in (0, 2, 3, 5, 6)
            )
            width, beyond = (builder.extract_value(each.shape, 1) for each in (table, wrong))
            count = builder.extract_value(chosen.shape, 0)
            starts = [builder.mul(builder.add(c, c.type(a)), beyond) for a in range(classes)]
            sums = [[cgutils.alloca_once_value(builder, vector(None)) for _ in range(vectors)] for _ in starts]
            with cgutils.for_range(builder, count) as loop:
                begin, later = (
                    builder.add(builder.mul(_item(builder, which.data, loop.index, 0), width), column)
                    for which, column in ((chosen, v), (wanted, far))
                )
                for k in range(FETCHED):
                    _fetch(builder, table.data, builder.add(later, v.type(k * vector.count)))
                columns = [
                    _load(builder, table.data, builder.add(begin, v.type(k * vector.count)), vector)
                    for k in range(vectors)
                ]
                for start, mine in zip(starts, sums, strict=True):
                    factor = _splat(builder, _item(builder, wrong.data, start, loop.index), vector)
                    for total, column in zip(mine, columns, strict=True):
                        builder.store(_fma(builder, factor, column, builder.load(total)), total)
            for a, mine in enumerate(sums):
                begin = builder.add(builder.mul(builder.add(c, c.type(a)), width), v)
                for k, total in enumerate(mine):
                    place = builder.add(begin, v.type(k * vector.count))
                    _store(builder, builder.load(total), target.data, place)
            return context.get_dummy_value()

        return signature, code

    return tile


GATHERED = {(classes, vectors): _gathered(classes, vectors) for classes in (5, 2, 1) for vectors in (4, 2, 1)}


@written
def softmax(context: Any, logits: Any, first: Any, classes: Any, size: Any, weight: Any) -> Any:
    """Code that turns logits (classes, size), from `first` on, into probabilities times weight (size,), in place.

    size is a multiple of `lanes`. Logits that hold NaN or inf become NaN. Vectors run along `size`, so the maximum, the
    sum and the division over classes are element by element.
    """
    signature = types.void(logits, types.intp, types.intp, types.intp, weight)

    def code(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        array, first, classes, size, weights = values
        vector = _vector(context, signature.args[0])
        data = context.make_array(signature.args[0])(context, builder, array).data
        shares = context.make_array(signature.args[4])(context, builder, weights).data
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(vector.count), size.type) as (v, _):
            begin = builder.add(first, v)

            def place(c: Any, begin: Any = begin) -> Any:
                return builder.add(begin, builder.mul(c, size))

            top = cgutils.alloca_once_value(builder, _load(builder, data, begin, vector))
            with cgutils.for_range(builder, classes) as loop:
                value, most = _load(builder, data, place(loop.index), vector), builder.load(top)
                builder.store(builder.select(builder.fcmp_ordered(">", value, most), value, most), top)
            most = builder.load(top)
            total = cgutils.alloca_once_value(builder, vector(None))
            with cgutils.for_range(builder, classes) as loop:
                value = _exp(builder, builder.fsub(_load(builder, data, place(loop.index), vector), most))
                builder.store(builder.fadd(builder.load(total), value), total)
                _store(builder, value, data, place(loop.index))
            share = builder.fdiv(_load(builder, shares, v, vector), builder.load(total))
            with cgutils.for_range(builder, classes) as loop:
                value = _load(builder, data, place(loop.index), vector)
                _store(builder, builder.fmul(value, share), data, place(loop.index))
        return context.get_dummy_value()

    return signature, code


def _exp(builder: Any, x: Any) -> Any:
    """e^x for x <= 0, as 2^n e^r with |r| <= log(2) / 2, and e^r by Taylor's series. NaN stays NaN."""
    vector = x.type
    double = isinstance(vector.element, ir.DoubleType)
    bits, mantissa, terms = (64, 52, 14) if double else (32, 23, 8)

    def all_of(value: float) -> Any:
        return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)

    least = all_of(LEAST)
    x = builder.select(builder.fcmp_ordered("<", x, least), least, x)
    # Adding this number rounds to a whole number n, which then stands in the lowest bits of the sum.
    shift = all_of(1.5 * 2.0**mantissa)
    shifted = _fma(builder, x, all_of(1 / math.log(2)), shift)
    n = builder.fsub(shifted, shift)
    r = _fma(builder, n, all_of(-math.log(2)), x)  # rounded once: the error is at most 1e-7 of log(2) n
    value = all_of(1 / math.factorial(terms - 1))
    for k in reversed(range(terms - 1)):
        value = _fma(builder, value, r, all_of(1 / math.factorial(k)))
    whole = ir.VectorType(ir.IntType(bits), vector.count)
    places = ir.Constant(whole, [ir.Constant(whole.element, mantissa)] * vector.count)
    # Moved up to the exponent's bits and added to those of e^r, n multiplies it by 2^n.
    power = builder.shl(builder.bitcast(shifted, whole), places)
    return builder.bitcast(builder.add(builder.bitcast(value, whole), power), vector)


def _vector(context: Any, array: Any) -> Any:
    """The type of a vector of the array's numbers, in LLVM."""
    return ir.VectorType(context.get_value_type(array.dtype), VECTOR_BYTES * 8 // array.dtype.bitwidth)


def _sum(builder: Any, value: Any) -> Any:
    """Sum of a vector's numbers: one half is added to the other until one number is left."""
    nothing = ir.Constant(value.type, ir.Undefined)
    half = value.type.count
    while half > 1:
        half //= 2
        places = [ir.IntType(32)((k + half) % value.type.count) for k in range(value.type.count)]
        mask = ir.Constant(ir.VectorType(ir.IntType(32), value.type.count), places)
        value = builder.fadd(value, builder.shuffle_vector(value, nothing, mask))
    return builder.extract_element(value, ir.IntType(32)(0))


def _arrays(signature: Any) -> list[Any]:
    return [kind for kind in signature.args if isinstance(kind, types.Array)]


def _item(builder: Any, data: Any, place: Any, more: Any) -> Any:
    """data[place + more]; more is a Python number or a value in LLVM."""
    more = place.type(more) if isinstance(more, int) else more
    return builder.load(builder.gep(data, [builder.add(place, more)]))


def _pointer(builder: Any, data: Any, place: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())


def _load(builder: Any, data: Any, place: Any, vector: Any) -> Any:
    return builder.load(_pointer(builder, data, place, vector), align=4)


def _store(builder: Any, value: Any, data: Any, place: Any) -> None:
    builder.store(value, _pointer(builder, data, place, value.type), align=4)


def _fetch(builder: Any, data: Any, place: Any) -> None:
    """Fetches data[place] into the core's second-level cache; changes no value."""
    number = ir.IntType(32)
    where = builder.bitcast(builder.gep(data, [place]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [where.type, number, number, number])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(fetch, [where, number(0), number(2), number(1)])  # for reading; second level; data, not instructions


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    """A vector with the value in every place."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""
    name = f"llvm.fma.v{a.type.count}f{64 if isinstance(a.type.element, ir.DoubleType) else 32}"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])
