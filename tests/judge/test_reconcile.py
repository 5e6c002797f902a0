"""Each verdict: a small model that provokes it, and one that does not."""

import math
import re
import time
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import flopprof
from flopprof.judge.reconcile import reconcile
from flopprof.judge.roofs import roof_doubts
from flopprof.judge.spread import TracedCall
from flopprof.tables import GAPS, KERNELS, MODULE_CALLS, OPS, ROOFLINES
from flopprof.totals import add_up


def verdict_of(model: nn.Module, op: str, *inputs: torch.Tensor) -> set[str]:
    run = flopprof.profile(model, inputs, repeats=1, warmup=1, ceilings=False)
    return set(run.sites.loc[run.sites["op"] == op, "verdict"])


class Calls(nn.Module):
    """A module whose forward is the function given."""

    def __init__(self, forward: Any, **children: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def test_a_module_whose_formula_equals_its_op_agrees():
    assert verdict_of(nn.Sequential(nn.Linear(8, 4)), "aten::linear", torch.ones(2, 8)) == {
        "agrees"
    }


def test_views_are_free():
    assert verdict_of(nn.Flatten(), "aten::flatten", torch.ones(2, 8, 3)) == {"free"}


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda m, x: F.linear(x, m.weight), "aten::linear"),
        (lambda m, x: x @ m.weight.T, "aten::matmul"),
        (lambda m, x: torch.einsum("ij,kj->ik", x, m.weight), "aten::einsum"),
        (lambda m, x: F.conv1d(x[None], m.weight[..., None]), "aten::conv1d"),
        (lambda m, x: F.linear(x, m.child.weight, m.child.bias), "aten::linear"),
    ],
)
def test_work_done_in_forward_itself_is_functional(function, op):
    model = Calls(function, child=nn.Linear(8, 4))
    model.weight = nn.Parameter(torch.ones(4, 8))
    x = torch.ones(8, 8)

    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    counted = run.sites[run.sites["matmul_flops"] > 0]
    # 8 rows × 4 outputs × 8 multiply-adds × 2 = 512, whichever way it is written.
    assert counted["matmul_flops"].sum() == 512
    assert set(counted["verdict"]) == {"functional"}
    assert "child" in run.provenance.source.never_called


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


def test_the_encoder_fast_path_is_kept_fused_and_counted():
    run = flopprof.profile(encoder(), (torch.ones(3, 5, 16),), repeats=1, warmup=1, ceilings=False)

    fused = run.sites[run.sites["op"] == "aten::_transformer_encoder_layer_fwd"]
    # Per layer, batch 3, length 5, width 16, feed-forward 32; ×2 FLOPs per multiply-add:
    # in-projection 3·5·16·48 = 11,520; attention 3·5·5·16·2 = 2,400; out-projection 3·5·16·16 =
    # 3,840; feed-forward 2·3·5·16·32 = 15,360. Sum 33,120 multiply-adds = 66,240 FLOPs, 2 layers.
    assert fused["matmul_flops"].sum() == 132_480
    assert set(fused["verdict"]) == {"fused"}
    assert "hooks never fired for" in fused["reason"].iloc[0]
    assert run.totals.matmul_flops == 132_480


def test_the_encoder_slow_path_counts_the_same_and_is_not_fused():
    slow = encoder()
    for layer in slow.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0  # switches the fast path off

    run = flopprof.profile(slow, (torch.ones(3, 5, 16),), repeats=1, warmup=1, ceilings=False)

    assert run.totals.matmul_flops == 132_480
    assert "fused" not in set(run.sites["verdict"])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_model_is_opaque():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))

    assert verdict_of(scripted, "aten::linear", torch.ones(2, 8)) == {"opaque"}


