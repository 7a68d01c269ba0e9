"""Wrong calls of the public functions: each raises, and its message says what to do.

A message of the package names the function and the argument, the rule, what was got,
and after a semicolon the fix. Shards that cut a group are in test_sharding.py.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_nm
from jax_nm import NMArray, Pattern

DEPTH, COLS, ROWS = 32, 24, 4
PATTERN = Pattern(2, 8, vector_length=8)
KERNEL = np.arange(DEPTH * COLS, dtype=np.float32).reshape(DEPTH, COLS)
X = np.ones((ROWS, DEPTH), np.float32)
SHAPE = jax.ShapeDtypeStruct


@functools.cache
def weight(*batch: int) -> NMArray:
    return jax_nm.compress(np.broadcast_to(KERNEL, (*batch, DEPTH, COLS)), PATTERN)


def mask(change: Callable[[np.ndarray], None]) -> np.ndarray:
    """A right mask, after `change`."""
    right = np.array(weight().mask())
    change(right)
    return right


def indices(change: Callable[[np.ndarray], None]) -> NMArray:
    """A right weight whose indices, ``[groups, windows, n]``, were changed."""
    right = np.array(weight().indices).reshape(3, 4, 2)
    change(right)
    return with_leaves(indices=right.reshape(3, 8))


def with_leaves(**fields) -> NMArray:
    return dataclasses.replace(weight(), **fields)


def assign(place, value) -> Callable[[np.ndarray], None]:
    def change(a: np.ndarray) -> None:
        a[place] = value

    return change


class Unhashable:
    __hash__ = None

    def __call__(self, y):
        return y


def spmm(x=X, w=None, **keywords):
    return jax_nm.spmm(x, weight() if w is None else w, **keywords)


def compress(kernel=KERNEL, pattern=PATTERN, **keywords):
    return jax_nm.compress(kernel, pattern, **keywords)


def explain(x=X, w=None, **keywords):
    return jax_nm.explain(x, weight() if w is None else w, **keywords)


def train() -> NMArray:
    return jax_nm.partition(weight())[0]


def static() -> NMArray:
    return jax_nm.partition(weight())[1]


def loss(w, x=X):
    return jnp.sum(x @ w)


FLOATING = "float32, bfloat16, float16 or float64"

# fmt: off
# (id, call, exception, regex of the message)
WRONG = [
    # Pattern
    ("pattern-float", lambda: Pattern(8.0, 32), TypeError,
     r"n must be a Python integer, got 8\.0 of type float"),
    ("pattern-bool", lambda: Pattern(True, 32), TypeError,
     "n must be .* got True of type bool"),
    ("pattern-text", lambda: Pattern("8:32", 32), TypeError,
     r"n must be .* got '8:32' of type str; use Pattern\.parse"),
    ("pattern-n-zero", lambda: Pattern(0, 4), ValueError,
     "n must be between 1 and m, got n=0 with m=4"),
    ("pattern-n-above-m", lambda: Pattern(5, 4), ValueError,
     "n must be between 1 and m, got n=5 with m=4"),
    ("pattern-m-too-long", lambda: Pattern(1, 257), ValueError,
     "m must be between 1 and 256, .* got m=257"),
    ("pattern-m-zero", lambda: Pattern(0, 0), ValueError,
     "m must be between 1 and 256, .* got m=0"),
    ("pattern-vector-zero", lambda: Pattern(2, 4, 0), ValueError,
     "vector_length must be at least 1, got 0"),
    ("pattern-tracer", lambda: jax.jit(lambda n: Pattern(n, 4).n)(2), TypeError,
     "n must be a Python integer, got .*Tracer.*; patterns are static"),
    ("parse-slash", lambda: Pattern.parse("8/32"), ValueError,
     "text must read 'n:m' or 'n:m:vector_length', .* got '8/32'"),
    ("parse-number", lambda: Pattern.parse(8), TypeError,
     "text must be a string .* got 8"),
    ("parse-four", lambda: Pattern.parse("1:2:3:4"), ValueError,
     "text must read .* got '1:2:3:4'"),
    ("parse-negative", lambda: Pattern.parse("-1:4"), ValueError,
     "text must read .* got '-1:4'"),
    # x
    ("x-list", lambda: spmm([[1.0] * DEPTH]), TypeError,
     r"x must be an array, got list; convert it with jnp\.asarray"),
    ("x-list-operator", lambda: [[1.0] * DEPTH] @ weight(), TypeError,
     "x must be an array, got list"),
    ("x-none", lambda: spmm(None), TypeError,
     "x must be an array, got NoneType"),
    ("x-int", lambda: spmm(np.ones((ROWS, DEPTH), np.int32)), TypeError,
     rf"x must have dtype {FLOATING}, got int32"),
    ("x-bool", lambda: spmm(np.ones((ROWS, DEPTH), bool)), TypeError,
     "x must have dtype .* got bool"),
    ("x-complex", lambda: spmm(X.astype(np.complex64)), TypeError,
     "x must have dtype .* got complex64"),
    ("x-text", lambda: spmm(np.array([["a"] * DEPTH])), TypeError,
     "x must be an array that JAX can hold, got dtype <U1"),
    ("x-object", lambda: spmm(np.array([[None] * DEPTH])), TypeError,
     "x must be an array that JAX can hold, got dtype object"),
    ("x-key", lambda: spmm(jax.random.key(0)), TypeError,
     "x must have dtype .* got key<fry>"),
    ("x-sparse", lambda: spmm(BCOO.fromdense(X)), TypeError,
     r"x must be a dense array, got BCOO; pass x\.todense\(\)"),
    ("x-scalar", lambda: spmm(np.float32(1)), ValueError,
     r"x must have shape \[\.\.\., depth\], got a scalar; .* must be 32"),
    ("x-transposed", lambda: spmm(X.T), ValueError,
     "x has depth 4 but w was compressed from depth 32; the last axis of x must be 32"),
    ("x-depth", lambda: X[:, 1:] @ weight(), ValueError,
     "x has depth 31 but w was compressed from depth 32"),
    ("x-depth-vmap", lambda: jax.vmap(spmm)(X[:, 1:]), ValueError,
     "x has depth 31 but"),
    ("x-abstract", lambda: spmm(SHAPE((4, 32), jnp.float32)), TypeError,
     "x must be an array, got ShapeDtypeStruct; only explain"),
    ("x-sparse-weight", lambda: spmm(weight(), weight()), TypeError,
     "x must be dense, got an NMArray; the weight is the second argument"),
    ("x-w-swapped", lambda: jax_nm.spmm(weight(), X), TypeError,
     "x must be dense, got an NMArray; the weight is the second argument"),
    ("w-at-w", lambda: weight() @ weight(), TypeError,
     r"must stand on the right of @, .* got w @ NMArray; .*w\.todense\(\)"),
    ("w-at-x", lambda: weight() @ X.T, TypeError,
     "must stand on the right of @, .* got w @ ndarray"),
    ("w-implicit", lambda: np.asarray(weight()), TypeError,
     "conversion to a dense array must be explicit, got an implicit one; write "
     r"w\.todense"),
    # w
    ("w-dense", lambda: spmm(w=KERNEL), TypeError,
     r"w must be a jax_nm\.NMArray, got ndarray; make it with jax_nm\.compress"),
    ("w-none", lambda: jax_nm.spmm(X, None), TypeError,
     r"w must be a jax_nm\.NMArray, got NoneType"),
    ("w-train-half", lambda: spmm(w=train()), TypeError,
     r"w\.indices must be an array, got None; .* jax_nm\.combine"),
    ("w-static-half", lambda: spmm(w=static()), TypeError,
     r"w\.values must be an array, got None; .* jax_nm\.combine"),
    ("w-abstract", lambda: spmm(w=jax.eval_shape(weight)), TypeError,
     r"w\.values must be an array, got ShapeDtypeStruct; only explain"),
    ("w-values-int",
     lambda: spmm(w=with_leaves(values=np.ones((8, 24), int))), TypeError,
     r"w\.values must have dtype .* got int64"),
    ("w-indices-int",
     lambda: spmm(w=with_leaves(indices=np.zeros((3, 8), np.int32))), TypeError,
     r"w\.indices must be uint8, got int32"),
    ("w-indices-rank",
     lambda: spmm(w=with_leaves(indices=np.zeros(8, np.uint8))), ValueError,
     r"w\.indices must have at least 2 axes, got shape \(8,\)"),
    ("w-indices-shape",
     lambda: spmm(w=with_leaves(indices=np.zeros((2, 8), np.uint8))), ValueError,
     r"w\.indices must have shape \[\.\.\., 3, 8\] .* got \(2, 8\)"),
    ("w-batch-differs",
     lambda: spmm(w=with_leaves(values=np.ones((2, 8, 24), np.float32))), ValueError,
     r"must share their leading axes, got \(2, 8, 24\) and \(3, 8\)"),
    ("w-sliced-cols",
     lambda: spmm(w=jax.tree.map(lambda a: a[..., :16], weight())), ValueError,
     r"w\.values has 16 columns but w was compressed from 24; .* instead of slicing w"),
    ("w-sliced-kept",
     lambda: spmm(w=jax.tree.map(lambda a: a[:4], weight())), ValueError,
     r"w\.values must have 8 rows for depth 32 .* got shape \(4, 24\)"),
    ("w-swapped-leaves",
     lambda: spmm(w=with_leaves(values=weight().indices, indices=weight().values)),
     TypeError,
     r"w\.values must have dtype .* got uint8"),
    ("w-pattern-text", lambda: spmm(w=with_leaves(pattern="2:8:8")), TypeError,
     r"w\.pattern must be a jax_nm\.Pattern, got '2:8:8'"),
    ("w-depth-float", lambda: spmm(w=with_leaves(depth=32.0)), TypeError,
     r"w\.depth must be a static integer >= 0, got 32\.0"),
    ("w-other-pattern", lambda: spmm(w=with_leaves(pattern=Pattern(2, 8))), ValueError,
     r"w\.indices must have shape \[\.\.\., 1, 8\]"),
    # batched w
    ("batched-x-1d", lambda: spmm(X[0], weight(3)), ValueError,
     r"x must have at least 2 axes for a batched w of shape \(3, 32, 24\), got "
     r"\(32,\)"),
    ("batched-broadcast",
     lambda: spmm(np.ones((2, 4, DEPTH), np.float32), weight(3)), ValueError,
     r"leading axes that broadcast, .* got \(2,\) and \(3,\)"),
    ("batched-bias",
     lambda: spmm(w=weight(3), bias=np.ones((2, COLS), np.float32)), ValueError,
     r"bias must have shape \(24,\) or \(3, 24\), got \(2, 24\)"),
    # bias
    ("bias-list", lambda: spmm(bias=[0.0] * COLS), TypeError,
     "bias must be an array, got list"),
    ("bias-shape", lambda: spmm(bias=np.ones(ROWS, np.float32)), ValueError,
     r"bias must have shape \(24,\), got \(4,\)"),
    ("bias-int", lambda: spmm(bias=np.ones(COLS, np.int32)), TypeError,
     "bias must have dtype .* got int32"),
    ("bias-sparse", lambda: spmm(bias=weight()), TypeError,
     "bias must be a dense array, got NMArray"),
    # activation
    ("activation-unknown", lambda: spmm(activation="swish"), ValueError,
     "activation must be one of 'relu', 'gelu', 'gelu_exact', 'silu' or a callable, "
     "got 'swish'"),
    ("activation-number", lambda: spmm(activation=3), TypeError,
     "activation must be a string or a callable, got 3"),
    ("activation-unhashable", lambda: spmm(activation=Unhashable()), TypeError,
     "activation must be hashable, .* got <.*Unhashable"),
    ("activation-shape", lambda: spmm(activation=jnp.sum), TypeError,
     r"activation must map a floating array to one of the same shape, got float32\[\] "
     r"for float32\[4, 24\]"),
    ("activation-bool", lambda: spmm(activation=jnp.isnan), TypeError,
     r"activation must map .* got bool\[4, 24\]"),
    ("activation-pair", lambda: spmm(activation=lambda y: (y, y)), TypeError,
     "activation must map .* got tuple"),
    ("activation-tracer", lambda: jax.jit(lambda a: spmm(activation=a))(1), TypeError,
     "activation must be a string or a callable, got .*Tracer"),
    # precision
    ("precision-bfloat16", lambda: spmm(precision="bfloat16"), ValueError,
     "precision must be .*HIGHEST, or 'default', .* got 'bfloat16'"),
    ("precision-algorithm",
     lambda: spmm(precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32), ValueError,
     "precision must be .* got .*BF16_BF16_F32"),
    ("precision-unhashable", lambda: spmm(precision=["high"]), ValueError,
     r"precision must be .* got \['high'\]"),
    ("precision-tracer", lambda: jax.jit(lambda p: spmm(precision=p))(1), ValueError,
     "precision must be .* got .*Tracer"),
    # preferred_element_type
    ("preferred-int32", lambda: spmm(preferred_element_type=jnp.int32), TypeError,
     rf"preferred_element_type must be {FLOATING}, got .*int32"),
    ("preferred-int8", lambda: spmm(preferred_element_type="int8"), TypeError,
     "preferred_element_type must be .* got 'int8'"),
    ("preferred-unknown", lambda: spmm(preferred_element_type="float31"), TypeError,
     "preferred_element_type must be .* got 'float31'"),
    # result_layout
    ("layout-unknown", lambda: spmm(result_layout="column"), ValueError,
     "result_layout must be None, 'row' or 'feature', got 'column'"),
    ("layout-number", lambda: spmm(result_layout=0), ValueError,
     "result_layout must be .* got 0"),
    ("layout-array", lambda: spmm(result_layout=X), ValueError,
     "result_layout must be .* got array"),
    # implementation
    ("implementation-unknown", lambda: spmm(implementation="cublas"), ValueError,
     "implementation must be None, 'sparse', 'dense' or the name of a CUDA kernel of "
     r"spmm \('spmm_.*\), got 'cublas'; None leaves"),
    ("implementation-other-op", lambda: spmm(implementation="spmm_t_4x16"), ValueError,
     "implementation must be .* got 'spmm_t_4x16'"),
    ("implementation-id", lambda: spmm(implementation=1), ValueError,
     "implementation must be .* got 1"),
    ("implementation-unhashable", lambda: spmm(implementation=["dense"]), ValueError,
     r"implementation must be .* got \['dense'\]"),
    ("implementation-fm",
     lambda: jax_nm.spmm_fm(X.T, weight(), implementation="auto"), ValueError,
     "implementation must be .* got 'auto'"),
    ("implementation-explain", lambda: explain(implementation="auto"), ValueError,
     "implementation must be .* got 'auto'"),
    ("implementation-cpu",
     lambda: explain(arch="cpu", implementation="spmm_128x128_window"), ValueError,
     "'spmm_128x128_window' is a CUDA kernel, but the product is lowered for cpu"),
    ("implementation-illegal",
     lambda: explain(arch=90, implementation="spmm_hopper_256x128"), ValueError,
     "'spmm_hopper_256x128' cannot compute this product: needs bfloat16 or float16"),
    # spmm_fm
    ("fm-vector", lambda: jax_nm.spmm_fm(X[0], weight()), ValueError,
     r"xT must have shape \[\.\.\., depth, rows\], got \(32,\); use spmm"),
    ("fm-not-transposed", lambda: jax_nm.spmm_fm(X, weight()), ValueError,
     "xT has depth 4 but w was compressed from depth 32; the last axis of xT but one"),
    ("fm-int", lambda: jax_nm.spmm_fm(X.T.astype(int), weight()), TypeError,
     "xT must have dtype .* got int"),
    # explain
    ("explain-op", lambda: explain(op="dense"), ValueError,
     "op must be 'spmm', 'spmm_t' or 'sddmm', got 'dense'"),
    ("explain-arch-old", lambda: explain(arch="sm_70"), ValueError,
     "arch must be 'cpu' or a CUDA compute capability .* got 'sm_70'"),
    ("explain-arch-float", lambda: explain(arch=90.0), ValueError,
     r"arch must be .* got 90\.0; write it as 90"),
    ("explain-arch-bool", lambda: explain(arch=True), ValueError,
     "arch must be .* got True"),
    ("explain-depth", lambda: explain(SHAPE((4, 31), jnp.float32)), ValueError,
     "x has depth 31 but"),
    ("explain-bias", lambda: explain(bias=SHAPE((3,), jnp.float32)), ValueError,
     r"bias must have shape \(24,\), got \(3,\)"),
    ("explain-activation", lambda: explain(activation="tanh"), ValueError,
     "activation must be one of .* got 'tanh'"),
    # compress
    ("kernel-list", lambda: compress([[1.0]]), TypeError,
     "kernel must be an array, got list"),
    ("kernel-int", lambda: compress(KERNEL.astype(int)), TypeError,
     "kernel must have dtype .* got int"),
    ("kernel-vector", lambda: compress(KERNEL[0]), ValueError,
     r"kernel must have shape \[\*batch, depth, cols\], got \(24,\)"),
    ("kernel-compressed", lambda: compress(weight()), TypeError,
     r"kernel must be a dense array, got NMArray; pass kernel\.todense\(\)"),
    ("kernel-abstract", lambda: compress(SHAPE((32, 24), jnp.float32)), TypeError,
     r"kernel must be an array, got ShapeDtypeStruct; .* jax\.eval_shape"),
    ("compress-text", lambda: compress(pattern="2:8:8"), TypeError,
     r"pattern must be a jax_nm\.Pattern, got '2:8:8'; .*Pattern\.parse"),
    ("mask-float", lambda: compress(mask=KERNEL), TypeError,
     "mask must be bool, got float32; write mask != 0"),
    ("mask-shape", lambda: compress(mask=np.ones((24, 32), bool)), ValueError,
     r"mask must have the kernel's shape \(32, 24\), got \(24, 32\)"),
    ("mask-full", lambda: compress(mask=np.ones((32, 24), bool)), ValueError,
     "mask must keep exactly 2 of every 8 rows .* got 8"),
    ("mask-one-more",
     lambda: compress(mask=mask(assign((0, slice(0, 8)), True))), ValueError,
     "mask must keep exactly 2 of every 8 rows .* got 3"),
    ("mask-one-less",
     lambda: compress(mask=mask(assign((slice(8, 16), slice(8, 16)), False))),
     ValueError,
     "mask must keep exactly 2 of every 8 rows .* got 0"),
    ("mask-breaks-vector",
     lambda: compress(mask=mask(lambda a: np.copyto(a[:8, 0], a[7::-1, 0]))),
     ValueError,
     "mask must be the same for all columns of a group of 8 .* got a row"),
    ("gram-list", lambda: compress(gram=[[1.0]]), TypeError,
     "gram must be an array, got list"),
    ("gram-not-square", lambda: compress(gram=X), ValueError,
     r"gram must have shape \(32, 32\) .* got \(4, 32\)"),
    ("gram-int", lambda: compress(gram=np.eye(DEPTH, dtype=np.int32)), TypeError,
     "gram must have dtype .* got int32"),
    ("damping-negative", lambda: compress(damping=-1), ValueError,
     "damping must be at least 0 and finite, got -1"),
    ("damping-nan", lambda: compress(damping=float("nan")), ValueError,
     "damping must be at least 0 and finite, got nan"),
    ("damping-infinite", lambda: compress(damping=float("inf")), ValueError,
     "damping must be at least 0 and finite, got inf"),
    ("damping-text", lambda: compress(damping="0.01"), TypeError,
     r"damping must be a Python number, got '0\.01'"),
    ("damping-tracer", lambda: jax.jit(lambda d: compress(damping=d))(0.1), TypeError,
     "damping must be a Python number, got .*Tracer"),
    ("damping-singular",
     lambda: compress(gram=np.ones((32, 32), np.float32), damping=0), ValueError,
     r"damping must make the gram positive definite .* got damping=0\.0"),
    # prune_mask
    ("scores-int", lambda: jax_nm.prune_mask(KERNEL.astype(int), PATTERN), TypeError,
     "scores must have dtype .* got int"),
    ("scores-vector", lambda: jax_nm.prune_mask(KERNEL[0], PATTERN), ValueError,
     r"scores must have shape \[\*batch, depth, cols\], got \(24,\)"),
    ("scores-pattern", lambda: jax_nm.prune_mask(KERNEL, "2:8"), TypeError,
     r"pattern must be a jax_nm\.Pattern, got '2:8'"),
    # NMArray
    ("astype-int", lambda: weight().astype(jnp.int8), TypeError,
     rf"dtype must be {FLOATING}, got .*int8"),
    ("astype-float8", lambda: weight().astype("float8_e4m3fn"), TypeError,
     "dtype must be .* got 'float8_e4m3fn'"),
    ("astype-half", lambda: static().astype(jnp.float32), TypeError,
     r"w\.values must be an array, got None"),
    ("todense-half", lambda: train().todense(), TypeError,
     r"w\.indices must be an array, got None; .* jax_nm\.combine"),
    ("mask-half", lambda: static().mask(), TypeError,
     r"w\.values must be an array, got None; .* jax_nm\.combine"),
    ("todense-sliced",
     lambda: jax.tree.map(lambda a: a[..., :4], weight()).todense(), ValueError,
     r"w\.values must have shape \(8, 24\) .* got \(8, 4\)"),
    # validate
    ("validate-dense", lambda: jax_nm.validate(KERNEL), TypeError,
     r"w must be a jax_nm\.NMArray, got ndarray"),
    ("validate-jit", lambda: jax.jit(jax_nm.validate)(weight()), TypeError,
     r"w\.values must be a concrete array, got .*Tracer; call validate outside jit"),
    ("validate-half", lambda: jax_nm.validate(train()), TypeError,
     r"w\.indices must be a concrete array, got NoneType"),
    ("validate-values-shape",
     lambda: jax_nm.validate(with_leaves(values=np.ones((7, 24), np.float32))),
     ValueError,
     r"w\.values must have shape \(8, 24\) .* got \(7, 24\)"),
    ("validate-indices-shape",
     lambda: jax_nm.validate(with_leaves(indices=np.zeros((3, 9), np.uint8))),
     ValueError,
     r"w\.indices must have shape \(3, 8\) .* got \(3, 9\)"),
    ("validate-outside",
     lambda: jax_nm.validate(indices(assign((0, 1, 1), 8))), ValueError,
     r"w\.indices must lie inside their window .* got an offset of 8 with m=8"),
    ("validate-beyond",
     lambda: jax_nm.validate(with_leaves(depth=30)), ValueError,
     r"w\.indices must lie inside their window .* depth=30"),
    ("validate-duplicate",
     lambda: jax_nm.validate(indices(assign((2, 3), 5))), ValueError,
     r"w\.indices must be strictly ascending inside each window, got a repeated or "
     "descending offset"),
    ("validate-unsorted",
     lambda: jax_nm.validate(indices(assign((0, 0), (7, 6)))), ValueError,
     r"w\.indices must be strictly ascending"),
    # trees
    ("combine-twice", lambda: jax_nm.combine(weight(), weight()), ValueError,
     r"must not both hold a leaf at \.values"),
    ("combine-structure", lambda: jax_nm.combine({"w": 1.0}, {"v": None}), ValueError,
     "train and static must have the same structure; "),
    ("combine-pattern",
     lambda: jax_nm.combine(train(), dataclasses.replace(static(), depth=30)),
     ValueError,
     "train and static must have the same structure; "),
    ("grad-not-callable", lambda: jax_nm.grad(weight()), TypeError,
     "^grad: fun must be callable, got NMArray"),
    ("grad-argnums-text", lambda: jax_nm.grad(loss, argnums="w"), TypeError,
     "^grad: argnums must be an integer or a sequence of integers, got 'w'"),
    ("grad-argnums-float",
     lambda: jax_nm.value_and_grad(loss, argnums=(0, 1.0)), TypeError,
     r"^value_and_grad: argnums must be .* got \(0, 1\.0\)"),
    ("grad-argnums-beyond",
     lambda: jax_nm.value_and_grad(loss, argnums=2)(weight(), X), ValueError,
     "argnums must name positional arguments of the call, got argnums=2 with 2 of "
     "them"),
    ("grad-keyword", lambda: jax_nm.grad(loss)(w=weight()), ValueError,
     "argnums must name positional arguments .* got argnums=0 with 0 of them; .* by "
     "position"),
    ("grad-argnums-twice",
     lambda: jax_nm.grad(loss, argnums=(0, -2))(weight(), X), ValueError,
     r"argnums must name each argument once, got \(0, -2\)"),
    ("grad-no-float", lambda: jax_nm.grad(lambda n: n * 2.0)(3), TypeError,
     "argument 0 must hold a float leaf to differentiate, got none"),
]

# Calls that JAX or Python refuse in words of their own.
FOREIGN = [
    ("pattern-no-m", lambda: Pattern("8:32"), TypeError,
     "missing 1 required positional argument: 'm'"),
    ("grad-of-indices", lambda: jax.grad(loss)(weight()), TypeError,
     "got uint8"),
    ("grad-not-scalar", lambda: jax_nm.grad(lambda w: X @ w)(weight()), TypeError,
     "scalar-output functions"),
    ("spmm-keyword", lambda: spmm(bais=None), TypeError,
     "unexpected keyword argument 'bais'"),
    ("fm-keyword", lambda: jax_nm.spmm_fm(X.T, weight(), bais=None), TypeError,
     "unexpected keyword argument 'bais'"),
    ("jnp-matmul", lambda: jnp.matmul(X, weight()), TypeError,
     "NMArray"),
    ("np-matmul", lambda: np.matmul(X, weight()), TypeError,
     "NMArray"),
    ("jit-pattern", lambda: jax.jit(jax_nm.compress)(KERNEL, PATTERN), TypeError,
     "Pattern"),
    ("w-plus-w", lambda: weight() + weight(), TypeError,
     "unsupported operand"),
    ("frozen", lambda: setattr(weight(), "depth", 16), AttributeError,
     "depth"),
]
# fmt: on


def ids(table):
    return [row[0] for row in table]


@pytest.mark.parametrize("_, call, error, message", WRONG, ids=ids(WRONG))
def test_wrong_call(_, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    # Function: what is wrong; what to do.
    assert re.fullmatch(r"[\w.]+: [^;]+; .+", str(caught.value), re.DOTALL)


@pytest.mark.parametrize("_, call, error, message", FOREIGN, ids=ids(FOREIGN))
def test_foreign_message(_, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_ids_are_unique():
    names = ids(WRONG + FOREIGN)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("preset", ["bfloat16", "BF16_BF16_F32"])
def test_default_matmul_precision_is_checked_too(preset):
    with (
        jax.default_matmul_precision(preset),
        pytest.raises(ValueError, match=r"precision must be .* got"),
    ):
        spmm()


def test_errors_are_raised_at_trace_time():
    """A wrong call inside jit fails while tracing, with the same message."""
    with pytest.raises(ValueError, match="x has depth 31 but"):
        jax.jit(spmm).trace(SHAPE((4, 31), jnp.float32))


def test_a_traced_mask_is_not_checked():
    """Documented: the result is unspecified, but it has the right shapes."""
    wrong = np.ones((DEPTH, COLS), bool)
    w = jax.jit(lambda mask: compress(mask=mask))(wrong)
    assert w.shape == (DEPTH, COLS)
    jax_nm.validate(w)
