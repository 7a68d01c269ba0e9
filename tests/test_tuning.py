"""The choice of CUDA kernels, a pure host function: no GPU is needed here."""

from __future__ import annotations

import itertools

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
    "kernel",
}


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
        allow_tf32=False,
        kernel=kernel,
        arch=arch,
    )


def blocks(choice, op, batch, rows, depth, cols, pattern):
    """Thread blocks of the launch, from the printed configuration."""
    n, m, _ = pattern
    config = choice["config"]
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
    choice = _tuning.choose(**problem(op, kernel=kernel, arch=arch))
    assert choice["kernel"] == name
    assert "asked for" in choice["why"]
    for other in set(OPS) - {op}:
        with pytest.raises(ValueError, match=rf"computes {op}, not {other}"):
            _tuning.choose(**problem(other, kernel=kernel, arch=arch))


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
    # Fastest of the 128 x 128 and smaller kernels at 4096^3, float32, on an H200.
    assert _tuning.choose(**problem(pattern=pattern))["kernel"] == kernel


@pytest.mark.parametrize("pattern", ((16, 32, 32), (8, 32, 32), (4, 32, 128)))
@pytest.mark.parametrize("rows", (256, 1024, 4096))
def test_two_blocks_of_eight_warps_share_a_multiprocessor(pattern, rows):
    # One block of 8 warps fills half of the issue slots, two of them three quarters.
    config = _tuning.choose(**problem(rows=rows, pattern=pattern))["config"]
    per_sm = (228 << 10) // (config["shared_bytes"] + 1024)
    launched = (
        blocks({"config": config}, "spmm", 1, rows, 4096, 4096, pattern) / NUM_SMS[90]
    )
    assert min(per_sm, launched) * config["threads"] >= 450