def test_a_custom_op_is_an_extension():
    name = "flopprof_test::twice"
    library = torch.library.Library("flopprof_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    try:
        assert verdict_of(
            Calls(lambda m, x: torch.ops.flopprof_test.twice(x)), name, torch.ones(4)
        ) == {"extension"}
    finally:
        library._destroy()


def test_an_op_that_only_calls_others_is_free_and_they_are_judged():
    def einsum(_module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ab,cb->ac", x, torch.ones(5, 4))

    count = flopprof.count_flops(Calls(einsum), (3, 4))

    assert count.matmul_flops == 2 * 3 * 5 * 4
    verdicts = dict(zip(count.run.sites["op"], count.run.sites["verdict"], strict=True))
    assert (verdicts["aten::einsum"], verdicts["aten::bmm"]) == ("free", "functional")


def test_what_only_the_hook_knows_is_counted_and_said_to_be_unconfirmed():
    row = op_row(op="quantized::linear", kind="matmul", matmul_flops=math.nan)

    sites = judge(call_row(240, 24), [row | {"vector_flops": math.nan, "counted": False}])

    assert set(sites["verdict"]) == {"unknown"}
    assert set(sites["flops_source"]) == {"hook"}
    assert list(sites["flops"]) == [264]
    assert sites["formula_flops"].isna().all()
    assert "the hook's alone" in sites["reason"][0]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.ao
def test_a_dynamically_quantised_layer_is_never_zero():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 16)), {nn.Linear})

    count = flopprof.count_flops(model, (2, 8))

    assert (count.matmul_flops, count.vector_flops) == (2 * 2 * 8 * 16, 2 * 16)


def test_an_op_that_does_its_own_work_is_unknown_though_its_formula_gives_none():
    row = op_row(op="aten::_fancy", kind="other", matmul_flops=math.nan, vector_flops=math.nan)

    sites = judge(call_row(math.nan, math.nan), [row | {"counted": False}])

    assert set(sites["verdict"]) == {"unknown"}
    assert sites["flops"].isna().all()
    assert "needs shapes or values that are not recorded" in sites["reason"][0]


def test_time_that_no_op_accounts_for_is_hidden_in_its_module():
    def forward(module, x):
        for _ in range(10):
            x = module.child(x)
        time.sleep(0.2)
        return x

    model = nn.Sequential(Calls(forward, child=nn.Linear(8, 8)))

    run = flopprof.profile(model, (torch.ones(2, 8),), repeats=1, warmup=1, ceilings=False)

    hidden = run.sites[run.sites["verdict"] == "hidden"]
    assert list(hidden["module_path"]) == ["0"]
    assert hidden["time_us"].iloc[0] > 150_000
    assert run.totals.coverage_frac < 0.5
    assert math.isnan(run.totals.flops_at_most)  # no ceiling: no bound


def test_ordinary_python_between_ops_is_not_hidden():
    run = flopprof.profile(
        nn.Sequential(*[nn.Linear(8, 8) for _ in range(20)]),
        (torch.ones(2, 8),),
        repeats=1,
        warmup=1,
        ceilings=False,
    )

    assert run.totals.flops == 20 * (2 * 2 * 8 * 8 + 2 * 8)


# The rest needs no model: one hand-made call and op at a time.


def call_row(matmul: float, vector: float, **more: object) -> pd.DataFrame:
    row = {
        "call_id": 0,
        "module_path": "",
        "module_type": "torch.nn.Linear",
        "self_hook_matmul_flops": matmul,
        "self_hook_vector_flops": vector,
    }
    return MODULE_CALLS.from_rows([row | more])


def op_row(**more: object) -> dict[str, object]:
    row: dict[str, object] = {
        "op_id": 0,
        "op": "aten::linear",
        "kind": "matmul",
        "call_id": 0,
        "phase": "forward",
        "dtype": "float32",
        "cpu_us": 100.0,
        "self_cpu_us": 100.0,
        "counted": True,
        "matmul_flops": 240.0,
        "vector_flops": 24.0,
        "min_bytes": 320.0,
    }
    return row | more


def judge(
    calls: pd.DataFrame, ops: list[dict[str, object]], rooflines: pd.DataFrame | None = None
) -> pd.DataFrame:
    traced = TracedCall(OPS.from_rows(ops), GAPS.empty(), KERNELS.empty())
    roofs = ROOFLINES.empty() if rooflines is None else rooflines
    return reconcile(calls, [traced], roofs, dtype="float32").sites


