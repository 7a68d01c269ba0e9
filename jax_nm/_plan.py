"""`explain`: which kernel a product will run, with which configuration, and why."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_nm import _choice, _cpu, _lowering, _measured, _tuning
from jax_nm._array import NMArray
from jax_nm._lowering import Epilogue
from jax_nm._reference import accumulator
from jax_nm._spmm import Options, check, check_activation, check_bias, is_fused


@dataclasses.dataclass(frozen=True)
class Plan:
    """The choice that the dispatcher makes for one product; printable, comparable.

    Attributes:
      op: 'spmm', 'spmm_t' or 'sddmm'.
      platform: 'cpu', 'cuda', or another JAX platform, which runs plain XLA operations.
      arch: The instruction set or compute capability chosen for, such as 'avx512' or
        'sm_90'.
      problem: The sizes, pattern, dtypes and layouts.
      kernel: The kernel's name; 'dense' for XLA's product with the dense weight or,
        of 'sddmm', of the dense gradient.
      config: Its configuration, as (name, value) pairs.
      why: The reason, in a sentence.
      rejected: (candidate, reason) for what was considered and turned down.
      predicted_us: The estimated time on a GPU, in microseconds, or None.
      dense_us: That of a product by way of a dense matrix, or None.
    """

    op: str
    platform: str
    arch: str
    problem: str
    kernel: str
    config: tuple[tuple[str, Any], ...]
    why: str
    rejected: tuple[tuple[str, str], ...] = ()
    predicted_us: float | None = None
    dense_us: float | None = None

    @property
    def implementation(self) -> str:
        """'dense', or 'sparse' for everything that reads the compressed weight."""
        return "dense" if self.kernel == "dense" else "sparse"

    def __repr__(self) -> str:
        config = ", ".join(f"{name}={value}" for name, value in self.config)
        lines = [
            f"Plan: {self.op} on {self.platform} ({self.arch})",
            f"  problem  {self.problem}",
            f"  kernel   {self.kernel}" + (f" ({config})" if config else ""),
            f"  why      {self.why}",
        ]
        if self.predicted_us is not None and self.dense_us is not None:
            other = f", {self.dense_us:.0f} us by way of a dense matrix"
            lines.append(
                f"  time     {self.predicted_us:.0f} us by estimate"
                + (other if self.implementation == "sparse" else "")
            )
        lines += [f"  not      {name}: {reason}" for name, reason in self.rejected]
        return "\n".join(lines)


def explain(
    x: Any,
    w: NMArray,
    op: str = "spmm",
    arch: int | str | None = None,
    *,
    bias: Any = None,
    activation: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    result_layout: str | None = None,
    implementation: str | None = None,
) -> Plan:
    """The plan for ``spmm(x, w, ...)`` or for one of the products of its gradient.

    Args:
      x: The dense operand of the forward product: an array, a tracer or a
        ``jax.ShapeDtypeStruct`` of shape ``[..., depth]``.
      w: The weight; its leaves may be ``ShapeDtypeStruct`` too.
      op: 'spmm' for the product, 'spmm_t' for its gradient with respect to x, 'sddmm'
        for that with respect to ``w.values``.
      arch: 'cpu', or a CUDA compute capability as 90, 'sm_90' or '9.0', which need not
        be of this machine. By default that of JAX's default device.
      bias, activation, precision, preferred_element_type, result_layout,
        implementation: As for `spmm`.

    Returns:
      A `Plan`; its repr is meant to be read. Where 'sparse' or a kernel was asked for
      and a dense product would be faster, `why` says so.

    Raises:
      TypeError, ValueError: As `spmm`, for an unknown `op` or `arch`, and for a kernel
        that cannot compute the product there.
    """
    if op not in _lowering.OPS:
        raise ValueError(
            f"explain: op must be 'spmm', 'spmm_t' or 'sddmm', got {op!r}; the last "
            "two are the products of the gradient"
        )
    x, w, options = check(
        "explain",
        x,
        w,
        precision,
        preferred_element_type,
        result_layout,
        abstract=True,
        implementation=implementation,
    )
    if op != "spmm":
        spec = options.spec.of_derivatives()
        options = dataclasses.replace(options, spec=spec)
    bias = check_bias("explain", bias, x, w, abstract=True)
    activation = check_activation("explain", activation)
    platform, capability = _target(arch)
    batch, rows = batch_and_rows(x, w)
    epilogue, out_dtype = None, options.result_dtype
    if bias is not None or activation is not None:
        dtype = options.compute_dtype
        fused = is_fused(x, w.values, bias, activation)
        if op == "spmm" and fused and _lowering.fuses(platform, dtype):
            epilogue = Epilogue(bias, activation)
        else:
            out_dtype = accumulator(dtype)
    # Asked about another machine, the plan is that of a build for it.
    here = arch is None
    return _plan(
        op, platform, capability, batch, rows, w, options, out_dtype, epilogue, here
    )


def batch_and_rows(x: Any, w: NMArray) -> tuple[int, Any]:
    batch = math.prod(w.batch_shape)
    if not w.batch_shape:
        return 1, math.prod(x.shape[:-1])
    ndim = len(w.batch_shape)
    lead = x.shape[:-2]
    rows = x.shape[-2] * math.prod(lead[: max(len(lead) - ndim, 0)])
    aligned = (1,) * (ndim - len(lead)) + tuple(lead[max(len(lead) - ndim, 0) :])
    for size, weights in zip(aligned, w.batch_shape, strict=True):
        rows *= size if weights == 1 else 1
    return batch, rows


def default_device() -> jax.Device:
    """The device of this process that products run on unless told otherwise."""
    config: Any = jax.config  # the stubs of jax 0.10 do not name its options
    device = config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return device


def _target(arch: int | str | None) -> tuple[str, int]:
    """('cpu', 0), ('cuda', 90) or another platform."""
    if arch is None:
        device = default_device()
        platform = "cuda" if device.platform == "gpu" else device.platform
        capability = getattr(device, "compute_capability", None)
        if platform == "cuda" and capability is not None:
            return "cuda", int(str(capability).replace(".", ""))
        return platform, 0
    if arch == "cpu":
        return "cpu", 0
    written = str(arch) if isinstance(arch, (int, str)) else ""
    match = re.fullmatch(r"(?:sm_)?(\d{2,3})[af]?|(\d{1,2}\.\d)", written)
    capability = int((match[1] or match[2]).replace(".", "")) if match else 0
    if capability < 80:
        raise ValueError(
            "explain: arch must be 'cpu' or a CUDA compute capability of at least 8.0, "
            f"got {arch!r}; write it as 90, 'sm_90' or '9.0'"
        )
    return "cuda", capability


def _plan(
    op: str,
    platform: str,
    capability: int,
    batch: int,
    rows: Any,
    w: NMArray,
    options: Options,
    out_dtype: np.dtype,
    epilogue: Epilogue | None,
    here: bool,
) -> Plan:
    spec = options.spec
    cols = w.values.shape[-1]
    bias = epilogue is not None and epilogue.bias is not None
    activation = epilogue.activation if epilogue is not None else None
    dtype, result_dtype = kernel_dtypes(op, options, out_dtype)
    layout = options.result_layout if op == "spmm" else None
    name = _choice.kernel_name(spec.implementation)
    if name is not None:
        spec = dataclasses.replace(spec, kernel=_choice.kernel_ids()[name])
    wgmma = True
    if here and platform == "cuda":
        wgmma = _lowering.has_wgmma()
    x_fm, y_fm = _lowering.layouts(
        op,
        platform,
        dtype,
        (batch, rows, cols),
        dataclasses.replace(spec, arch=capability),
        layout,
        wgmma=wgmma,
    )
    problem = (
        f"rows {rows}, depth {spec.depth}, cols {cols}, pattern {spec.pattern}, "
        + (f"batch {batch}, " if w.batch_shape else "")
        + f"{dtype.name} -> {result_dtype.name}, "
        + f"{'feature' if x_fm else 'row'}-major x, "
        + f"{'feature' if y_fm else 'row'}-major y"
        + (", bias" if bias else "")
        + (f", {activation}" if activation else "")
    )
    if 0 in (batch, rows, spec.depth, cols):
        why = "the product is empty: XLA writes zeros and no kernel is called"
        return Plan(op, platform, platform, problem, "zeros", (), why)
    built = _lowering.has_kernel_dtype(platform, dtype)
    cuda = _lowering.cuda_module()
    missing = here and platform == "cuda" and cuda is None
    if name is not None:
        _choice.check_built(name, platform, dtype, built and not missing)
    known = isinstance(rows, int) and isinstance(batch, int)
    compared = platform == "cuda" and built and not missing and known
    if spec.implementation == "dense" and not compared:
        return Plan(op, platform, platform, problem, "dense", (), _ASKED_DENSE)
    if not built:
        why = f"jax_nm has no {platform} kernels for {dtype.name}"
        return Plan(op, platform, platform, problem, "xla_reference", (), why)
    if missing:
        why = (
            "jax_nm was built without its CUDA kernels; reinstall with "
            "JAX_NM_CUDA=ON pip install ."
        )
        return Plan(op, platform, platform, problem, "xla_reference", (), why)
    if not known:
        why = "rows is symbolic: the kernel is chosen at run time from its size"
        arch = f"sm_{capability}" if platform == "cuda" else _cpu.isa()
        return Plan(op, platform, arch, problem, name or "chosen at run time", (), why)
    arguments = _lowering.problem_arguments(
        op,
        dtype,
        result_dtype,
        batch,
        rows + _lowering.row_padding(platform, rows, dtype, x_fm or y_fm),
        cols,
        dataclasses.replace(spec, arch=capability),
        x_fm,
        y_fm,
        activation,
        bias,
    )
    if platform == "cpu":
        choice = _cpu.plan(*arguments[:12])
        return _kernel_plan(op, platform, _cpu.isa(), problem, choice)
    there = dataclasses.replace(spec, arch=capability)
    arguments = _lowering.with_transposed_values(arguments, there, wgmma)
    if arguments[_measured.TRANSPOSED_VALUES]:
        problem += ", transposed values"
    arch = f"sm_{capability}"
    if name is not None:
        _choice.check_kernel(name, arguments, wgmma)
    choice = _tuning.choose(*(*arguments, wgmma))
    if here and spec.implementation is None:
        choice = _with_measurement(choice, arguments, wgmma)
    plan = _kernel_plan(op, platform, arch, problem, choice)
    plan = dataclasses.replace(plan, dense_us=_tuning.dense_us(*arguments))
    if spec.implementation == "dense":
        return _dense_plan(plan, _ASKED_DENSE)
    sizes = (batch, rows)
    if spec.implementation is None and _lowering.dense_pays(
        op, platform, dtype, result_dtype, sizes, cols, there, wgmma
    ):
        why = (
            "by estimate, XLA's dense product and a pass over the dense "
            + ("gradient" if op == "sddmm" else "weight")
            + " take less time than the sparse kernels"
        )
        return _dense_plan(plan, why)
    us, dense_us = plan.predicted_us, plan.dense_us
    slower = us is not None and dense_us is not None and dense_us < us
    if spec.implementation is not None and slower:
        why = f"{plan.why}; a dense product is estimated to be faster, which "
        why += f"implementation={spec.implementation!r} rules out"
        return dataclasses.replace(plan, why=why)
    return plan


def kernel_dtypes(
    op: str, options: Options, out_dtype: np.dtype
) -> tuple[np.dtype, np.dtype]:
    """The dtypes of a kernel's operands and of its result."""
    dtype = options.compute_dtype
    if op != "spmm":
        # Under HIGHEST a cotangent wider than the operands is not narrowed.
        wide = jnp.promote_types(dtype, out_dtype) if options.spec.highest else dtype
        dtype, out_dtype = np.dtype(wide), dtype
    return dtype, dtype if out_dtype == dtype else accumulator(dtype)


