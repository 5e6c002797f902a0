"""What process groups are for, on which node their ranks are, and the link between them."""

import pytest

from flopprof.api import analyse_traces
from flopprof.ceilings.links import link_of
from flopprof.jobfacts import ProcessGroup
from flopprof.report.groups import is_on_one_node, parallel_of
from flopprof.report.job import job
from flopprof.trace.groups import process_groups
from tests.events import ADDMM, kernel, launch, op, with_shapes, write_trace


@pytest.mark.parametrize(
    ("name", "description", "parallel"),
    [
        ("0", "default_pg", None),
        ("3", "mesh_tp", "tensor"),
        ("3", "mesh_dp_shard", "data"),
        ("9", "PIPELINE_MODEL_PARALLEL_GROUP", "pipeline"),
        ("9", "EXPERT_MODEL_PARALLEL_GROUP", "expert"),
        ("9", "EXPERT_DATA_PARALLEL_GROUP", "data, expert"),
        ("9", "MODEL_PARALLEL_GROUP", "tensor, pipeline"),
        ("9", "CONTEXT_PARALLEL_GROUP", "context"),
        ("ep", "", "expert"),
        ("pp", "undefined", "pipeline"),
        ("stepper", "", None),  # words, not letters: no "ep" and no "pp"
    ],
)
def test_the_words_of_a_group_tell_what_it_is_for(name, description, parallel):
    assert parallel_of(ProcessGroup(name=name, description=description)) == parallel


@pytest.mark.parametrize(
    ("ranks", "gpus", "expected"),
    [
        ((0, 7), 8, True),
        ((7, 8), 8, False),  # the last of one node and the first of the next
        ((8, 9, 15), 8, True),
        ((0, 1), 1, None),  # each process is shown its own GPU alone
        ((0, 1), None, None),
        ((), 8, None),
    ],
)
def test_ranks_are_numbered_node_by_node(ranks, gpus, expected):
    assert is_on_one_node(ProcessGroup(name="0", ranks=ranks), gpus) is expected


@pytest.mark.parametrize(
    ("gpu", "one_way"),
    [
        ("NVIDIA H100 80GB HBM3", 450e9),  # 900 GB/s both ways
        ("NVIDIA A100-SXM4-80GB", 300e9),  # 600 GB/s both ways
        ("Tesla V100-SXM2-16GB", 150e9),  # 300 GB/s both ways
        ("AMD Instinct MI300X", 448e9),  # seven links of 64 GB/s one way
        ("NVIDIA A100 80GB PCIe", None),  # with and without a bridge
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 3090", None),
        ("", None),
    ],
)
def test_a_board_that_always_has_one_link_tells_it(gpu, one_way):
    link = link_of(gpu)

    assert (link.peak_bytes_per_s if link else None) == one_way


def test_groups_are_read_out_of_any_header():
    whole = {"pg_name": "0", "pg_desc": "default_pg", "pg_size": 4, "ranks": []}
    part = {"pg_name": 7, "pg_size": 2, "ranks": [1, 3]}
    odd = [None, 3, {"pg_name": None}, {"pg_name": "x", "pg_size": -1, "ranks": ["a"]}]

    groups = process_groups({"world_size": 4, "pg_config": [whole, part, *odd]})

    assert groups == (
        ProcessGroup(name="0", description="default_pg", size=4, ranks=(0, 1, 2, 3)),
        ProcessGroup(name="7", size=2, ranks=(1, 3)),
        ProcessGroup(name="x"),
    )
    assert process_groups({"pg_config": "none"}) == ()


def write_rank(folder, rank, *, ranks_of_group, gpus):
    """Write a rank with an all-reduce of 4.5 MB among two in 20 µs."""
    message = {
        "Collective name": "allreduce",
        "In msg nelems": 1_125_000,
        "Out msg nelems": 1_125_000,
        "dtype": "Float",
        "Process Group Name": "5",
        "Group size": 2,
    }
    sent = kernel(2, 30, 20, name="ncclDevKernel_AllReduce_Sum_f32")
    events = [
        with_shapes(op("aten::addmm", 1, 9), ADDMM),
        launch(1, 2),
        kernel(1, 20, 5),
        sent | {"args": sent["args"] | message},
    ]
    gpu = {"name": "NVIDIA H100 80GB HBM3"}
    group = {"pg_name": "5", "pg_desc": "mesh_tp", "pg_size": 2, "ranks": ranks_of_group}
    return write_trace(
        folder / f"rank{rank}.json",
        *events,
        distributedInfo={"rank": rank, "world_size": 16, "pg_config": [group]},
        deviceProperties=[gpu | {"id": number} for number in range(gpus)],
    )


def test_traffic_on_one_node_is_held_against_its_link(tmp_path):
    files = [write_rank(tmp_path, rank, ranks_of_group=[0, 1], gpus=8) for rank in (0, 1)]

    facts = job(analyse_traces(files))

    assert facts is not None
    (group,) = facts.groups
    assert (group.parallel, group.one_node, group.time_us) == ("tensor", True, 40)
    (row,) = facts.collectives
    # 4.5 MB in 20 µs, × 2 · 1/2 among two: 225 GB/s, half of 450 GB/s.
    assert row.bus_bytes_per_s == pytest.approx(225e9)
    assert (row.link, row.bus_frac) == ("NVLink 4", pytest.approx(0.5))


def test_traffic_between_nodes_has_no_known_link(tmp_path):
    files = [write_rank(tmp_path, rank, ranks_of_group=[7, 8], gpus=8) for rank in (7, 8)]

    facts = job(analyse_traces(files))

    assert facts is not None
    assert facts.groups[0].one_node is False
    assert facts.collectives[0].link is None
    assert facts.missing_ranks == (*range(7), *range(9, 16))
