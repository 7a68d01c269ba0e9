"""The choice of CUDA kernels, a pure host function: no GPU is needed here."""

from __future__ import annotations

import itertools
import re

import pytest

from jax_nm import _tuning

# What one block may ask for, by compute capability (CUDA programming guide, technical
# specifications per compute capability).
SHARED_BYTES = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
NUM_SMS = {80: 108, 86: 72, 89: 142, 90: 132, 100: 148, 120: 188}
OPS = ("spmm", "spmm_t", "sddmm")
DTYPES = (
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
)
PATTERNS = (
    (16, 32, 32),
    (4, 32, 128),
    (2, 4, 1),
    (1, 4, 4),
    (3, 7, 5),
    (5, 5, 33),
    (1, 256, 1),
    (1, 256, 2**31 - 1),
    (255, 256, 24),
    (256, 256, 1),
    (256, 256, 64),
)
SIZES = (0, 1, 3, 100, 4096)
REASONS = {
    "estimated at",
    "needs at least",
    "gathering needs",
    "needs a device of compute capability 9.0",
    "rounds float32 operands to TF32",
    "needs transposed values",
    "needs a vector_length that is a multiple of",
    "needs a row-major x",
    "needs at most 64 rows",
    "kernel",
}
SKINNY = {k: v for k, v in _tuning.kernels().items() if "skinny" in k}
BULK = {k: v for k, v in SKINNY.items() if "bulk" in k}  # of these those for Hopper
HOPPER = {k: v for k, v in _tuning.kernels().items() if "hopper" in k}
SHORT = {k: v for k, v in _tuning.kernels().items() if "short" in k}
GENERIC = r"(spmm|sddmm)_\d+x\d+_(window|gather)"
SPLIT = {k: v for k, v in _tuning.kernels().items() if "split" in k}
TF32 = {k: v for k, v in _tuning.kernels().items() if "tf32" in k}
FFMA = {k: v for k, v in _tuning.kernels().items() if "ffma" in k}
MMA = {k: v for k, v in _tuning.kernels().items() if "mma" in k}
# What each kernel of spmm_t keeps of a window of 32.
SCATTER_KEPT = {
    "spmm_t_hopper_128": 16,
    "spmm_t_hopper_64": 8,
    "spmm_t_hopper_32": 4,
    "spmm_t_hopper_16": 2,
}
SCATTER_KEPT |= {f"{name}_hi_lo": n for name, n in SCATTER_KEPT.items()}
TRANSPOSED = dict(allow_tf32=True, transposed_values=True, pattern=(8, 32, 128))
HALF = tuple(dtypes for dtypes in DTYPES if dtypes[0] != "float32")


def problem(
    op="spmm",
    dtype="float32",
    result_dtype=None,
    batch=1,
    rows=4096,
    depth=4096,
    cols=4096,
    pattern=(16, 32, 32),
    x_feature_major=True,
    y_feature_major=True,
    kernel=0,
    arch=90,
    allow_tf32=False,
    **epilogue,
):
    return dict(
        op=op,
        dtype=dtype,
        result_dtype=result_dtype or dtype,
        batch=batch,
        rows=rows,
        depth=depth,
        cols=cols,
        n=pattern[0],
        m=pattern[1],
        vector_length=pattern[2],
        x_feature_major=x_feature_major,
        y_feature_major=y_feature_major,
        allow_tf32=allow_tf32,
        kernel=kernel,
        arch=arch,
        **epilogue,
    )


def on_cuda_cores(**spec):
    """The fastest of the kernels of spmm or sddmm that multiply in float32."""
    choices = (
        _tuning.choose(**spec | {"kernel": kernel})
        for name, kernel in _tuning.kernels(spec["op"]).items()
        if name in FFMA or re.fullmatch(GENERIC, name)
    )
    return min(choices, key=lambda choice: choice["predicted_us"])


