"""The console script `jax-nm`: info, bench, layer, demo."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

import jax

import jax_nm
from jax_nm import _bench, _cpu, _demo, _lowering, _tuning
from jax_nm._bench import layer as _layer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="jax-nm", description="N:M-sparse matrix multiplication for JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser(
        "info", help="versions, devices, and which kernels are built and will run"
    )
    info.set_defaults(run=_info)
    bench = commands.add_parser(
        "bench", help="time sparse against dense on this machine"
    )
    _bench.add_arguments(bench)
    bench.set_defaults(run=_bench.run)
    layer = commands.add_parser(
        "layer", help="time a decoder layer of a Llama, dense and sparse"
    )
    _layer.add_arguments(layer)
    layer.set_defaults(run=_layer.run)
    demo = commands.add_parser(
        "demo", help="prune a trained sentence encoder and encode real text"
    )
    _demo.add_arguments(demo)
    demo.set_defaults(run=_demo.run)
    args = parser.parse_args(argv)
    return args.run(args)


def _info(args: argparse.Namespace) -> int:
    del args
    print(f"jax_nm   {jax_nm.__version__}")
    for name in ("jax", "jaxlib", "numpy"):
        print(f"{name:9}{importlib.metadata.version(name)}")
    print(f"python   {sys.version.split()[0]}")
    for device in jax.local_devices():
        capability = getattr(device, "compute_capability", None)
        detail = f", compute capability {capability}" if capability else ""
        print(f"device   {device.platform}: {device.device_kind}{detail}")
    built = ", ".join(_cpu.built_isas())
    print(f"cpu      kernels for {built} are built; {_cpu.isa()} will run")
    cuda = _lowering.cuda_module()
    if cuda is None:
        print("cuda     kernels are not built; JAX_NM_CUDA=ON pip install . adds them")
    else:
        archs = ", ".join(f"sm_{arch}" for arch in cuda.built_archs())
        print(f"cuda     kernels are built for {archs}")
    print(f"         the tuning function knows {', '.join(_tuning.kernels())}")
    x = jax.ShapeDtypeStruct((1024, 4096), "float32")
    w = jax.eval_shape(
        lambda kernel: jax_nm.compress(kernel, jax_nm.Pattern(8, 32)),
        jax.ShapeDtypeStruct((4096, 4096), "float32"),
    )
    for op in ("spmm", "spmm_t", "sddmm"):
        print(jax_nm.explain(x, w, op=op))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