def test_a_wrong_formula_disagrees_and_the_reason_gives_both_counts():
    sites = judge(call_row(200, 24), [op_row()])

    assert list(sites["verdict"]) == ["disagrees"]
    assert "200 matmul" in sites["reason"][0]
    assert "240 matmul" in sites["reason"][0]


@pytest.mark.parametrize(
    ("hook", "profiler", "amount", "cause"),
    [
        # The op's formula gives 240 matmul and 24 vector FLOPs.
        ((120, 24), math.nan, "120 matmul FLOPs less (50.0 %)", "multiply-adds (MACs)"),
        ((200, 24), math.nan, "40 matmul FLOPs less (16.7 %)", "a parametrised or adapted weight"),
        ((240, 0), math.nan, "24 vector FLOPs less (100.0 %)", "a bias added by hand"),
        ((240, 30), math.nan, "6 vector FLOPs more (25.0 %)", "no bias at run time"),
        ((240, 24), 480.0, "240 matmul FLOPs more (100.0 %)", "counts a nested call twice"),
        ((240, 24), 60.0, "180 matmul FLOPs less (75.0 %)", "operands are broadcast"),
    ],
)
def test_a_disagreement_says_by_how_much_and_why_likely(hook, profiler, amount, cause):
    site = judge(call_row(*hook), [op_row(profiler_flops=profiler)]).iloc[0]

    assert site["verdict"] == "disagrees"
    assert amount in site["reason"]
    assert cause in site["reason"]


def test_classes_are_compared_each_on_its_own():
    # The sums are equal (264), the classes are not.
    sites = judge(call_row(264, 0), [op_row()])

    assert list(sites["verdict"]) == ["disagrees"]


MM = {"op": "aten::mm", "matmul_flops": 240.0, "vector_flops": 0.0}
MUL = {"op": "aten::mul", "kind": "elementwise", "matmul_flops": 0.0, "vector_flops": 24.0}
ADD = MUL | {"op": "aten::add"}


@pytest.mark.parametrize(
    ("hook", "ops", "verdicts"),
    [
        # A quantised weight: a product, its scale, and a bias that the hook counts or not.
        ((240, 0), [MM, MUL], ["agrees", "functional"]),
        ((240, 24), [MM, MUL, ADD], ["agrees", "disagrees", "disagrees"]),
        ((240, 20), [MM, MUL | {"vector_flops": 48.0}], ["agrees", "disagrees"]),
        ((240, 24), [MM, MUL | {"vector_flops": 48.0}, ADD], ["agrees", "functional", "agrees"]),
        # The other way round: the bias agrees though the product does not.
        ((200, 24), [MM, ADD], ["disagrees", "agrees"]),
        ((200, 20), [MM, ADD], ["disagrees", "disagrees"]),
        # One op that works in both classes differs in one of them.
        ((240, 0), [MM | {"vector_flops": 24.0}, MUL], ["disagrees", "functional"]),
    ],
)
def test_one_class_that_differs_does_not_drag_the_other(hook, ops, verdicts):
    rows = [op_row(op_id=n) | more for n, more in enumerate(ops)]

    sites = judge(call_row(*hook), rows).set_index("op")

    assert [sites.loc[row["op"], "verdict"] for row in rows] == verdicts
    for site in sites[sites["verdict"] == "disagrees"].itertuples():
        # It is of the class in which this op differs.
        differing = "matmul" if site.matmul_flops and hook[0] != 240 else "vector"
        assert re.search(f"\\d {differing} FLOPs (less|more)", site.reason)


def test_the_reason_of_an_agreeing_class_says_which_differs_and_by_how_much():
    rows = [op_row() | MM, op_row(op_id=1) | MUL | {"vector_flops": 48.0}]

    [product] = judge(call_row(240, 20), rows).query("op == 'aten::mm'").itertuples()

    assert "28 vector FLOPs less" in product.reason