def blocks(choice, op, batch, rows, depth, cols, pattern):
    """Thread blocks of the launch, from the printed configuration."""
    n, m, _ = pattern
    config = choice["config"]
    if "blocks" in config:  # which walk over the tiles
        return config["blocks"]
    windows = -(-depth // m)
    kept = windows * n
    tiles = {
        "spmm": (-(-rows // config["block_rows"]), -(-cols // config["block_cols"])),
        "spmm_t": (
            -(-rows // config["block_rows"]),
            -(-windows // config["block_windows"]),
        ),
        "sddmm": (-(-kept // config["block_kept"]), -(-cols // config["block_cols"])),
    }[op]
    return batch * tiles[0] * tiles[1] * config["split"]


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("op", OPS)
def test_every_problem_has_a_legal_choice(op, arch):
    for dtypes, pattern, rows, depth, cols in itertools.product(
        DTYPES, PATTERNS, SIZES, (0, 7, 4096), (0, 1, 33, 4096)
    ):
        spec = problem(
            op, *dtypes, rows=rows, depth=depth, cols=cols, pattern=pattern, arch=arch
        )
        choice = _tuning.choose(**spec)
        config = choice["config"]
        assert 0 < config["shared_bytes"] <= SHARED_BYTES[arch], spec
        assert config["threads"] % 32 == 0 and 32 <= config["threads"] <= 1024, spec
        assert config["split"] >= 1 and config["stages"] >= 1, spec
        assert choice["kernel"] in _tuning.kernels(), spec
        assert choice["why"], spec


@pytest.mark.parametrize("op", OPS)
def test_every_layout_and_batch_has_a_choice(op):
    for x_fm, y_fm, batch in itertools.product((False, True), (False, True), (1, 3, 0)):
        choice = _tuning.choose(
            **problem(
                op, batch=batch, x_feature_major=x_fm, y_feature_major=y_fm, rows=40
            )
        )
        assert choice["config"]["split"] >= 1


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize(
    "name, kernel", _tuning.kernels().items(), ids=_tuning.kernels()
)
def test_forced_kernels_are_honoured(name, kernel, arch):
    op = max((op for op in OPS if name.startswith(f"{op}_")), key=len)
    spec = dict(kernel=kernel, arch=arch, allow_tf32=name in MMA)
    if name in SKINNY:
        spec |= dict(dtype="bfloat16", rows=40, x_feature_major=False)
    if name in HOPPER:
        n = SCATTER_KEPT.get(name, 8)
        spec |= dict(dtype="bfloat16", pattern=(n, 32, 256), allow_tf32=True)
    if name in SHORT:
        spec |= dict(dtype="bfloat16", pattern=(8, 32, 32))
    if name in TF32:
        spec |= TRANSPOSED
    if name in {*HOPPER, *SHORT, *BULK, *SPLIT, *TF32} and arch != 90:
        with pytest.raises(ValueError, match=rf"capability 9\.0 .* got sm_{arch}"):
            _tuning.choose(**problem(op, **spec))
    else:
        choice = _tuning.choose(**problem(op, **spec))
        assert choice["kernel"] == name
        assert "asked for" in choice["why"]
    for other in set(OPS) - {op}:
        spec.pop("transposed_values", None)
        with pytest.raises(ValueError, match=rf"computes {op}, not {other}"):
            _tuning.choose(**problem(other, **spec))


def test_forced_kernels_fail_with_the_reason():
    kernels = _tuning.kernels()
    gather = kernels["spmm_128x128_gather"]
    with pytest.raises(ValueError, match="multiple of the thread's 8 columns, got 5"):
        _tuning.choose(**problem(kernel=gather, pattern=(4, 32, 5)))
    window = kernels["spmm_128x128_window"]
    with pytest.raises(ValueError, match="KB of shared memory, sm_86 has 99 KB"):
        _tuning.choose(**problem(kernel=window, pattern=(256, 256, 64), arch=86))
    with pytest.raises(ValueError, match="no CUDA kernel with id 999"):
        _tuning.choose(**problem(kernel=999))


def test_what_no_kernel_takes_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="not float64"):
        _tuning.choose(**problem(dtype="float64"))
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or newer"):
        _tuning.choose(**problem(arch=75))
    with pytest.raises(ValueError, match="at most 1073741824"):
        _tuning.choose(**problem(rows=2**31))
    with pytest.raises(ValueError, match="op must be"):
        _tuning.choose(**problem(op="gemm"))
    with pytest.raises(ValueError, match="1 <= n <= m <= 256"):
        _tuning.choose(**problem(pattern=(5, 4, 1)))


@pytest.mark.parametrize("op", OPS)
def test_every_other_kernel_of_the_operation_is_rejected_with_a_reason(op):
    for pattern in PATTERNS:
        choice = _tuning.choose(**problem(op, pattern=pattern, arch=86))
        names = {name for name, _ in choice["rejected"]} | {choice["kernel"]}
        assert names == {
            name
            for name in _tuning.kernels()
            if name.startswith(f"{op}_")
            and not (op == "spmm" and name.startswith("spmm_t_"))
        }
        for _, reason in choice["rejected"]:
            assert any(reason.startswith(start) for start in REASONS), reason


@pytest.mark.parametrize("arch", (0, 87, 103, 121))
def test_unlisted_archs_take_the_limits_of_an_older_one(arch):
    limit = {0: 90, 87: 86, 103: 100, 121: 120}[arch]
    choice = _tuning.choose(**problem(arch=arch))
    assert choice["config"] == _tuning.choose(**problem(arch=limit))["config"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("rows", (16, 256))
def test_small_problems_fill_the_multiprocessors(op, arch, rows):
    sizes = (rows, 4096, 4096)
    for pattern in ((16, 32, 32), (8, 32, 128), (2, 4, 1)):
        choice = _tuning.choose(
            **problem(op, rows=rows, depth=4096, cols=4096, pattern=pattern, arch=arch)
        )
        assert blocks(choice, op, 1, *sizes, pattern) >= 0.6 * NUM_SMS[arch]


def test_long_thin_reductions_are_split():
    split = {
        "spmm": dict(rows=64, depth=16384, cols=128),
        "spmm_t": dict(rows=64, depth=128, cols=16384),
        "sddmm": dict(rows=16384, depth=128, cols=128),
    }
    for op, sizes in split.items():
        choice = _tuning.choose(**problem(op, **sizes))
        assert choice["config"]["split"] > 1, op
        assert "split" in choice["why"]


@pytest.mark.parametrize("op", OPS)
def test_workspace_is_a_bounded_function_of_shapes(op):
    for rows, depth, cols, batch in itertools.product(
        (0, 1, 64, 4096), (32, 4096, 65536), (1, 128, 8192), (1, 5)
    ):
        sizes = dict(rows=rows, depth=depth, cols=cols, batch=batch)
        size = _tuning.workspace_bytes(**problem(op, **sizes))
        assert 0 <= size <= 32 << 20
        for other in ({"arch": 80}, {"dtype": "bfloat16"}, {"y_feature_major": False}):
            assert size == _tuning.workspace_bytes(**problem(op, **sizes, **other))
        choice = _tuning.choose(**problem(op, **sizes))
        assert choice["workspace_bytes"] == size
        results = {"spmm": rows * cols, "spmm_t": rows * depth}
        elements = batch * results.get(op, -(-depth // 32) * 16 * cols)
        if choice["config"]["split"] > 1:
            assert choice["config"]["split"] * elements * 4 <= size


def test_kernel_ids_are_distinct_and_leave_zero_to_the_automatic_choice():
    ids = list(_tuning.kernels().values())
    assert len(set(ids)) == len(ids) and 0 not in ids


@pytest.mark.parametrize(
    "pattern, kernel",
    (
        ((16, 32, 32), "spmm_128x128_window"),
        ((16, 32, 128), "spmm_128x128_gather"),
        ((8, 32, 32), "spmm_128x128_gather"),
        ((8, 32, 128), "spmm_128x128_gather"),
        ((4, 32, 32), "spmm_128x128_gather"),
        ((4, 32, 128), "spmm_128x128_gather"),
    ),
)
def test_the_choice_agrees_with_what_was_measured(pattern, kernel):
    # Fastest of the generic kernels at 4096^3, float32, on an H200.
    times = {
        name: _tuning.choose(**problem(pattern=pattern, kernel=number))["predicted_us"]
        for name, number in _tuning.kernels("spmm").items()
        if re.fullmatch(GENERIC, name)
    }
    assert min(times, key=times.get) == kernel


@pytest.mark.parametrize("pattern", ((16, 32, 32), (8, 32, 32), (4, 32, 128)))
@pytest.mark.parametrize("rows", (256, 1024, 4096))
def test_two_blocks_of_eight_warps_share_a_multiprocessor(pattern, rows):
    # One block of 8 warps fills half of the issue slots, two of them three quarters.
    config = on_cuda_cores(**problem(rows=rows, pattern=pattern))["config"]
    per_sm = (228 << 10) // (config["shared_bytes"] + 1024)
    launched = (
        blocks({"config": config}, "spmm", 1, rows, 4096, 4096, pattern) / NUM_SMS[90]
    )
    assert min(per_sm, launched) * config["threads"] >= 450


# Fused products.

ACTIVATIONS = ("", "relu", "gelu", "gelu_exact", "silu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", (False, True))
def test_fusing_changes_neither_the_choice_nor_the_workspace(activation, has_bias):
    epilogue = dict(activation=activation, has_bias=has_bias)
    for rows, pattern, arch in itertools.product((8, 256, 4096), PATTERNS, (80, 90)):
        spec = problem(rows=rows, pattern=pattern, arch=arch)
        plain, fused = _tuning.choose(**spec), _tuning.choose(**spec, **epilogue)
        for part in ("kernel", "config", "workspace_bytes"):
            assert fused[part] == plain[part]
        size = _tuning.workspace_bytes(**spec)
        assert _tuning.workspace_bytes(**spec, **epilogue) == size


def test_every_kernel_of_spmm_takes_a_fused_product():
    for name, kernel in _tuning.kernels().items():
        if name.startswith(("spmm_t_", "sddmm_")):
            continue
        make = (
            half
            if name in (*HOPPER, *SHORT)
            else few_rows
            if name in SKINNY
            else problem
        )
        options = TRANSPOSED if name in TF32 else dict(allow_tf32=name in MMA)
        spec = make(kernel=kernel, activation="gelu", has_bias=True, **options)
        assert _tuning.choose(**spec)["kernel"] == name


@pytest.mark.parametrize("op", ("spmm_t", "sddmm"))
@pytest.mark.parametrize("epilogue", ({"activation": "relu"}, {"has_bias": True}))
def test_only_spmm_is_fused(op, epilogue):
    message = f"only spmm has a bias or an activation, got op '{op}'"
    for function in (_tuning.choose, _tuning.workspace_bytes):
        with pytest.raises(ValueError, match=message):
            function(**problem(op, **epilogue))


def test_unknown_activations_are_refused():
    with pytest.raises(
        ValueError, match=r"activation must be '', 'relu', .* got 'tanh'"
    ):
        _tuning.choose(**problem(activation="tanh"))


# The kernels for few rows.


def few_rows(**options):
    layouts = dict(x_feature_major=False, y_feature_major=False)
    return problem(**dict(dtype="bfloat16", rows=16, **layouts) | options)


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
@pytest.mark.parametrize(
    "cols, depth", ((8192, 8192), (28672, 8192), (4096, 14336), (8192, 28672))
)
def test_few_rows_run_on_skinny_kernels(arch, dtype, cols, depth):
    for rows, n, length in itertools.product(
        (1, 8, 9, 16, 17, 32, 33, 64), (16, 8, 4), (16, 32, 128)
    ):
        spec = few_rows(rows=rows, cols=cols, depth=depth, pattern=(n, 32, length))
        choice = _tuning.choose(
            **spec | dict(dtype=dtype, result_dtype=dtype, arch=arch)
        )
        config = choice["config"]
        if dtype == "float32" and SHARED_BYTES[arch] < 100 << 10:
            # On CUDA cores, and with little shared memory, it depends.
            continue
        assert choice["kernel"] in SKINNY, choice
        assert config["shared_bytes"] <= SHARED_BYTES[arch], choice
        assert config["block_kept"] % 16 == 0 and config["threads"] <= 544, choice
        assert choice["kernel"] not in BULK or (arch == 90 and dtype != "float32")
        assert config["cluster"] == 1 or arch >= 90, choice
        assert config["cluster"] == 1 or config["split"] == 1, choice
        shares = config["cluster"] * config["split"]
        assert shares <= -(-depth // 32) * n // config["block_kept"], choice
        tiles = -(-rows // config["block_rows"]) * -(-cols // config["block_cols"])
        # Where memory is slow, fewer blocks than multiprocessors use all of it.
        least = 0.8 if arch == 90 else 0.1
        assert tiles * shares >= least * NUM_SMS[arch], choice
        if arch == 90 and dtype != "float32":
            assert config["block_rows"] >= min(rows, 32), choice


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(x_feature_major=True), "needs a row-major x, .*got a feature-major one"),
        (dict(rows=65), "needs at most 64 rows, got 65"),
        (dict(pattern=(8, 32, 24)), "needs a vector_length that is .* 16 .* got 24"),
        (
            dict(dtype="float32", pattern=(8, 32, 6)),
            "needs a vector_length that is a multiple of 4 .* got 6",
        ),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=0), "needs something to multiply"),
        (dict(cols=0), "needs something to multiply"),
        (dict(batch=0), "needs something to multiply"),
    ),
    ids=str,
)
def test_what_the_skinny_kernels_do_not_take(change, reason):
    spec = few_rows(**change)
    spec["result_dtype"] = spec["dtype"]
    choice = _tuning.choose(**spec)
    either = BULK if spec["x_feature_major"] else {}  # these take x in both layouts
    assert choice["kernel"] not in SKINNY or choice["kernel"] in either
    rejected = dict(choice["rejected"])
    for name, kernel in SKINNY.items():
        if spec["dtype"] == "float32" and (name == "spmm_skinny_64" or name in BULK):
            continue
        if name in either:
            assert _tuning.choose(**spec | {"kernel": kernel})["kernel"] == name
            continue
        assert re.match(reason, rejected[name]), rejected[name]
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": kernel})


def test_float32_has_no_skinny_tile_of_64_rows():
    spec = few_rows(dtype="float32", result_dtype="float32", rows=64)
    with pytest.raises(ValueError, match="needs bfloat16 or float16 operands; float32"):
        _tuning.choose(**spec | {"kernel": SKINNY["spmm_skinny_64"]})
    assert _tuning.choose(**spec)["config"]["block_rows"] <= 32


def test_values_in_bulk_are_for_half_precision_and_code_for_hopper():
    for kernel in BULK.values():
        with pytest.raises(ValueError, match="needs bfloat16 or float16 operands"):
            _tuning.choose(**few_rows(dtype="float32", kernel=kernel))
        with pytest.raises(ValueError, match=r"code for it \(sm_90a\) in this"):
            _tuning.choose(**few_rows(kernel=kernel), wgmma=False)
    assert _tuning.choose(**few_rows(), wgmma=False)["kernel"] not in BULK


@pytest.mark.parametrize(
    "cols, n, rows, fm, bulk, microseconds",
    (
        (8192, 16, 1, False, True, 22.6),
        (8192, 16, 16, True, True, 23.9),
        (8192, 16, 32, True, True, 27.9),
        (28672, 16, 1, False, True, 62.0),
        (28672, 16, 16, True, True, 66.0),
        (28672, 16, 32, True, True, 65.7),
        (28672, 16, 64, True, True, 104.1),
        (28672, 8, 16, True, True, 36.6),
        (28672, 8, 32, True, True, 45.8),
        (8192, 4, 1, False, False, 10.6),
        (8192, 4, 16, False, False, 15.0),
    ),
)
def test_the_choice_for_few_rows_and_its_time_are_those_measured(
    cols, n, rows, fm, bulk, microseconds
):
    # On an H200 in bfloat16 at depth 8192, L = 32, the kernel alone.
    spec = few_rows(rows=rows, cols=cols, depth=8192, pattern=(n, 32, 32))
    choice = _tuning.choose(**spec | {"x_feature_major": fm})
    assert (choice["kernel"] in BULK) == bulk
    assert choice["predicted_us"] == pytest.approx(microseconds, rel=0.2)


def test_a_long_reduction_fills_the_stages_of_a_ring_again():
    # What the thousand launches of tests/test_ops.py run.
    for kernel in BULK.values():
        spec = few_rows(rows=64, depth=24000, cols=200, pattern=(16, 32, 32))
        config = _tuning.choose(**spec | {"kernel": kernel})["config"]
        shares = config["cluster"] * config["split"]
        assert 12000 // config["block_kept"] // shares > config["stages"], config


def test_windows_that_do_not_fit_go_to_the_generic_kernels():
    # Sixteen slots touch 16 windows of 256 features: 512 KB of 64 rows.
    spec = few_rows(rows=64, pattern=(1, 256, 32), arch=86)
    choice = _tuning.choose(**spec)
    reasons = dict(choice["rejected"]) | {choice["kernel"]: choice["why"]}
    assert "KB of shared memory, sm_86 has 99 KB" in reasons["spmm_skinny_64"]


# The kernels for Hopper's tensor cores.


def half(op="spmm", **options):
    return problem(op, **{"dtype": "bfloat16", "pattern": (8, 32, 256)} | options)


def hopper_kernels(op):
    return {name: k for name, k in HOPPER.items() if name.startswith(f"{op}_hopper")}


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_half_precision_runs_on_the_tensor_cores_of_hopper(arch):
    for dtypes, length, rows, depth, cols, batch, y_fm in itertools.product(
        HALF,
        (64, 128, 192, 256, 320, 2**31 - 1),
        (72, 136, 1000, 4096),
        (1, 200, 1024),
        (8, 392, 4096),
        (1, 3),
        (False, True),
    ):
        spec = problem(
            "spmm",
            *dtypes,
            batch=batch,
            rows=rows,
            depth=depth,
            cols=cols,
            pattern=(8, 32, length),
            y_feature_major=y_fm,
            arch=arch,
        )
        choice = _tuning.choose(**spec)
        config = choice["config"]
        assert (choice["kernel"] in HOPPER) == (arch == 90), spec
        if arch != 90:
            continue
        tiles = blocks(choice, "spmm", batch, rows, depth, cols, (8, 32, length))
        cluster, sharing = config["cluster"], config["shared_tiles"]
        if sharing:
            # Whole rounds before them, and every block of a cluster has a step.
            assert 2 <= cluster <= 4 and config["blocks"] % cluster == 0, spec
            assert (tiles - sharing) % config["blocks"] == 0, spec
            assert depth * 8 // 32 >= cluster * config["block_kept"], spec
            assert config["blocks"] <= min(tiles * cluster, NUM_SMS[90]), spec
        else:
            assert cluster == 1, spec
            assert config["blocks"] == min(tiles, NUM_SMS[90]), spec
        assert 1 <= config["raster_cols"] <= -(-cols // config["block_cols"]), spec
        # The columns that a tile gathers for lie in one group.
        width = config["block_cols"] // config["groups_in_tile"]
        assert length >= cols or length % width == 0, spec
        assert config["shared_bytes"] <= SHARED_BYTES[90], spec
        assert config["split"] == 1 and config["stages"] >= 3, spec


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="float32"), "needs bfloat16 or float16 operands"),
        (dict(arch=80), "needs a device of compute capability 9.0 .* got sm_80"),
        (dict(arch=100), "needs a device of compute capability 9.0 .* got sm_100"),
        (dict(x_feature_major=False), "needs a feature-major x"),
        (dict(rows=4097), "needs rows to be a multiple of 8, .* got 4097"),
        (dict(cols=4100), "needs the length of a row of values to be a multiple of 8"),
        (
            dict(cols=4100, padded_values=True, y_feature_major=False),
            "needs a row-major result to have rows of whole 16 bytes, got 4100 columns",
        ),
        (
            dict(pattern=(8, 32, 96)),
            "needs a vector_length that is a multiple of (64|128|256) or spans all "
            "columns, got 96",
        ),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=0), "needs something to multiply"),
        (dict(cols=0), "needs something to multiply"),
        (dict(batch=0), "needs something to multiply"),
        (dict(rows=1 << 29, depth=1 << 29), "needs dimensions that tensor maps"),
        (dict(rows=1 << 28, cols=1 << 28, depth=1), "needs dimensions that tensor"),
    ),
    ids=str,
)
def test_what_the_hopper_kernels_do_not_take_goes_to_the_generic_ones(change, reason):
    choice = _tuning.choose(**half(**change))
    assert choice["kernel"] not in HOPPER
    rejected = dict(choice["rejected"])
    for name, kernel in hopper_kernels("spmm").items():
        assert re.match(reason, rejected[name]), rejected[name]
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**half(**change, kernel=kernel))