def _with_measurement(
    choice: dict[str, Any], arguments: tuple, wgmma: bool
) -> dict[str, Any]:
    """The choice by estimate, or the one that `autotune` has put in its place."""
    entry = _lowering.measured(arguments)
    if entry is None:
        return choice
    kernel = _tuning.kernels(arguments[_measured.OP])[entry.kernel]
    forced = _measured.with_kernel(arguments, kernel, arguments[_measured.ARCH])
    times = dict(entry.us)
    us = f"{times[entry.kernel]:.3g} us"
    others = [(choice["kernel"], choice["why"]), *choice["rejected"]]
    return _tuning.choose(*(*forced, wgmma)) | {
        "why": f"the fastest of {len(times)}, {us}, measured by jax_nm.autotune on "
        f"{entry.date}",
        "rejected": [
            (name, f"measured at {times[name]:.3g} us" if name in times else reason)
            for name, reason in others
            if name != entry.kernel
        ],
    }


_ASKED_DENSE = "asked for by implementation='dense'"


def _kernel_plan(
    op: str, platform: str, arch: str, problem: str, choice: dict[str, Any]
) -> Plan:
    return Plan(
        op,
        platform,
        arch,
        problem,
        choice["kernel"],
        tuple(choice["config"].items()),
        choice["why"],
        tuple((str(name), str(reason)) for name, reason in choice.get("rejected", ())),
        choice.get("predicted_us"),
    )


def _dense_plan(sparse: Plan, why: str) -> Plan:
    """In place of the kernel that would run otherwise."""
    return dataclasses.replace(
        sparse,
        kernel="dense",
        config=(),
        why=why,
        rejected=((sparse.kernel, sparse.why),),
        predicted_us=sparse.dense_us,
    )
