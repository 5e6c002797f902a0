"""Figures by name, each against a calculation by hand."""

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import flopprof
from flopprof.capture.call import Inputs
from flopprof.capture.describe import count_samples, count_tokens
from flopprof.jobfacts import Rank, TraceFacts
from flopprof.provenance import TraceProvenance
from flopprof.report.figures import Figures, figures
from flopprof.run import Run
from flopprof.tables import KERNELS, ROOFLINES, SITES
from tests.builders import called, make_run

ROOF = {
    "dtype": "float32",
    "unit": "tensor",
    "memory_level": "DRAM",
    "peak_flops_per_s": 1e9,
    "peak_bytes_per_s": 1e8,
    "kind": "measured",
    "source": "by hand",
    "valid": True,
}
PRODUCT = {
    "site_id": 0,
    "op": "aten::mm",
    "phase": "forward",
    "dtype": "float32",
    "calls": 1,
    "kind": "matmul",
    "flops": 40_000.0,
    "matmul_flops": 40_000.0,
    "vector_flops": 0.0,
    "min_bytes": 1_000.0,
    "time_us": 60.0,
    "attainable_flops_per_s": 1e9,
    "bound": "compute",
    "verdict": "agrees",
}
COPY = {
    "site_id": 1,
    "op": "aten::copy_",
    "phase": "forward",
    "dtype": "float32",
    "calls": 1,
    "kind": "free",
    "flops": 0.0,
    "matmul_flops": 0.0,
    "vector_flops": 0.0,
    "min_bytes": 1_000.0,
    "time_us": 20.0,
    "bound": "",
    "verdict": "free",
}


def run_of(*sites: dict[str, Any], overhead_us: float = 20.0, **of_call: Any) -> Run:
    """Return a run of 100 µs with these sites under a roof of 1 GFLOP/s and 100 MB/s."""
    run = make_run(list(sites), wall_us={"median": 100.0})
    provenance = called(run)
    timing = msgspec.structs.replace(provenance.timing, host_overhead_us=overhead_us)
    call = msgspec.structs.replace(provenance.called, **of_call)
    provenance = msgspec.structs.replace(provenance, timing=timing, called=call)
    return run.replaced(provenance=provenance, rooflines=ROOFLINES.from_rows([ROOF]))


def test_rates_are_over_the_wall_time_of_a_bare_call():
    result = figures(run_of(PRODUCT, COPY, samples=4, tokens=64))

    # 100 µs a call: 4 samples are 40,000 a second, 64 tokens 640,000.
    assert result.samples_per_s == pytest.approx(40_000)
    assert result.tokens_per_s == pytest.approx(640_000)
    assert result.flops_per_sample == 10_000
    assert result.flops_per_token == 625
    assert result.achieved_bytes_per_s == pytest.approx(2e7)  # 2,000 B / 100 µs


def test_utilisation_is_over_the_ceilings():
    result = figures(run_of(PRODUCT, COPY))

    assert result.mfu_frac == pytest.approx(0.4)  # 4e8 of 1e9 FLOP/s
    assert result.hfu_frac == pytest.approx(0.4)
    assert result.mbu_frac == pytest.approx(0.2)  # 2e7 of 1e8 B/s


def job_of(*ranks: Rank) -> Run:
    """Return a trace of two products of 60 µs by ranks whose spans are 100 µs and 140 µs."""
    run = run_of(PRODUCT, PRODUCT | {"site_id": 1})
    provenance = TraceProvenance(
        source=run.provenance.source,
        called=run.provenance.called,
        device=run.provenance.device,
        environment=run.provenance.environment,
        trace=TraceFacts(files=("rank0.json", "rank1.json"), span_us=240.0),
        ranks=ranks,
    )
    return run.replaced(provenance=provenance)


@pytest.mark.parametrize("faulty", [(), (Rank(rank=2, file="rank2.json", fault="damaged"),)])
def test_a_jobs_utilisation_is_over_the_time_of_the_ranks_that_were_read(faulty):
    read = [Rank(rank=n, file=f"rank{n}.json") for n in (0, 1)]

    result = figures(job_of(*read, *faulty))

    # 80,000 FLOPs in the 240 µs of both ranks: 3.33e8 of 1e9 FLOP/s.
    assert result.mfu_frac == pytest.approx(1 / 3)
    # At the roof the products need 40 µs each: 80 µs, by two ranks beside each other.
    assert result.attainable_wall_us == pytest.approx(40)


def test_what_is_computed_again_is_in_hfu_alone():
    again = PRODUCT | {"site_id": 2, "phase": "recompute", "matmul_flops": 10_000.0}

    result = figures(run_of(PRODUCT, again))

    assert result.mfu_frac == pytest.approx(0.4)
    assert result.hfu_frac == pytest.approx(0.5)  # 50,000 FLOPs / 100 µs of 1e9


def test_vector_work_is_no_model_flops_utilisation():
    vector = PRODUCT | {"matmul_flops": 0.0, "vector_flops": 40_000.0}

    assert figures(run_of(vector)).mfu_frac == 0