@pytest.mark.parametrize("op", ("spmm", "sddmm"))
@pytest.mark.parametrize("num_sms", (1, 2, 3, 16, 78, 114, 132))
def test_launches_of_hopper_kernels_fit_the_card(num_sms, op):
    for (dtype, result_dtype), rows, depth, cols, batch, n in itertools.product(
        HALF, (8, 520, 4096), (40, 4096), (72, 4096), (1, 3), (4, 16)
    ):
        spec = half(
            op,
            rows=rows,
            depth=depth,
            cols=cols,
            batch=batch,
            pattern=(n, 32, 128),
            dtype=dtype,
            result_dtype=result_dtype,
        )
        # Rows of the result's tiles, and the length of the reduction.
        valid_kept = depth // 32 * n + min(n, depth % 32)
        axis, extent, depth_axis, reduction = {
            "spmm": ("block_rows", rows, "block_kept", valid_kept),
            "sddmm": ("block_kept", -(-depth // 32) * n, "block_rows", rows),
        }[op]
        for kernel in hopper_kernels(op).values():
            spec["kernel"] = kernel
            config = _tuning.choose(**spec, num_sms=num_sms)["config"]
            tiles = batch * -(-extent // config[axis]) * -(-cols // 128)
            cluster, sharing = config["cluster"], config["shared_tiles"]
            assert 1 <= config["blocks"] <= num_sms, spec
            assert config["blocks"] % cluster == 0, spec
            if cluster == 1:
                assert sharing == 0, spec
                assert config["blocks"] == min(tiles, num_sms), spec
            else:
                assert 0 < sharing < config["blocks"] or sharing == tiles, spec
                assert (tiles - sharing) % config["blocks"] == 0, spec
                # The blocks of a cluster wait for each other: each has a step.
                assert -(-reduction // config[depth_axis]) >= cluster, spec


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="float32"), "rounds float32 operands to TF32, which HIGHEST"),
        (dict(x_feature_major=False), "needs a feature-major x"),
        (dict(y_feature_major=False), "needs a feature-major dy"),
        (dict(rows=4097), "needs rows to be a multiple of 8, .* got 4097"),
        (
            dict(rows=4098, dtype="float32", allow_tf32=True),
            "needs rows to be a multiple of 4, .* got 4098",
        ),
        (dict(cols=4100), "needs a row-major result to have rows of whole 16 bytes"),
        (dict(pattern=(8, 32, 96)), r"needs a vector_length that is .* got 96"),
        (dict(rows=0), "needs something to multiply"),
    ),
    ids=str,
)
def test_what_the_hopper_kernels_of_sddmm_do_not_take(change, reason):
    choice = _tuning.choose(**half("sddmm", **change))
    assert choice["kernel"] not in HOPPER
    rejected = dict(choice["rejected"])
    for name, kernel in hopper_kernels("sddmm").items():
        assert re.match(reason, rejected[name]), rejected[name]
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**half("sddmm", **change, kernel=kernel))