def test_an_op_that_equals_the_hook_agrees_though_one_beside_it_has_no_formula():
    unknown = {"op": "torchao::dequantize_affine", "matmul_flops": math.nan, "counted": False}
    rows = [op_row(), op_row(op_id=1) | unknown | {"vector_flops": math.nan}]

    verdicts = judge(call_row(240, 24), rows).set_index("op")["verdict"]

    assert verdicts.to_dict() == {
        "aten::linear": "agrees",
        "torchao::dequantize_affine": "extension",
    }


class Scaled(torch.Tensor):
    """A weight whose product is scaled afterwards, as weight-only quantisation does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        x, weight, bias = args
        plain = weight.as_subclass(torch.Tensor)
        return torch.mm(x, plain.t()) * torch.full((plain.shape[0],), 2.0) + bias


def test_a_linear_whose_subclass_weight_is_scaled_agrees_on_its_product():
    layer = nn.Linear(8, 4)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Scaled), requires_grad=False)

    count = flopprof.profile(layer, (torch.ones(2, 8),), repeats=1, warmup=1, ceilings=False)

    product = count.sites[count.sites["matmul_flops"] > 0]
    # 2 rows × 4 outputs × 8 multiply-adds × 2.
    assert list(product["matmul_flops"]) == [128]
    assert set(product["verdict"]) == {"agrees"}


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_site_has_the_worst_verdict_of_its_calls(wrong):
    calls = pd.concat([call_row(240, 24, call_id=n) for n in (0, 1)], ignore_index=True)
    rows = [op_row(op_id=n, call_id=n) for n in (0, 1)]
    rows[wrong]["profiler_flops"] = 120.0

    [site] = judge(calls, rows).itertuples()

    assert (site.calls, site.verdict) == (2, "disagrees")
    assert "profiler counts 120" in site.reason


def test_a_sum_with_an_unknown_part_is_unknown():
    rows = [op_row(op_id=0), op_row(op_id=1, min_bytes=math.nan)]

    [site] = judge(call_row(480, 48), rows).itertuples()

    assert (site.calls, site.flops) == (2, 528)
    assert math.isnan(site.min_bytes)  # not the 320 of the one that is known
    assert math.isnan(site.intensity_flops_per_byte)


def test_a_profiler_that_counts_otherwise_disagrees():
    sites = judge(call_row(240, 24), [op_row(profiler_flops=120.0)])

    assert list(sites["verdict"]) == ["disagrees"]
    assert "profiler counts 120" in sites["reason"][0]


def test_the_profilers_first_input_rule_for_mul_is_no_witness():
    mul = op_row(op="aten::mul", kind="elementwise", matmul_flops=0.0, profiler_flops=64.0)

    assert list(judge(call_row(math.nan, math.nan), [mul])["verdict"]) == ["functional"]


def test_what_hooks_counted_and_nothing_ran_is_not_run():
    sites = judge(call_row(240, 24), [op_row(call_id=-1)])

    assert set(sites["verdict"]) == {"functional", "not_run"}
    assert sites.loc[sites["verdict"] == "not_run", "flops"].isna().all()


def test_a_layer_that_did_not_run_is_missing_in_bound_and_coverage():
    totals = add_up(judge(call_row(240, 24), [op_row(call_id=-1)]), math.nan)

    # The one op has 264 FLOPs, and the hook counted 264 more that nothing ran.
    assert (totals.flops, totals.flops_at_most) == (264, 528)
    assert totals.coverage_calls_frac == 0.5
    assert totals.coverage_frac == 0.5


def test_an_extra_op_beside_the_modules_own_is_functional():
    extra = op_row(op_id=1, op="aten::mul", kind="elementwise", matmul_flops=0.0, vector_flops=7.0)

    sites = judge(call_row(240, 24), [op_row(), extra]).set_index("op")

    assert sites["verdict"].to_dict() == {"aten::linear": "agrees", "aten::mul": "functional"}


def test_without_hooks_formulas_stand_alone():
    sites = judge(MODULE_CALLS.empty(), [op_row()])

    assert list(sites["verdict"]) == ["formula_only"]


def test_an_op_without_formula_is_unknown_never_zero():
    sites = judge(
        MODULE_CALLS.empty(),
        [op_row(op="aten::mystery", kind="unknown", counted=False, matmul_flops=math.nan,
                vector_flops=math.nan, min_bytes=math.nan)],
    )  # fmt: skip

    assert list(sites["verdict"]) == ["unknown"]
    assert sites["flops"].isna().all()


ROOFS = ROOFLINES.from_rows(
    [
        {
            "dtype": "float32",
            "unit": unit,
            "memory_level": "DRAM",
            "peak_flops_per_s": peak,
            "peak_bytes_per_s": 1e9,
            "ridge_flops_per_byte": peak / 1e9,
            "kind": "user",
            "valid": True,
        }
        for unit, peak in (("tensor", 1e10), ("vector", 1e9))
    ]
)


def test_unknown_time_is_bounded_by_the_matmul_ceiling():
    unknown = op_row(op_id=1, op="aten::mystery", kind="unknown", counted=False,
                     matmul_flops=math.nan, vector_flops=math.nan)  # fmt: skip

    sites = judge(MODULE_CALLS.empty(), [op_row(), unknown], rooflines=ROOFS)

    # 100 µs × 10 GFLOP/s = 1,000,000 FLOPs at most; the known op stays at 240 + 24.
    most = dict(zip(sites["op"], sites["flops_at_most"], strict=True))
    assert most == {"aten::mystery": 1_000_000, "aten::linear": 264}


def test_a_site_is_held_against_its_own_roof():
    site = judge(MODULE_CALLS.empty(), [op_row()], rooflines=ROOFS).iloc[0]

    # 264 FLOPs / 320 B = 0.825 FLOP/B, left of the ridge at 10: 0.825 × 1e9 B/s is attainable.
    # 264 FLOPs in 100 µs = 2.64 MFLOP/s achieved: 0.32 % of 825 MFLOP/s.
    assert site["intensity_flops_per_byte"] == 0.825
    assert site["attainable_flops_per_s"] == 825e6
    assert site["bound"] == "overhead"  # far below either roof
    assert site["efficiency_frac"] == pytest.approx(0.0032)


def test_every_instant_belongs_to_one_site():
    parent = op_row(op="aten::outer_thing", kind="unknown", counted=False, matmul_flops=math.nan,
                    vector_flops=math.nan, cpu_us=100.0, self_cpu_us=10.0)  # fmt: skip
    child = op_row(op_id=1, parent_op_id=0, cpu_us=90.0, self_cpu_us=60.0)
    below = op_row(op_id=2, parent_op_id=1, op="aten::addmm", counted=False, cpu_us=30.0)

    sites = judge(MODULE_CALLS.empty(), [parent, child, below])

    assert dict(zip(sites["op"], sites["time_us"], strict=True)) == {
        "aten::linear": 90.0,
        "aten::outer_thing": 10.0,
    }
    assert sites["flops"].sum() == 264  # addmm below linear is not counted again


def test_repeated_calls_of_one_shape_are_one_site():
    sites = judge(MODULE_CALLS.empty(), [op_row(), op_row(op_id=1)])

    assert (len(sites), sites["calls"][0], sites["flops"][0]) == (1, 2, 528)


def test_a_site_faster_than_its_roof_makes_the_ceiling_doubtful():
    # 264 MFLOPs in 100 µs are 2.64 TFLOP/s, of 10 GFLOP/s; 1 kB moved: compute-bound.
    fast = op_row(matmul_flops=264e6, vector_flops=0.0, min_bytes=1000.0)
    doubts = roof_doubts(judge(MODULE_CALLS.empty(), [fast], rooflines=ROOFS))

    assert len(doubts) == 1
    assert "sites above their roof: 1, by 26300% at most, such as aten::linear" in doubts[0]
    assert not roof_doubts(judge(MODULE_CALLS.empty(), [op_row()], rooflines=ROOFS))
