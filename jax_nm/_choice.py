"""The keyword `implementation`: what may be asked for, and when a kernel cannot be had.

    None             the dispatcher decides, for each product
    'sparse'         no product goes by way of a dense matrix
    'dense'          every product does
    a kernel's name  that CUDA kernel computes the product

The first three hold for a product and for all that differentiation makes of it. A name
holds for the one product alone: its derivatives are other operations, or have operands
of other dtypes, and are decided on as with None.
"""

from __future__ import annotations

import functools
from typing import Any

from jax_nm import _tuning

IMPLEMENTATIONS = ("sparse", "dense")


@functools.cache
def kernel_ids() -> dict[str, int]:
    """The CUDA kernels of spmm by name."""
    return dict(_tuning.kernels("spmm"))


@functools.cache
def of_transposed_values() -> frozenset[int]:
    """The ids of those kernels that take values transposed, and no others."""
    ids = kernel_ids().items()
    return frozenset(id for name, id in ids if name.startswith("spmm_tf32_"))


def check_implementation(function: str, implementation: Any) -> str | None:
    """The argument, if it is one of those above."""
    if implementation is None:
        return None
    names = (*IMPLEMENTATIONS, *kernel_ids())
    if isinstance(implementation, str) and implementation in names:
        return implementation
    raise ValueError(
        f"{function}: implementation must be None, 'sparse', 'dense' or the name of a "
        f"CUDA kernel of spmm ({', '.join(map(repr, kernel_ids()))}), got "
        f"{implementation!r}; None leaves the choice to jax_nm"
    )


def kernel_name(implementation: str | None) -> str | None:
    """The kernel that is asked for by its name."""
    return None if implementation in (None, *IMPLEMENTATIONS) else implementation


def of_derivatives(implementation: str | None) -> str | None:
    """What holds for the products that differentiation adds."""
    return implementation if implementation in IMPLEMENTATIONS else None


def check_built(name: str, platform: str | None, dtype: Any, built: bool) -> None:
    """Raises unless products of this platform and dtype can run a CUDA kernel."""
    if platform != "cuda":
        where = platform or "a platform without kernels"
        raise ValueError(
            f"spmm: implementation={name!r} is a CUDA kernel, but the product is "
            f"lowered for {where}; leave implementation at None, or ask for 'sparse' "
            "or 'dense', which every platform has"
        )
    if not built:
        raise ValueError(
            f"spmm: implementation={name!r} needs the CUDA kernels, of which there are "
            f"none for {dtype} in this build; leave implementation at None, cast to "
            "float32, bfloat16 or float16, or reinstall with JAX_NM_CUDA=ON pip "
            "install ."
        )


def check_kernel(name: str, arguments: tuple, wgmma: bool) -> None:
    """Raises unless the kernel can compute a problem, given as `_tuning` takes it."""
    try:
        _tuning.choose(*(*arguments, wgmma))
    except ValueError as error:
        raise ValueError(
            f"spmm: implementation={name!r} cannot compute this product: {error}; "
            "leave implementation at None, or name a kernel that jax_nm.explain lists "
            "as slower"
        ) from None