@pytest.mark.parametrize("name", ("spmm_t_hopper_64", "spmm_t_hopper_64_hi_lo"))
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("highest", (False, True))
@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(pattern=(24, 32, 256)), "needs {pattern}, got 24:32"),
        (dict(pattern=(24, 96, 256)), "needs {pattern}, got 24:96"),
        (dict(pattern=(1, 1, 256)), "needs {pattern}, got 1:1"),
        (dict(y_feature_major=False), "needs a feature-major dy"),
        (dict(pattern=(8, 32, 96)), "needs a vector_length that is a multiple of 64"),
        (dict(cols=4100), "needs the length of a row of values to be a multiple of 8"),
    ),
    ids=str,
)
def test_what_the_hopper_kernels_of_spmm_t_do_not_take(
    change, reason, highest, dtype, name
):
    one_part = "n to divide 16, m to divide 256 and n / m to be 64 / 256"
    two_parts = "m to divide 64 and at most 16 slots for as many features"
    reason = reason.format(pattern=two_parts if name.endswith("_hi_lo") else one_part)
    spec = half("spmm_t", dtype=dtype, allow_tf32=not highest, **change)
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in HOPPER
    if name.endswith("_hi_lo") or (dtype == "bfloat16" and not highest):
        assert re.match(reason, dict(choice["rejected"])[name])
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": _tuning.kernels()[name]})


@pytest.mark.parametrize(
    "dtype, highest, reason",
    (
        ("bfloat16", False, "estimated at"),
        ("bfloat16", True, "rounds partial sums to bfloat16, which HIGHEST rules out"),
        ("float16", False, "needs bfloat16 operands"),
        ("float16", True, "needs bfloat16 operands"),
    ),
)
@pytest.mark.parametrize("result", ("half", "float32"))
@pytest.mark.parametrize("pattern", ((16, 32), (1, 2), (8, 32), (2, 8), (1, 16)))
def test_spmm_t_in_half_precision_runs_on_tensor_cores(
    pattern, result, dtype, highest, reason
):
    """With a partial sum in one part where it may be rounded to bfloat16."""
    spec = half("spmm_t", dtype=dtype, pattern=(*pattern, 256), allow_tf32=not highest)
    spec["result_dtype"] = dtype if result == "half" else result
    choice = _tuning.choose(**spec)
    n, m = pattern
    one = f"spmm_t_hopper_{256 * n // m}"
    two = f"{one}_hi_lo"
    first, second = (one, two) if reason == "estimated at" else (two, one)
    assert choice["kernel"] == first, choice
    assert choice["config"]["block_windows"] == 256 // m
    assert re.match(reason, dict(choice["rejected"])[second])
    assert not _tuning.dense_pays(**spec)
    if reason != "estimated at":
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": _tuning.kernels()[one]})


@pytest.mark.parametrize(
    "pattern, slots",
    (
        ((12, 32), 128),
        ((3, 8), 128),
        ((7, 16), 128),
        ((3, 16), 64),
        ((3, 32), 32),
        ((5, 64), 32),
        ((3, 64), 16),
        ((1, 256), 16),
    ),
)
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_blocks_of_spmm_t_may_hold_fewer_slots_in_two_parts(dtype, pattern, slots):
    n, m = pattern
    spec = half("spmm_t", dtype=dtype, pattern=(n, m, 256), allow_tf32=True)
    choice = _tuning.choose(**spec)
    assert choice["kernel"] == f"spmm_t_hopper_{slots}_hi_lo"
    assert choice["config"]["block_windows"] == 256 // m
    assert choice["config"]["block_kept"] == slots >= 256 // m * n
    assert not _tuning.dense_pays(**spec)


@pytest.mark.parametrize("n, slots", ((16, 128), (8, 64), (4, 32), (2, 16)))
@pytest.mark.parametrize("length", (64, 128, 256))
def test_a_second_part_costs_a_scatter_in_each_group(n, slots, length):
    def microseconds(name):
        kernel = _tuning.kernels()[name]
        pattern = (n, 32, length)
        spec = half("spmm_t", pattern=pattern, allow_tf32=True, kernel=kernel)
        return _tuning.choose(**spec)["predicted_us"]

    one = microseconds(f"spmm_t_hopper_{slots}")
    two = microseconds(f"spmm_t_hopper_{slots}_hi_lo")
    # 4 tiles after one another, and 256 cycles of tensor cores for a scatter.
    scatter = 4 * 4096 / length * 256 / 1755
    assert one < two < one + 1.2 * scatter


@pytest.mark.parametrize("dtype, lines", (("bfloat16", 64), ("float32", 32)))
@pytest.mark.parametrize("length", (64, 128, 256, 2**31 - 1))
@pytest.mark.parametrize("rows, depth, cols", ((72, 40, 72), (4096, 4096, 4096)))
def test_sddmm_runs_on_tensor_cores(rows, depth, cols, length, dtype, lines):
    sizes = dict(rows=rows, depth=depth, cols=cols, pattern=(8, 32, length))
    spec = half("sddmm", dtype=dtype, allow_tf32=True, **sizes)
    choice = _tuning.choose(**spec)
    assert choice["kernel"] in hopper_kernels("sddmm"), choice
    assert choice["config"]["block_rows"] == lines


@pytest.mark.parametrize("n", (16, 8, 4))
def test_sddmm_in_tf32_does_not_go_by_way_of_dense(n):
    spec = half("sddmm", dtype="float32", pattern=(n, 32, 128), allow_tf32=True)
    assert not _tuning.dense_pays(**spec)


def test_a_build_without_code_for_sm_90a_has_no_hopper_kernels():
    for op in ("spmm", "sddmm"):
        choice = _tuning.choose(**half(op), wgmma=False)
        assert choice["kernel"] == _tuning.choose(**half(op, arch=100))["kernel"]
        for kernel in hopper_kernels(op).values():
            with pytest.raises(ValueError, match=r"code for it \(sm_90a\) in this"):
                _tuning.choose(**half(op, kernel=kernel), wgmma=False)


@pytest.mark.parametrize("length", (128, 256))
@pytest.mark.parametrize("n", (16, 8, 4))
@pytest.mark.parametrize(
    "rows, cols, depth",
    ((8192, 8192, 8192), (4096, 4096, 4096), (4096, 12288, 4096), (1024, 4096, 4096)),
)
def test_the_hopper_tile_agrees_with_what_was_measured(rows, cols, depth, n, length):
    # The fastest tile on an H200 in bfloat16, or within 1 % of it: 4:32 at
    # 1024,4096,4096, L = 256.
    choice = _tuning.choose(
        **half(rows=rows, cols=cols, depth=depth, pattern=(n, 32, length))
    )
    assert choice["kernel"] == "spmm_hopper_256x128"


