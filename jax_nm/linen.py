"""`NMDense`: an N:M-sparse `flax.linen.Dense`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jax_nm import _flax
from jax_nm._array import NMArray
from jax_nm._flax import linen as nn
from jax_nm._pattern import Pattern
from jax_nm._prune import check_pattern, compress
from jax_nm._spmm import spmm

__all__ = ["COLLECTION", "NMDense", "compress_dense"]

COLLECTION = "nm_indices"


class NMDense(nn.Module):
    """A linear layer over the last axis of x with an N:M-sparse kernel.

        y[..., c] = act(sum over kept slots j of x[..., source(g, j)] * values[j, c]
                        + bias[c])

    Takes the place of `flax.linen.Dense`. A fresh layer draws the dense kernel, prunes
    it by magnitude and scales the rest by ``sqrt(m / n)``; `compress_dense` prunes a
    trained one. The sum, the bias and the activation are float32 (float64 for float64)
    and rounded once.

    Variables:
      params / values: ``[kept, features]``, param_dtype.
      params / bias: ``[features]``, param_dtype, if `use_bias`.
      nm_indices / indices_{n}_{m}_{vector_length}_{depth}: uint8 ``[groups, kept]``.
        The name carries the format: variables of another pattern or depth are refused.

    Train ``variables["params"]`` and pass ``variables["nm_indices"]`` beside it. Lifted
    transforms name both collections:
    ``nn.scan(..., variable_axes={"params": 0, "nm_indices": 0})``.

    Attributes:
      features: Columns of the kernel, the last axis of y.
      pattern: The `jax_nm.Pattern` of the kernel.
      use_bias: Whether to add a bias.
      activation: As for `jax_nm.spmm`: None, 'relu', 'gelu', 'gelu_exact', 'silu' or a
        hashable function.
      dtype: The dtype of the computation; None infers it from x and the parameters.
      param_dtype: The dtype of values and bias.
      precision: As for `jax_nm.spmm`.
      kernel_init: Initialiser of the dense kernel, ``[depth, features]``.
      bias_init: Initialiser of the bias, ``[features]``.
      promote_dtype: Casts x, values and bias to one dtype, as for `flax.linen.Dense`.
      preferred_element_type: The dtype of the result; None means the computation's.
      implementation: As for `jax_nm.spmm`.

    >>> import jax, jax.numpy as jnp, jax_nm
    >>> layer = NMDense(4, jax_nm.Pattern(1, 4, vector_length=2))
    >>> variables = layer.init(jax.random.key(0), jnp.ones((3, 8)))
    >>> jax.tree.map(jnp.shape, variables["nm_indices"])
    {'indices_1_4_2_8': (2, 2)}
    >>> layer.apply(variables, jnp.ones((3, 8))).shape
    (3, 4)
    """

    features: int
    pattern: Pattern
    use_bias: bool = True
    activation: str | Callable[[jax.Array], jax.Array] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    promote_dtype: Callable[..., Any] = nn.dtypes.promote_dtype
    preferred_element_type: Any = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Any) -> jax.Array:
        """Applies the layer to ``x [..., depth]``, giving ``[..., features]``.

        x and the parameters are promoted to one dtype, or cast to `dtype`, as in
        `flax.linen.Dense`; an integer x becomes floating.

        Raises:
          TypeError: If an argument or attribute has the wrong type.
          ValueError: If x is a scalar, the variables are of another pattern or depth,
            or an option is unknown.
        """
        check_pattern("NMDense", self.pattern)
        _flax.check_activation("NMDense", self.activation, nn.Module)
        if not jnp.shape(x):
            raise ValueError("NMDense: x must have shape [..., depth], got a scalar")
        depth = jnp.shape(x)[-1]
        values, indices = self._weight(depth)
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
        x, values, bias = self.promote_dtype(x, values, bias, dtype=self.dtype)
        return spmm(
            x,
            NMArray(values, indices, self.pattern, depth, self.features),
            bias,
            activation=self.activation,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            implementation=self.implementation,
        )

    def _weight(self, depth: int) -> tuple[jax.Array, jax.Array]:
        """Values and indices, stored ones or both halves of one draw."""
        name = _flax.index_name(self.pattern, depth)
        drawn: list[jax.Array] = []

        def draw(key: jax.Array) -> Any:
            shape = (depth, self.features)
            kernel = self.kernel_init(key, shape, self.param_dtype)
            w = _flax.fresh(nn.meta.unbox(kernel), self.pattern)
            drawn.append(w.indices)
            return nn.meta.replace_boxed(kernel, w.values)

        def expected(key: jax.Array) -> jax.Array:
            return jnp.zeros((self.pattern.kept(depth), self.features))

        stored = self.has_variable("params", "values")
        if stored and not self.has_variable(COLLECTION, name):
            held = sorted(self.variables.get(COLLECTION, {}))
            raise ValueError(
                f"NMDense: a layer of pattern {self.pattern} and depth {depth} reads "
                f"{COLLECTION}/{name} beside its values, got {held or 'nothing'}; pass "
                f"the '{COLLECTION}' of the layer that the values come from, or make "
                "both with compress_dense"
            )
        values = self.param("values", expected if stored else draw)
        indices = self.variable(COLLECTION, name, lambda: drawn.pop())
        return values, indices.value


def compress_dense(
    params: Mapping[str, Any], pattern: Pattern, mask: Any = None, gram: Any = None
) -> dict[str, dict[str, Any]]:
    """The `NMDense` variables of a trained `flax.linen.Dense`.

    Args:
      params: ``{"kernel": [depth, features]}``, with or without ``"bias": [features]``:
        the 'params' of one Dense layer, or of a scanned stack, with leading axes.
      pattern: The pattern to prune to.
      mask: bool, the kernel's shape, as for `jax_nm.compress`.
      gram: ``[depth, depth]``, as for `jax_nm.compress`.

    Returns:
      ``{"params": {"values", "bias"}, "nm_indices": {...}}``. For a layer inside a
      model, put each half at the layer's place in its collection.

    Raises:
      TypeError: If an argument has the wrong type.
      ValueError: If `params` holds other names, shapes disagree, or the mask breaks the
        pattern.

    >>> import jax, jax.numpy as jnp, jax_nm
    >>> from flax import linen as nn
    >>> x, pattern = jnp.ones((3, 8)), jax_nm.Pattern(1, 4, vector_length=2)
    >>> dense = nn.Dense(4).init(jax.random.key(0), x)
    >>> variables = compress_dense(dense["params"], pattern)
    >>> NMDense(4, pattern).apply(variables, x).shape
    (3, 4)
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            "compress_dense: params must be a mapping with 'kernel', got "
            f"{type(params).__name__}"
        )
    if "kernel" not in params or not {"kernel", "bias"}.issuperset(params):
        raise ValueError(
            "compress_dense: params must hold 'kernel' and at most 'bias', got "
            f"{sorted(params)}; pass the 'params' of one Dense layer, such as "
            "variables['params']['Dense_0']"
        )
    kernel = params["kernel"]
    w = compress(nn.meta.unbox(kernel), pattern, mask, gram)
    trained = {"values": nn.meta.replace_boxed(kernel, w.values)}
    if "bias" in params:
        trained["bias"] = params["bias"]
    return {
        "params": trained,
        COLLECTION: {_flax.index_name(pattern, w.depth): w.indices},
    }
