"""`NMLinear`: an N:M-sparse `flax.nnx.Linear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jax_nm import _flax
from jax_nm._array import NMArray
from jax_nm._flax import nnx
from jax_nm._pattern import Pattern
from jax_nm._prune import check_pattern, compress
from jax_nm._spmm import spmm

__all__ = ["NMIndices", "NMLinear"]

default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()
default_promote_dtype = nnx.nn.dtypes.promote_dtype


@nnx.register_variable_name("nm_indices", overwrite=True)
class NMIndices(nnx.Variable[jax.Array]):
    """The indices of an N:M-sparse weight: uint8 ``[*batch, groups, kept]``.

    State that is saved and restored but not trained: it is no `nnx.Param`, so
    `nnx.grad` does not differentiate it and an `nnx.Optimizer` with ``wrt=nnx.Param``
    leaves it alone. The metadata `format` names the pattern and the depth.
    """


class NMLinear(nnx.Module):
    """A linear layer over the last axis of x with an N:M-sparse kernel.

        y[..., c] = act(sum over kept slots j of x[..., source(g, j)] * values[j, c]
                        + bias[c])

    Takes the place of `flax.nnx.Linear`. A fresh layer draws the dense kernel, prunes
    it by magnitude and scales the rest by ``sqrt(m / n)``; `from_linear` prunes a
    trained one. The sum, the bias and the activation are float32 (float64 for float64)
    and rounded once.

    Pattern and depth are static, and also part of the name of the indices
    (``indices_8_32_128_4096``), so a checkpoint restores only into a layer of its own
    format. To restore, make the model abstract and give its state to Orbax:

        abstract = nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        model = nnx.merge(graphdef, checkpointer.restore(path, state))

    Args:
      in_features: Depth of the kernel, the last axis of x.
      out_features: Columns of the kernel, the last axis of y.
      pattern: The `jax_nm.Pattern` of the kernel.
      use_bias: Whether to add a bias.
      activation: As for `jax_nm.spmm`: None, 'relu', 'gelu', 'gelu_exact', 'silu' or a
        hashable function.
      dtype: The dtype of the computation; None infers it from x and the parameters.
      param_dtype: The dtype of values and bias.
      precision: As for `jax_nm.spmm`.
      kernel_init: Initialiser of the dense kernel, ``[in_features, out_features]``.
      bias_init: Initialiser of the bias, ``[out_features]``.
      promote_dtype: Casts ``(x, values, bias)`` to one dtype, as for `nnx.Linear`.
      preferred_element_type: The dtype of the result; None means the computation's.
      implementation: As for `jax_nm.spmm`.
      rngs: The random keys.
      kernel_metadata: Metadata of the values, such as their sharding over
        ``(kept, cols)``, which lie as the axes of the dense kernel.
      bias_metadata: Metadata of the bias.

    Attributes:
      values: `nnx.Param`, ``[kept, out_features]``, param_dtype.
      indices: `NMIndices`, uint8 ``[groups, kept]``.
      bias: `nnx.Param`, ``[out_features]``, or None.

    Raises:
      TypeError: If `pattern` is no `Pattern`, `activation` is a module, or param_dtype
        none that `jax_nm.compress` takes.

    >>> import jax.numpy as jnp, jax_nm
    >>> from flax import nnx
    >>> pattern = jax_nm.Pattern(1, 4, vector_length=2)
    >>> layer = NMLinear(8, 4, pattern=pattern, rngs=nnx.Rngs(0))
    >>> layer.values.shape, layer.indices.shape, layer(jnp.ones((3, 8))).shape
    ((2, 4), (2, 2), (3, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        pattern: Pattern,
        use_bias: bool = True,
        activation: str | Callable[[jax.Array], jax.Array] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Callable[..., Any] = default_kernel_init,
        bias_init: Callable[..., Any] = default_bias_init,
        promote_dtype: Callable[..., Any] = default_promote_dtype,
        preferred_element_type: Any = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        check_pattern("NMLinear", pattern)
        _flax.check_activation("NMLinear", activation, nnx.Module)
        kernel = kernel_init(rngs.params(), (in_features, out_features), param_dtype)
        if isinstance(kernel, nnx.VariableMetadata):
            kernel_metadata = {**kernel.metadata, **kernel_metadata}
            kernel = kernel.raw_value
        w = _flax.fresh(kernel, pattern)
        self.values: nnx.Variable[jax.Array] = nnx.Param(w.values, **kernel_metadata)
        name = _flax.index_name(pattern, in_features)
        setattr(self, name, NMIndices(w.indices, format=name))
        self.bias: nnx.Variable[jax.Array] | None
        if use_bias:
            bias = bias_init(rngs.params(), (out_features,), param_dtype)
            self.bias = nnx.Param(bias, **bias_metadata)
        else:
            self.bias = nnx.data(None)

        self.pattern = pattern
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.activation = activation
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self.implementation = implementation

    @classmethod
    def from_linear(
        cls,
        linear: nnx.Linear,
        pattern: Pattern,
        mask: Any = None,
        gram: Any = None,
        *,
        activation: str | Callable[[jax.Array], jax.Array] | None = None,
        implementation: str | None = None,
    ) -> NMLinear:
        """The sparse form of a trained `flax.nnx.Linear`.

        Args:
          linear: The dense layer; a stack of layers, with leading axes on its kernel
            and bias, gives a stack.
          pattern: The pattern to prune to.
          mask: bool ``[in_features, out_features]``, as for `jax_nm.compress`.
          gram: ``[in_features, in_features]``, as for `jax_nm.compress`.
          activation, implementation: As for `NMLinear`.

        Returns:
          A layer with the dtypes, precision, bias and metadata of `linear`.

        Raises:
          TypeError: If an argument has the wrong type.
          ValueError: If shapes disagree, the mask breaks the pattern, or `linear`
            computes with a `dot_general` of its own.

        >>> import jax_nm
        >>> from flax import nnx
        >>> linear = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        >>> NMLinear.from_linear(linear, jax_nm.Pattern(1, 4, vector_length=2)).weight
        NMArray(1:4:2, depth=8, cols=4, values=float32[2, 4], indices=uint8[2, 2])
        """
        if not isinstance(linear, nnx.Linear):
            raise TypeError(
                "NMLinear.from_linear: linear must be a flax.nnx.Linear, got "
                f"{type(linear).__name__}; compress other kernels with jax_nm.compress"
            )
        if linear.dot_general is not jax.lax.dot_general:
            raise ValueError(
                "NMLinear.from_linear: linear must use jax.lax.dot_general, got "
                f"dot_general={linear.dot_general!r}, which a sparse product would "
                "ignore; build the layer without it"
            )
        w = compress(linear.kernel.get_value(), pattern, mask, gram)
        # Abstract: no draw is made for a kernel that is already there.
        layer = nnx.eval_shape(
            lambda: cls(
                linear.in_features,
                linear.out_features,
                pattern=pattern,
                use_bias=False,
                activation=activation,
                dtype=linear.dtype,
                param_dtype=linear.param_dtype,
                precision=linear.precision,
                promote_dtype=linear.promote_dtype,
                preferred_element_type=linear.preferred_element_type,
                implementation=implementation,
                rngs=nnx.Rngs(0),
            )
        )
        layer.values = linear.kernel.copy(w.values)
        layer.indices.set_value(w.indices)
        if linear.bias is not None:
            layer.use_bias = True
            layer.bias = linear.bias.copy()
        return layer

    @property
    def indices(self) -> NMIndices:
        """The indices, whatever their name in the state.

        Raises:
          ValueError: If the layer was given the state of another pattern or depth.
        """
        name = _flax.index_name(self.pattern, self.in_features)
        leaves = [leaf for leaf in vars(self).values() if isinstance(leaf, NMIndices)]
        held = [leaf.get_metadata("format") for leaf in leaves]
        # nnx.merge matches leaves by position and nnx.update adds unknown names: either
        # would have the values of another format read under this one.
        if held != [name]:
            raise ValueError(
                f"NMLinear: a layer of pattern {self.pattern} and depth "
                f"{self.in_features} must hold {name} alone, got {held}: its state "
                "comes from a layer of another format; make the model with the pattern "
                "and in_features of that layer"
            )
        return leaves[0]

    @property
    def weight(self) -> NMArray:
        """The kernel as a `jax_nm.NMArray`; ``weight.todense()`` is the dense one."""
        return self._array(self.values.get_value())

    def __call__(self, x: Any) -> jax.Array:
        """Applies the layer: ``x [..., in_features] -> [..., out_features]``.

        x and the parameters are promoted to one dtype, or cast to `dtype`, as in
        `flax.nnx.Linear`; an integer x becomes floating.

        Raises:
          TypeError: If x is no array, or an option has the wrong type.
          ValueError: If the last axis of x is not in_features, or an option is unknown.
        """
        bias = None if self.bias is None else self.bias.get_value()
        x, values, bias = self.promote_dtype(
            (x, self.values.get_value(), bias), dtype=self.dtype
        )
        return spmm(
            x,
            self._array(values),
            bias,
            activation=self.activation,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            implementation=self.implementation,
        )

    def _array(self, values: Any) -> NMArray:
        return NMArray(
            values,
            self.indices.get_value(),
            self.pattern,
            self.in_features,
            self.out_features,
        )