@pytest.mark.parametrize(
    "rows, cols, depth, n, block_rows, cluster",
    (
        (64, 4096, 4096, 4, 64, 1),
        (64, 4096, 4096, 16, 64, 3),
        (256, 2048, 2048, 4, 64, 1),
        (256, 2048, 8192, 16, 64, 2),
        (256, 4096, 11008, 16, 128, 2),
        (256, 5120, 5120, 16, 128, 1),
        (512, 2048, 8192, 16, 128, 2),
        (512, 17920, 6656, 16, 256, 2),
        (1024, 2048, 2048, 4, 128, 1),
    ),
)
def test_few_tiles_are_small_or_shared(rows, cols, depth, n, block_rows, cluster):
    # The fastest of all tiles and clusters on an H200, in bfloat16.
    choice = _tuning.choose(
        **half(rows=rows, cols=cols, depth=depth, pattern=(n, 32, 256))
    )
    config = choice["config"]
    assert (config["block_rows"], config["cluster"]) == (block_rows, cluster), choice
    assert ("shared by" in choice["why"]) == (cluster > 1)


# Tensor cores of a warp.


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("length", (8, 16, 24, 32, 48, 64, 128, 4096))
def test_vectors_of_whole_eights_run_on_tensor_cores(arch, dtypes, length):
    pattern = (8, 32, length)
    spec = problem(
        dtype=dtypes[0],
        result_dtype=dtypes[1],
        pattern=pattern,
        arch=arch,
        allow_tf32=True,
    )
    choice = _tuning.choose(**spec)
    half = dtypes[0] != "float32"
    wgmma = arch == 90 and half and length % 64 == 0
    family = HOPPER if wgmma else SHORT if arch == 90 and half else MMA
    assert choice["kernel"] in family, choice
    if not wgmma:
        config = choice["config"]
        widest = 64 if config["block_cols"] == 128 else 32
        assert config["group_cols"] == max(
            g for g in (8, 16, 32, 64) if length % g == 0 and g <= widest
        )


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(allow_tf32=False), "rounds float32 operands to TF32, which HIGHEST"),
        (
            dict(x_feature_major=False),
            "needs a feature-major x, .* got a row-major one",
        ),
        (dict(rows=4097), "needs rows of whole 16 bytes, got 4097 of them"),
        (dict(cols=4098), "needs rows of values of whole 16 bytes, got 4098 columns"),
        (dict(pattern=(8, 32, 12)), "a multiple of (8|32) or spans .* got 12"),
        (dict(dtype="bfloat16", rows=4100), "got 4100 of them"),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=2**30, depth=8, cols=8, pattern=(2, 8, 32)), "less than 4 GB each"),
    ),
)
def test_what_tensor_cores_of_a_warp_do_not_take(change, reason):
    spec = problem(**{"allow_tf32": True, "pattern": (8, 32, 32), **change})
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in MMA
    reasons = [why for name, why in choice["rejected"] if name in MMA]
    assert reasons and all(re.search(reason, why) for why in reasons), reasons
    with pytest.raises(ValueError, match=reason):
        _tuning.choose(**spec | {"kernel": MMA["spmm_mma_64x64_window"]})


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="float32"), "needs bfloat16 or float16 operands"),
        (dict(x_feature_major=False), "needs a feature-major x, got a row-major one"),
        (dict(rows=4100), "needs rows to be a multiple of 8, .* got 4100"),
        (dict(cols=4100), "row of values to be a multiple of 8, .* got 4100"),
        (dict(cols=4100, padded_values=True), "rows of whole 16 bytes, got 4100"),
        (dict(pattern=(8, 32, 12)), "a multiple of 8 or spans .* got 12"),
        (dict(pattern=(1, 32, 32)), "at most 256 features .* got 1:32"),
        (dict(pattern=(256, 256, 32)), "at most .* 128 slots, .* got 256:256"),
        (dict(depth=0), "needs something to multiply"),
    ),
)
def test_what_the_kernel_for_short_vectors_does_not_take(change, reason):
    spec = half(**{"pattern": (8, 32, 32), "y_feature_major": False, **change})
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in SHORT
    reasons = [why for name, why in choice["rejected"] if name in SHORT]
    assert reasons and all(re.search(reason, why) for why in reasons), reasons


@pytest.mark.parametrize("n", (16, 12, 8, 4))
@pytest.mark.parametrize("length", (8, 16, 32))
def test_short_vectors_fit_the_ring(n, length):
    choice = _tuning.choose(**half(pattern=(n, 32, length), rows=8192, cols=8192))
    config = choice["config"]
    assert choice["kernel"] in SHORT, choice
    assert config["stages"] >= 3 and config["shared_bytes"] <= 227 * 1024
    assert config["block_kept"] % 16 == 0 and config["group_cols"] == length


def test_padded_values_reach_the_tensor_cores_of_a_warp():
    spec = problem(cols=4098, padded_values=True, allow_tf32=True)
    assert _tuning.choose(**spec)["kernel"] in MMA


@pytest.mark.parametrize(
    "dtype, pattern, kernel, microseconds",
    (
        ("bfloat16", (16, 32, 32), "spmm_mma_128x128_window", 242),
        ("bfloat16", (8, 32, 32), "spmm_mma_128x128_gather", 175),
        ("bfloat16", (4, 32, 32), "spmm_mma_128x128_gather", 101),
        ("float32", (16, 32, 128), "spmm_mma_128x128_gather", 432),
        ("float32", (8, 32, 128), "spmm_mma_128x128_gather", 236),
        ("float32", (4, 32, 128), "spmm_mma_128x128_gather", 138),
    ),
)
def test_the_choice_and_its_time_are_those_measured(
    dtype, pattern, kernel, microseconds
):
    # On an H200 at 4096^3, the kernel alone, without the one for short vectors.
    spec = problem(dtype=dtype, pattern=pattern, allow_tf32=True)
    choice = _tuning.choose(**spec)
    if choice["kernel"] in SHORT:
        assert choice["predicted_us"] < microseconds
        choice = _tuning.choose(**spec | {"kernel": MMA[kernel]})
    assert choice["kernel"] == kernel
    assert choice["predicted_us"] == pytest.approx(microseconds, rel=0.15)


# Warps that copy and warps that multiply, in float32 on CUDA cores.


@pytest.mark.parametrize("rows", (1024, 4096))
@pytest.mark.parametrize("length", (32, 64, 128))
@pytest.mark.parametrize("n", (16, 12, 8, 4))
def test_float32_goes_to_warps_that_copy_and_warps_that_multiply(rows, length, n):
    choice = on_cuda_cores(**problem(rows=rows, pattern=(n, 32, length)))
    assert choice["kernel"] in FFMA
    config = choice["config"]
    # Two blocks share a multiprocessor.
    assert (228 << 10) // (config["shared_bytes"] + 1024) >= 2
    # An H200 multiplies at most 60 TFLOP/s at the clocks it runs at.
    flops = 2 * rows * 4096 * 4096 * n / 32
    assert 0.5 < flops / choice["predicted_us"] * 1e-6 / 60 < 1


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="bfloat16"), "multiplies in float32, got operands in half"),
        (
            dict(x_feature_major=False),
            "needs a feature-major x, .* got a row-major one",
        ),
        (dict(rows=4097), "needs rows of whole 16 bytes, got 4097 of them"),
        (dict(cols=4098), "needs rows of values of whole 16 bytes, got 4098 columns"),
        (dict(pattern=(8, 32, 16)), "a multiple of 32 or spans all columns, got 16"),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=2**30, depth=8, cols=8, pattern=(2, 8, 32)), "less than 4 GB each"),
    ),
)
def test_what_warps_that_multiply_in_float32_do_not_take(change, reason):
    spec = problem(**{"pattern": (8, 32, 32), **change})
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in FFMA
    reasons = [why for name, why in choice["rejected"] if name in FFMA]
    assert reasons and all(re.search(reason, why) for why in reasons), reasons
    for kernel in FFMA.values():
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": kernel})


# Float32 by products in bfloat16, on the tensor cores of Hopper.


