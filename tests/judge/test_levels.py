"""Which memory holds what a site reads and writes."""

import numpy as np

from flopprof.judge.levels import memory_of_sites, working_set_bytes
from flopprof.judge.roofs import site_roofline
from flopprof.tables import ROOFLINES

KIB = 1024


def sites_of(*rows):
    columns = ("op", "kind", "input_shapes", "calls", "min_bytes")
    sites = {name: np.array([row[i] for row in rows], object) for i, name in enumerate(columns)}
    sites["min_bytes"] = sites["min_bytes"].astype(float)
    sites["calls"] = sites["calls"].astype(int)
    sites["dtype"] = np.array(["float32"] * len(rows), object)
    sites["unit"] = np.array(["vector"] * len(rows), object)
    return sites


def roofs_of(**levels):
    """Return the roofs of float32 over levels: name → (byte/s, bytes that it holds)."""
    rows = [
        {
            "dtype": "float32", "unit": "vector", "memory_level": name, "peak_flops_per_s": 1e12,
            "peak_bytes_per_s": rate, "holds_bytes": holds, "kind": "measured", "valid": True,
        }
        for name, (rate, holds) in levels.items()
    ]  # fmt: skip
    return ROOFLINES.from_rows(rows)


CPU = roofs_of(
    DRAM=(10e9, np.nan), L1=(200e9, 48 * KIB), L2=(100e9, 2048 * KIB), L3=(40e9, 32768 * KIB)
)


def test_a_site_is_held_by_the_smallest_cache_that_its_bytes_fit():
    sites = sites_of(
        ("aten::add", "elementwise", "4096, 4096, ", 1, 48 * KIB),  # just fits L1
        ("aten::add", "elementwise", "4097, 4097, ", 1, 48 * KIB + 12),
        ("aten::add", "elementwise", "9, 9, ", 1, 32768 * KIB),
        ("aten::add", "elementwise", "9, 9, ", 1, 32768 * KIB + 1),
        ("aten::add", "elementwise", "9, 9, ", 2, 96 * KIB),  # two calls of 48 KiB
    )

    names, rates = memory_of_sites(sites, CPU)

    assert list(names) == ["L1", "L2", "L3", "DRAM", "L1"]
    assert list(rates) == [200e9, 100e9, 40e9, 10e9, 200e9]
    assert list(site_roofline(sites, CPU).at(0.1).attainable_flops_per_s) == [
        20e9, 10e9, 4e9, 1e9, 20e9,
    ]  # fmt: skip
    assert list(np.unique(site_roofline(sites, CPU, "DRAM").peak_bytes_per_s)) == [10e9]


def test_what_works_in_place_needs_its_operand_once():
    sites = sites_of(
        ("aten::relu_", "elementwise", "1x64x112x112", 1, 2 * 4 * 64 * 112 * 112),
        ("aten::add_", "elementwise", "100x10, 100x10, ", 1, 3 * 4000),
        ("aten::__and__", "elementwise", "100x10, 100x10", 1, 3 * 4000),
    )

    # Read and written: 64·112·112 elements of 4 B once; of three arrays of 4,000 B two.
    assert list(working_set_bytes(sites)) == [4 * 64 * 112 * 112, 8000, 12000]


def test_weights_stay_only_where_those_of_the_whole_call_do():
    # Two layers of 512 × 512 weights, 1 MiB each, that one row goes through; and a product of
    # activations, and a convolution of 3 × 3 × 8 × 8 weights.
    layer = ("aten::linear", "matmul", "1x512, 512x512, 512", 1, 4 * (512 + 512 * 512 + 512 + 512))
    product = ("aten::bmm", "matmul", "8x64x64, 8x64x64", 1, 3 * 4 * 8 * 64 * 64)
    filters = ("aten::conv2d", "convolution", "1x8x32x32, 8x8x3x3, , ", 1, 4 * (2 * 8 * 1024 + 576))

    needed = working_set_bytes(sites_of(layer, layer, product, filters))
    names, _ = memory_of_sites(sites_of(layer, layer, layer, product), CPU)

    # Each layer reads little else than its weights: it needs room for both.
    assert list(needed[:2]) == [2 * 4 * 512 * 512] * 2
    assert needed[2] == 3 * 4 * 8 * 64 * 64
    assert needed[3] == 4 * (2 * 8 * 1024 + 576)  # mostly activations
    assert list(names) == ["L3", "L3", "L3", "L2"]  # 3 MiB of weights are more than L2 holds


def test_a_cache_of_unknown_size_holds_nothing():
    roofs = roofs_of(HBM=(1e12, np.nan), L2=(5e12, np.nan))
    sites = sites_of(("aten::add", "elementwise", "9, 9, ", 1, 108))

    names, rates = memory_of_sites(sites, roofs)

    assert list(names) == ["HBM"]
    assert list(rates) == [1e12]


def test_bytes_that_are_not_known_are_the_main_memorys():
    sites = sites_of(("mylib::op", "unknown", "weird, 3x[4, 5]", 1, np.nan))

    assert list(memory_of_sites(sites, CPU)[0]) == ["DRAM"]
    assert list(memory_of_sites(sites, ROOFLINES.empty())[0]) == [""]
    assert np.isnan(memory_of_sites(sites, ROOFLINES.empty())[1]).all()
