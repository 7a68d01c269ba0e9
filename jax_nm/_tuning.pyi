"""The choice of CUDA kernels, cuda/tuning_module.cc: pure host code, no CUDA needed."""

from typing import Any

def choose(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
    wgmma: bool = True,
    num_sms: int = 0,
) -> dict[str, Any]:
    """What runs for this problem: {"kernel", "config", "why", "rejected",
    "predicted_us", "workspace_bytes"}.

    `activation` is '' or the name of one that is fused; `wgmma` says whether a device
    of compute capability 9.0 finds code for sm_90a; `num_sms` = 0 is a typical card's.
    """

def workspace_bytes(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
) -> int:
    """Bytes of scratch memory that the call is given."""

def few_rows_us(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
    wgmma: bool = True,
) -> float:
    """The estimated time in microseconds of a product with few rows, with a transpose
    of x in front if x is feature-major; infinite if no kernel computes it."""

def dense_pays(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
    wgmma: bool = True,
) -> bool:
    """Whether the product is faster by way of a dense matrix."""

def transposed_values_pay(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
    wgmma: bool = True,
) -> bool:
    """Whether values had better be transposed in front of the product: for a kernel
    that needs them so, if it is asked for or faster with the transpose than those that
    need none. Whether they are in this problem does not matter."""

def dense_us(
    op: str,
    dtype: str,
    result_dtype: str,
    batch: int,
    rows: int,
    depth: int,
    cols: int,
    n: int,
    m: int,
    vector_length: int,
    x_feature_major: bool,
    y_feature_major: bool,
    allow_tf32: bool,
    kernel: int,
    arch: int,
    activation: str = "",
    has_bias: bool = False,
    padded_values: bool = False,
    transposed_values: bool = False,
) -> float:
    """The estimated time in microseconds by way of a dense matrix."""

def kernels(op: str = "") -> dict[str, int]:
    """The id of each CUDA kernel by its name: of one operation, or of all."""