@pytest.mark.parametrize("rows", (256, 1024, 4096))
@pytest.mark.parametrize("length", (32, 64, 128, 4096))
@pytest.mark.parametrize("n", (16, 12, 8, 4))
def test_true_float32_is_split_on_hopper(rows, length, n):
    spec = problem(rows=rows, pattern=(n, 32, length))
    choice = _tuning.choose(**spec)
    config = choice["config"]
    assert choice["kernel"] in SPLIT, choice
    assert config["stages"] >= 2 and config["shared_bytes"] <= 227 * 1024
    assert config["block_kept"] % 16 == 0 and config["group_cols"] == 32
    assert config["cluster"] == 1 or config["shared_tiles"] > 0
    assert choice["predicted_us"] < on_cuda_cores(**spec)["predicted_us"]
    assert not _tuning.dense_pays(**spec)
    # Where there is code for it, and only there.
    assert _tuning.choose(**spec, wgmma=False)["kernel"] not in SPLIT
    with pytest.raises(ValueError, match=r"code for it \(sm_90a\) in this"):
        kernel = SPLIT["spmm_split_64x256"]
        _tuning.choose(**spec | {"kernel": kernel}, wgmma=False)


@pytest.mark.parametrize(
    "rows, cols, depth, n, length, slots, cluster, microseconds",
    (
        (4096, 4096, 4096, 16, 32, 64, 1, 1213),
        (4096, 4096, 4096, 12, 32, 48, 1, 925),
        (4096, 4096, 4096, 8, 32, 32, 1, 632),
        (4096, 4096, 4096, 4, 32, 32, 1, 333),
        (4096, 4096, 4096, 4, 16, 32, 1, 418),
        (4096, 4096, 4096, 4, 8, 32, 1, 657),
        (4096, 4096, 4096, 16, 128, 64, 1, 1242),
        (1024, 4096, 4096, 8, 32, 32, 1, 160),
        (512, 5120, 5120, 16, 32, 64, 2, 289),
        (512, 5120, 5120, 4, 32, 32, 2, 83),
        (256, 4096, 4096, 16, 32, 64, 2, 84),
        (256, 4096, 4096, 12, 32, 48, 2, 64),
        (256, 4096, 4096, 4, 32, 32, 2, 28),
        (256, 2048, 2048, 16, 32, 32, 3, 34.3),
        (256, 2048, 2048, 4, 32, 32, 3, 16.3),
        (4096, 22016, 8192, 16, 32, 64, 1, 12914),
        (4096, 22016, 8192, 4, 32, 32, 1, 3487),
    ),
)
def test_the_steps_of_split_float32_and_its_time_are_those_measured(
    rows, cols, depth, n, length, slots, cluster, microseconds
):
    # On an H200, the kernel alone; no other steps and clusters were 4 % faster.
    spec = problem(rows=rows, cols=cols, depth=depth, pattern=(n, 32, length))
    choice = _tuning.choose(**spec | {"kernel": SPLIT["spmm_split_64x256"]})
    config = choice["config"]
    assert (config["block_kept"], config["cluster"]) == (slots, cluster), choice
    assert choice["predicted_us"] == pytest.approx(microseconds, rel=0.06)


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="bfloat16"), "splits float32, got operands in half precision"),
        (dict(x_feature_major=False), "needs a feature-major x, got a row-major one"),
        (dict(rows=4097), "needs rows of whole 16 bytes, got 4097 of them"),
        (dict(cols=4098), "needs rows of values of whole 16 bytes, got 4098 columns"),
        (dict(pattern=(8, 32, 12)), "a multiple of 8 or spans all columns, got 12"),
        (dict(pattern=(1, 32, 32)), "at most 256 features .* got 1:32"),
        (dict(pattern=(128, 256, 32)), "at most .* 64 slots, .* got 128:256"),
        (dict(pattern=(64, 256, 32)), "two steps fit in shared memory, got 64:256"),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=2**30, depth=8, cols=8), "dimensions that tensor maps"),
    ),
)
def test_what_the_kernel_that_splits_float32_does_not_take(change, reason):
    spec = problem(**{"pattern": (8, 32, 32), **change})
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in SPLIT
    reasons = [why for name, why in choice["rejected"] if name in SPLIT]
    assert reasons and all(re.search(reason, why) for why in reasons), reasons
    with pytest.raises(ValueError, match=reason):
        _tuning.choose(**spec | {"kernel": SPLIT["spmm_split_64x256"]})


def test_split_float32_takes_padded_values_and_any_result():
    for change in (dict(cols=4097, padded_values=True), dict(y_feature_major=False)):
        for tf32 in (False, True):
            kernel = SPLIT["spmm_split_64x256"]
            spec = problem(kernel=kernel, allow_tf32=tf32, **change)
            assert _tuning.choose(**spec)["kernel"] in SPLIT


@pytest.mark.parametrize("rows", (256, 1024, 4096))
@pytest.mark.parametrize("length", (32, 64, 128, 4096))
@pytest.mark.parametrize("n", (16, 12, 8, 4))
def test_the_gradient_of_values_in_true_float32_is_split_on_hopper(rows, length, n):
    spec = problem("sddmm", rows=rows, pattern=(n, 32, length))
    choice = _tuning.choose(**spec)
    config = choice["config"]
    assert choice["kernel"] in SPLIT, choice
    assert config["stages"] >= 2 and config["shared_bytes"] <= 227 * 1024
    assert config["group_cols"] == 32
    assert config["cluster"] == 1 or config["shared_tiles"] > 0
    assert choice["predicted_us"] < on_cuda_cores(**spec)["predicted_us"]
    assert not _tuning.dense_pays(**spec)
    # TF32 is faster where its groups are wide enough, and less accurate.
    tf32 = _tuning.choose(**spec | {"allow_tf32": True})["kernel"]
    assert tf32 in (SPLIT if length < 64 else HOPPER)
    # Where there is code for it, and only there.
    assert _tuning.choose(**spec, wgmma=False)["kernel"] not in SPLIT
    for name in ("sddmm_split_64x256", "sddmm_split_32x256"):
        with pytest.raises(ValueError, match=r"code for it \(sm_90a\) in this"):
            _tuning.choose(**spec | {"kernel": SPLIT[name]}, wgmma=False)


@pytest.mark.parametrize(
    "rows, cols, depth, n, length, slots, cluster, microseconds",
    (
        (4096, 4096, 4096, 24, 32, 64, 1, 1625),
        (4096, 4096, 4096, 16, 32, 64, 1, 1085),
        (4096, 4096, 4096, 12, 32, 64, 1, 848),
        (4096, 4096, 4096, 8, 32, 64, 1, 552),
        (4096, 4096, 4096, 4, 32, 64, 1, 282),
        (4096, 4096, 4096, 2, 32, 32, 1, 169),
        (4096, 4096, 4096, 16, 8, 64, 1, 2326),
        (4096, 4096, 4096, 4, 8, 64, 1, 568),
        (4096, 4096, 4096, 16, 128, 64, 1, 1168),
        (1024, 4096, 4096, 16, 32, 64, 1, 296),
        (1024, 4096, 4096, 4, 32, 64, 1, 76.5),
        (4096, 12288, 4096, 16, 32, 64, 1, 3267),
        (4096, 12288, 4096, 4, 32, 64, 1, 874),
        (2048, 2048, 2048, 16, 32, 64, 1, 152),
        (2048, 2048, 2048, 8, 32, 64, 2, 76.1),
        (2048, 2048, 2048, 4, 32, 32, 2, 45.3),
        (512, 5120, 5120, 8, 32, 64, 2, 136),
        (256, 4096, 4096, 8, 32, 64, 1, 47.9),
    ),
)
def test_the_tile_of_split_sddmm_and_its_time_are_those_measured(
    rows, cols, depth, n, length, slots, cluster, microseconds
):
    # The fastest of both tiles and all clusters on an H200, the kernel alone.
    choice = _tuning.choose(
        **problem("sddmm", rows=rows, cols=cols, depth=depth, pattern=(n, 32, length))
    )
    config = choice["config"]
    assert choice["kernel"] == f"sddmm_split_{slots}x256"
    assert (config["block_kept"], config["cluster"]) == (slots, cluster), choice
    assert choice["predicted_us"] == pytest.approx(microseconds, rel=0.07)


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(dtype="bfloat16"), "splits float32, got operands in half precision"),
        (dict(x_feature_major=False), "needs a feature-major x, got a row-major one"),
        (dict(y_feature_major=False), "needs a feature-major dy, got a row-major one"),
        (dict(rows=4097), "needs rows of whole 16 bytes, got 4097 of them"),
        (dict(pattern=(8, 32, 12)), "a multiple of 8 or spans all columns, got 12"),
        (dict(pattern=(1, 32, 32)), r"two stages fit .* got (1024|2048) features"),
        (dict(pattern=(4, 256, 32)), r"two stages fit .* got (2048|4096) features"),
        (dict(depth=0), "needs something to multiply"),
        (dict(batch=0), "needs something to multiply"),
        (dict(rows=2**30, depth=8, cols=8), "dimensions that tensor maps"),
    ),
)
def test_what_the_kernels_of_sddmm_that_split_float32_do_not_take(change, reason):
    spec = problem("sddmm", **{"pattern": (8, 32, 32), **change})
    choice = _tuning.choose(**spec)
    assert choice["kernel"] not in SPLIT
    rejected = dict(choice["rejected"])
    for name in ("sddmm_split_64x256", "sddmm_split_32x256"):
        assert re.search(reason, rejected[name]), rejected[name]
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": SPLIT[name]})