def test_each_bound_holds_its_share_of_the_time():
    result = figures(run_of(PRODUCT, COPY, overhead_us=20.0))

    # 60 µs at the compute roof, 20 µs without a roof, 20 µs between ops: 100 µs in all.
    assert result.overhead_frac == pytest.approx(0.2)
    assert result.held_frac == pytest.approx(
        {"compute": 0.6, "memory": 0.0, "overhead": 0.2, "unknown": 0.2}
    )
    assert sum(result.held_frac.values()) == pytest.approx(1)


def test_at_its_roofs_a_call_takes_what_flops_and_bytes_need():
    # The product: 40,000 FLOPs at 1e9 are 40 µs. The copy: 1,000 B at 1e8 are 10 µs.
    assert figures(run_of(PRODUCT, COPY)).attainable_wall_us == pytest.approx(50)


def test_what_is_unknown_keeps_its_time_and_what_is_above_its_roof_does_not_get_slower():
    unknown = COPY | {"flops": math.nan, "min_bytes": math.nan, "time_us": 7.0}
    above = PRODUCT | {"time_us": 30.0}

    # 30 µs measured where the roof would take 40; 7 µs of which nothing is known.
    assert figures(run_of(above, unknown)).attainable_wall_us == pytest.approx(37)


def test_without_a_ceiling_nothing_is_said_of_it():
    run = make_run([PRODUCT | {"attainable_flops_per_s": math.nan}], wall_us={"median": 100.0})

    result = figures(run)

    assert math.isnan(result.mfu_frac)
    assert math.isnan(result.mbu_frac)
    assert math.isnan(result.attainable_wall_us)


def test_a_ceiling_that_is_not_valid_is_none():
    run = run_of(PRODUCT)
    run = run.replaced(rooflines=ROOFLINES.from_rows([ROOF | {"valid": False}]))

    assert math.isnan(figures(run).mfu_frac)


def test_a_device_that_idles_is_overhead():
    kernel = {
        "kernel_id": 0,
        "kernel": "gemm",
        "kind": "compute",
        "op_id": 0,
        "start_us": 0.0,
        "duration_us": 30.0,
    }
    run = run_of(PRODUCT | {"time_us": 30.0})
    provenance = called(run)
    timing = msgspec.structs.replace(provenance.timing, device_busy_us=30.0)
    provenance = msgspec.structs.replace(provenance, timing=timing)
    run = run.replaced(provenance=provenance, kernels=KERNELS.from_rows([kernel]))

    result = figures(run)

    assert result.overhead_frac == pytest.approx(0.7)  # busy 30 µs of 100
    assert result.launches == 1
    assert result.held_frac["compute"] == pytest.approx(0.3)


def test_a_count_has_no_rates_and_no_times():
    result = flopprof.count_flops(nn.Linear(64, 32), (8, 64)).run.figures

    # 2·8·64·32 matmul and 8·32 vector FLOPs over 8 examples.
    assert result.flops_per_sample == 2 * 64 * 32 + 32
    names = [name for name in Figures.__struct_fields__ if name.endswith(("_per_s", "_us"))]
    assert all(math.isnan(getattr(result, name)) for name in names)
    assert result.held_frac == {}


def inputs(*args: Any, **kwargs: Any) -> Inputs:
    return Inputs(args, kwargs)


IMAGES = torch.zeros(4, 3, 8, 8)
IDS = torch.zeros(2, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "given", "samples"),
    [
        (nn.Conv2d(3, 4, 3), inputs(IMAGES), 4),
        (nn.Linear(8, 4), inputs(torch.zeros(8)), None),  # one example, or eight?
        (nn.LSTM(8, 4), inputs(torch.zeros(5, 2, 8)), 2),  # [length, batch, width]
        (nn.LSTM(8, 4, batch_first=True), inputs(torch.zeros(5, 2, 8)), 5),
        (nn.Bilinear(3, 4, 5), inputs(torch.zeros(6, 3), torch.zeros(6, 4)), 6),
        (nn.Linear(8, 4), inputs(torch.zeros(2, 8), torch.zeros(3, 8)), None),  # they differ
        (nn.Linear(8, 4), inputs(torch.zeros(2, 8), mask=torch.zeros(3)), 2),
        (nn.Linear(8, 4), inputs(), None),
        (
            nn.LSTM(8, 4),
            inputs(nn.utils.rnn.pack_sequence([torch.zeros(5, 8), torch.zeros(3, 8)])),
            2,
        ),
    ],
)
def test_the_examples_of_a_batch(model, given, samples):
    assert count_samples(model, given) == samples


@pytest.mark.parametrize(
    ("model", "given", "tokens"),
    [
        (nn.Embedding(10, 4), inputs(IDS), 32),
        (nn.Embedding(10, 4), inputs(input_ids=IDS), 32),
        (nn.Embedding(10, 4), inputs(attention_mask=IDS, input_ids=IDS[:, :4]), 8),
        (nn.Linear(8, 4), inputs(IDS), None),  # nothing reads tokens
        (nn.Embedding(10, 4), inputs(IDS[0]), None),
        (nn.Embedding(10, 4), inputs(IDS.float()), None),
        (nn.Embedding(10, 4), inputs(IDS.to(torch.int32)), 32),
    ],
)
def test_the_tokens_of_an_input(model, given, tokens):
    assert count_tokens(model, given) == tokens


def test_sites_of_the_table_are_all_that_is_needed():
    assert set(PRODUCT) <= set(SITES.names)