def test_split_sddmm_takes_any_number_of_columns_and_slots():
    for change in (dict(cols=4097), dict(depth=4099), dict(pattern=(5, 12, 40))):
        for name in ("sddmm_split_64x256", "sddmm_split_32x256"):
            spec = problem("sddmm", kernel=SPLIT[name], **change)
            assert _tuning.choose(**spec)["kernel"] == name


@pytest.mark.parametrize("num_sms", (1, 2, 3, 16, 78, 114, 132))
def test_launches_of_split_sddmm_fit_the_card(num_sms):
    for rows, depth, cols, batch, n in itertools.product(
        (8, 520, 4096), (40, 4096), (72, 4096), (1, 3), (4, 5, 16)
    ):
        sizes = dict(rows=rows, depth=depth, cols=cols, batch=batch)
        spec = problem("sddmm", pattern=(n, 32, 32), **sizes)
        for name in ("sddmm_split_64x256", "sddmm_split_32x256"):
            spec["kernel"] = SPLIT[name]
            config = _tuning.choose(**spec, num_sms=num_sms)["config"]
            kept = -(-depth // 32) * n
            tiles = batch * -(-kept // config["block_kept"]) * -(-cols // 256)
            cluster, sharing = config["cluster"], config["shared_tiles"]
            assert 1 <= config["blocks"] <= num_sms, spec
            assert config["blocks"] % cluster == 0, spec
            if cluster == 1:
                assert sharing == 0, spec
                assert config["blocks"] == min(tiles, num_sms), spec
            else:
                assert 0 < sharing < config["blocks"] or sharing == tiles, spec
                assert (tiles - sharing) % config["blocks"] == 0, spec
                # The blocks of a cluster wait for each other: each has a step.
                assert -(-rows // 32) >= cluster, spec


# Float32 in TF32 on Hopper, with transposed values.


@pytest.mark.parametrize("rows", (512, 1024, 4096))
@pytest.mark.parametrize("length", (128, 256, 4096))
@pytest.mark.parametrize("n", (16, 12, 8, 4))
def test_tf32_has_its_values_transposed_on_hopper(rows, length, n):
    spec = problem(rows=rows, pattern=(n, 32, length), allow_tf32=True)
    plain = _tuning.choose(**spec)
    choice = _tuning.choose(**spec, transposed_values=True)
    config = choice["config"]
    assert plain["kernel"] not in TF32
    assert choice["kernel"] in TF32, choice
    assert config["stages"] >= 4 and config["shared_bytes"] <= 227 * 1024
    assert config["cluster"] == 1 or config["shared_tiles"] > 0
    assert config["cluster"] == 1 or rows < 1024
    assert choice["predicted_us"] < plain["predicted_us"]
    assert _tuning.transposed_values_pay(**spec)
    assert _tuning.transposed_values_pay(**spec, transposed_values=True)
    assert not _tuning.dense_pays(**spec, transposed_values=True)
    # Where there is code for it, and only there.
    assert not _tuning.transposed_values_pay(**spec, wgmma=False)
    assert not _tuning.transposed_values_pay(**spec | {"arch": 100})
    with pytest.raises(ValueError, match="needs values that are not transposed"):
        _tuning.choose(**spec, transposed_values=True, wgmma=False)
    for kernel in TF32.values():
        with pytest.raises(ValueError, match=r"code for it \(sm_90a\) in this"):
            forced = spec | {"kernel": kernel, "transposed_values": True}
            _tuning.choose(**forced, wgmma=False)


@pytest.mark.parametrize(
    "rows, cols, depth, n, length, microseconds",
    (
        (4096, 4096, 4096, 16, 128, 201.4),
        (4096, 4096, 4096, 8, 128, 115.5),
        (4096, 4096, 4096, 4, 128, 72.3),
        (4096, 4096, 4096, 16, 64, 312.1),
        (4096, 4096, 4096, 4, 64, 95.9),
        (1024, 4096, 4096, 16, 128, 52.0),
        (1024, 4096, 4096, 4, 128, 20.2),
        (4096, 12288, 4096, 8, 128, 375.5),
        (2048, 8192, 8192, 16, 128, 437.6),
        (512, 5120, 5120, 4, 128, 20.6),
        (256, 4096, 4096, 16, 128, 23.4),
    ),
)
def test_the_time_in_tf32_is_the_one_measured(
    rows, cols, depth, n, length, microseconds
):
    # On an H200, the fastest kernel alone. Clocks fall with the length of a launch.
    spec = problem(rows=rows, cols=cols, depth=depth, pattern=(n, 32, length))
    spec |= dict(allow_tf32=True, transposed_values=True)
    choice = _tuning.choose(**spec)
    transpose = 3 + 8 * depth // 32 * n * cols / 2.9e6
    predicted = choice["predicted_us"] - transpose
    assert predicted == pytest.approx(microseconds, rel=0.2)


@pytest.mark.parametrize(
    "change, reason",
    (
        (dict(transposed_values=False), "needs transposed values"),
        (dict(dtype="bfloat16"), "needs float32 operands"),
        (dict(allow_tf32=False), "to TF32, which HIGHEST rules out"),
        (dict(x_feature_major=False), "needs a feature-major x, got a row-major one"),
        (dict(rows=4098), "rows to be a multiple of 4, .* got 4098"),
        (dict(cols=4097, y_feature_major=False), "rows of whole 16 bytes, got 4097"),
        (dict(pattern=(8, 32, 32)), "a multiple of (64|128) or spans all .* got 32"),
        (dict(depth=0), "needs something to multiply"),
        (dict(rows=2**29 + 4, depth=8, cols=8), "dimensions that tensor maps"),
    ),
)
def test_what_the_kernels_in_tf32_do_not_take(change, reason):
    spec = problem(**TRANSPOSED | change)
    assert not spec["transposed_values"] or not _tuning.transposed_values_pay(**spec)
    for kernel in TF32.values():
        with pytest.raises(ValueError, match=reason):
            _tuning.choose(**spec | {"kernel": kernel})


def test_the_kernels_in_tf32_take_odd_sizes_and_any_result():
    for change in (
        dict(cols=4097),
        dict(depth=4111),
        dict(pattern=(3, 7, 128)),
        dict(y_feature_major=False),
    ):
        for name, kernel in TF32.items():
            spec = problem(kernel=kernel, **TRANSPOSED | change)
            assert _tuning.choose(**spec)["kernel"] == name
            # Whoever asks for the kernel is given transposed values.
            assert _tuning.transposed_values_pay(**spec)


def test_no_other_kernel_takes_transposed_values():
    for name, kernel in _tuning.kernels("spmm").items():
        if name in TF32:
            continue
        for dtype in ("float32", "bfloat16"):
            spec = problem(kernel=kernel, dtype=dtype, **TRANSPOSED)
            with pytest.raises(ValueError, match="needs values that are not transp"):
                _tuning.choose(**spec)
            assert not _tuning.transposed_values_pay(**spec)
    for op in ("spmm_t", "sddmm"):
        with pytest.raises(ValueError, match="only spmm takes transposed values"):
            _tuning.choose(**problem(op, **TRANSPOSED))
    with pytest.raises(ValueError, match="only spmm takes transposed values, and no"):
        _tuning.choose(**problem(padded_values=True, **TRANSPOSED))


@pytest.mark.parametrize(
    "change",
    (
        dict(op="sddmm"),
        dict(op="spmm_t"),
        dict(dtype="bfloat16"),
        dict(allow_tf32=False),
        dict(pattern=(8, 32, 32)),
        dict(arch=80),
        dict(rows=72),  # where values take longer to transpose than to multiply
    ),
)
def test_values_stay_as_they_are(change):
    spec = problem(**dict(allow_tf32=True, pattern=(8, 32, 128)) | change)
    assert not _tuning.transposed_values_pay(**spec)


def test_the_estimate_counts_the_transpose():
    spec = problem(**TRANSPOSED)
    sparse_us, dense_us = (
        _tuning.choose(**spec)["predicted_us"],
        _tuning.dense_us(**spec),
    )
    assert _tuning.dense_pays(**spec) == (dense_us < sparse_us)
    # kept x cols, read and written, in 23 us at 16:32 and a launch
    half = _tuning.choose(**problem(**TRANSPOSED | {"pattern": (16, 32, 128)}))
    assert half["predicted_us"] - sparse_us > 11


# Dense or sparse, for the forward product.

WGMMA = [(n, 32, length) for n in (16, 8, 4) for length in (64, 128, 256)]


@pytest.mark.parametrize("pattern", ((16, 32, 32), (8, 32, 32), (8, 32, 128)))
def test_tf32_goes_by_way_of_dense_and_true_float32_does_not(pattern):
    # On an H200 at 4096^3, L = 32, the sparse kernels run at 0.20, 0.35 and 0.66 times
    # the speed of the dense product with TF32 at 16:32, 8:32 and 4:32, and at 1.4, 2.5
    # and 4.8 times without. A kernel for TF32 may change the first half of this.
    spec = problem(pattern=pattern, allow_tf32=True)
    choice = _tuning.choose(**spec)
    generic = re.fullmatch(GENERIC, choice["kernel"])
    assert _tuning.dense_pays(**spec) or not generic
    assert not _tuning.dense_pays(**problem(pattern=pattern))


def test_the_generic_kernels_lose_to_tf32():
    for n, ratio in ((16, 0.20), (8, 0.35), (4, 0.66)):
        kernel = _tuning.kernels()["spmm_128x128_gather"]
        spec = problem(pattern=(n, 32, 32), kernel=kernel, allow_tf32=True)
        sparse_us = _tuning.choose(**spec)["predicted_us"]
        # The estimate may be better than what was measured, but not the winner.
        assert 0.9 * ratio <= _tuning.dense_us(**spec) / sparse_us < 1


@pytest.mark.parametrize("pattern", WGMMA)
@pytest.mark.parametrize(
    "rows, cols, depth",
    ((256, 4096, 4096), (1024, 4096, 4096), (4096, 4096, 4096), (8192, 8192, 8192)),
)
def test_wgmma_stays_sparse(rows, cols, depth, pattern):
    spec = half(rows=rows, cols=cols, depth=depth, pattern=pattern, allow_tf32=True)
    assert not _tuning.dense_pays(**spec)
    assert _tuning.choose(**spec)["predicted_us"] < _tuning.dense_us(**spec)


@pytest.mark.parametrize("arch", (80, 86, 89, 90, 100, 120))
@pytest.mark.parametrize("pattern", ((16, 32, 128), (16, 32, 32)))
def test_half_precision_on_cuda_cores_goes_by_way_of_dense(arch, pattern):
    spec = half(pattern=pattern, arch=arch, allow_tf32=True)
    choice = _tuning.choose(**spec)
    generic = re.fullmatch(GENERIC, choice["kernel"])
    if arch == 90 and pattern == (16, 32, 128):
        assert not generic
    # A tensor-core kernel may change this, and then has to be the faster one.
    assert _tuning.dense_pays(**spec) or (
        not generic and choice["predicted_us"] <= _tuning.dense_us(**spec)
    )


@pytest.mark.parametrize("op", OPS)
def test_dense_pays_where_its_estimate_is_the_lower_one(op):
    for rows, dtype, arch, pattern, tf32 in itertools.product(
        (16, 256, 4096), ("float32", "bfloat16"), (80, 90), PATTERNS[:4], (True, False)
    ):
        spec = problem(
            op, dtype, rows=rows, pattern=pattern, arch=arch, allow_tf32=tf32
        )
        sparse_us = _tuning.choose(**spec)["predicted_us"]
        assert sparse_us > 0
        assert _tuning.dense_pays(**spec) == (_tuning.dense_us(**spec) < sparse_us)


# XLA's dense product on an H200: rows, cols, depth and microseconds.
DENSE_US = {
    "bfloat16": (
        (8192, 8192, 8192, 1410),
        (4096, 4096, 4096, 172),
        (256, 8192, 22016, 126),
        (512, 11008, 4096, 66),
        (512, 8192, 8192, 87),
        (1024, 12288, 4096, 130),
        (1024, 6656, 17920, 327),
        (2048, 6656, 6656, 235),
        (2048, 5632, 2048, 64),
        (4096, 22016, 8192, 1800),
        (64, 28672, 8192, 110),
        (16, 8192, 8192, 33),
        (256, 2048, 2048, 6.4),
        (572, 4512, 4336, 44),
        (1566, 19248, 5072, 450),
    ),
    "float32": (
        (4096, 4096, 4096, 342),
        (1024, 4096, 4096, 127),
        (8192, 8192, 8192, 2694),
        (4096, 12288, 4096, 1031),
    ),
}


@pytest.mark.parametrize("dtype", DENSE_US)
def test_the_estimate_of_dense_follows_what_was_measured(dtype):
    for rows, cols, depth, microseconds in DENSE_US[dtype]:
        # The product in float32 alone: what expands and rounds comes on top.
        sizes = dict(rows=rows, cols=cols, depth=depth, allow_tf32=True)
        change = dict(dtype=dtype, result_dtype="float32", pattern=(16, 32, 32))
        predicted = _tuning.dense_us(**problem(**sizes, **change))
        element = 4 if dtype == "float32" else 2
        expand = 1.5 * depth * cols * element / (0.85 * 4.2e6) + 3 + 6400 / 1755
        close = pytest.approx(microseconds, rel=0.16)
        assert predicted - expand == close, sizes


def test_the_estimate_of_dense_without_tf32():
    # cuBLAS on an H200: 51 TFLOP/s on CUDA cores.
    microseconds = 2 * 4096**3 / 51e6
    predicted = _tuning.dense_us(**problem(pattern=(8, 32, 128)))
    assert predicted == pytest.approx(microseconds, rel=0.05)


@pytest.mark.parametrize("op", OPS)
def test_the_estimate_of_dense_counts_the_pass_and_the_rounding(op):
    spec = dict(dtype="bfloat16", depth=8192, cols=8192, allow_tf32=True)
    some, all_kept = (
        _tuning.dense_us(**problem(op, pattern=(n, 32, 32), **spec)) for n in (8, 32)
    )
    # 24 of 32 rows of values more, at no more than the bandwidth.
    assert all_kept - some > 0.75 * 2 * 8192**2 / 4.8e6
    wide, rounded = (
        _tuning.dense_us(
            **problem(op, pattern=(8, 32, 32), result_dtype=result, **spec)
        )
        for result in ("float32", "bfloat16")
    )
    assert (rounded > wide) == (op != "sddmm")


def test_few_rows_are_bound_by_the_weight():
    # At 4.2 TB/s the dense weight is read once, and before that written by a pass.
    spec = dict(dtype="bfloat16", depth=8192, cols=8192, pattern=(8, 32, 128))
    one, many = (_tuning.dense_us(**problem(rows=rows, **spec)) for rows in (1, 64))
    assert one > (1 + 1.25) * 2 * 8192 * 8192 / 4.2e6
    assert one == pytest.approx(many, rel=0.03)


def test_kernels_of_an_operation():
    names = _tuning.kernels()
    assert names == {k: v for op in OPS for k, v in _tuning.kernels(op).items()}
    for op in OPS:
        for name, kernel in _tuning.kernels(op).items():
            assert name.startswith(f"{op}_")
            assert names[name] == kernel
    with pytest.raises(ValueError, match="op must be"):
        _tuning.kernels("gemm")


@pytest.mark.parametrize("dtypes", HALF, ids=str)
def test_few_rows_are_transposed_where_that_pays(dtypes):
    """A tile of 64 rows multiplies them as fast as the values arrive."""

    def us(rows, length, fm, **options):
        return _tuning.few_rows_us(
            **problem(
                "spmm",
                *dtypes,
                rows=rows,
                depth=8192,
                cols=28672,
                pattern=(16, 32, length),
                x_feature_major=fm,
                arch=90,
                **options,
            )
        )

    assert us(64, 128, True) < us(64, 128, False)
    assert us(8, 32, False) < us(8, 32, True)
    # What the copy in front costs is in it, and no kernel at all is infinitely slow.
    spec = problem(
        "spmm", *dtypes, rows=64, depth=8192, cols=28672, pattern=(16, 32, 128), arch=90
    )
    assert us(64, 128, True) > _tuning.choose(**spec)["predicted_us"] + 2
    hopper = _tuning.kernels()["spmm_hopper_64x128"]
    assert us(64, 128, False, kernel=hopper) == float("inf")
