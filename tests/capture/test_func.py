"""Work inside torch.func's transforms: what ran counts, not the shapes that one example sees."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import flopprof
from flopprof.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Transformed(nn.Module):
    """A model whose forward is a function of its layer and the input."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x):
        return self.function(self.layer, x)


def both(function, layer, *size):
    """Return the matmul FLOPs of the model by counting and by profiling, and the profile."""
    model = Transformed(layer, function)
    x = torch.randn(*size)
    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)
    return count.matmul_flops, run.totals.matmul_flops, run


def test_vmap_of_a_layer_counts_every_example():
    count, profiled, run = both(lambda layer, x: vmap(layer)(x), nn.Linear(5, 7), 1000, 5)

    # 1000 examples, each 5 × 7 multiply-adds × 2 = 70 FLOPs; 7 bias adds each.
    assert count == profiled == 70_000
    assert run.totals.vector_flops == 7_000
    sites = run.sites[run.sites["flops"] > 0]
    assert set(sites["verdict"]) == {"agrees"}
    assert "unknown" not in set(run.sites["verdict"])
    assert "shapes of a batch" in sites["reason"].iloc[0]


def test_vmap_in_vmap_counts_the_examples_of_both():
    count, profiled, _ = both(lambda layer, x: vmap(vmap(layer))(x), nn.Linear(5, 7), 10, 20, 5)

    # 10 · 20 examples × 70.
    assert count == profiled == 14_000


def test_vmap_of_a_convolution_counts_every_example():
    count, profiled, run = both(
        lambda layer, x: vmap(layer)(x), nn.Conv2d(3, 4, 3, padding=1, bias=False), 5, 3, 8, 8
    )

    # Per example 4 channels × 8·8 positions × 3·3·3 multiply-adds × 2 = 13,824; five of them.
    assert count == profiled == 69_120
    assert run.sites.query("matmul_flops > 0")["verdict"].tolist() == ["agrees"]


def test_elementwise_work_under_vmap_counts_every_example():
    model = Transformed(nn.Softmax(dim=-1), lambda layer, x: vmap(layer)(x))

    # 5n: 6 examples of 8 elements.
    assert flopprof.count_flops(model, (torch.randn(6, 8),)).vector_flops == 240


def test_per_example_gradients_count_forward_and_backward_of_every_example():
    def gradients(layer, x):
        parameters = {name: p.detach() for name, p in layer.named_parameters()}

        def loss(parameters, one):
            return functional_call(layer, parameters, (one,)).sum()

        return vmap(grad(loss), (None, 0))(parameters, x)["weight"]

    count, profiled, run = both(gradients, nn.Linear(5, 7), 1000, 5)

    # Forward 1000 × 70; the weight's gradient 1000 outer products of 7 and 5, as a batched
    # product: 1000 × 7·1·5 × 2 = 70,000. The input needs no gradient.
    assert count == profiled == 140_000
    assert set(run.sites.query("flops > 0")["verdict"]) <= {"agrees", "formula_only", "functional"}


def test_a_functional_call_under_vmap_over_an_ensemble_counts_every_member():
    def ensemble(layer, x):
        weights = {name: torch.stack([p.detach()] * 3) for name, p in layer.named_parameters()}
        return vmap(lambda w: functional_call(layer, w, (x,)))(weights)

    count, profiled, _ = both(ensemble, nn.Linear(5, 7), 4, 5)

    # Three members, each 4 × 5 × 7 multiply-adds × 2 = 280.
    assert count == profiled == 840


def test_a_jacobian_by_backward_passes_counts_each_of_them():
    count, profiled, _ = both(lambda layer, x: jacrev(layer)(x), nn.Linear(5, 7, bias=False), 5)

    # Forward 70; seven outputs, each 7 × 5 multiply-adds × 2 = 70 back.
    assert count == profiled == 70 + 490


def test_a_vjp_counts_one_backward_pass():
    def pull_back(layer, x):
        back = vjp(layer, x)[1]
        return back(torch.ones(4, 7))[0]

    count, profiled, _ = both(pull_back, nn.Linear(5, 7, bias=False), 4, 5)

    # Forward 4·5·7 × 2 = 280; the input's gradient as much.
    assert count == profiled == 560


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_jvp_counts_the_products_of_the_tangent():
    w = torch.randn(5, 7)

    def push_forward(_layer, x):
        return jvp(lambda x, w: x @ w, (x, w), (x, w))[1]

    count, profiled, _ = both(push_forward, nn.Identity(), 4, 5)

    # x·w, then dx·w and x·dw for the tangent: three products of 4·5·7 × 2 = 280.
    assert count == profiled == 840


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_mode_does_not_change_the_count_of_a_mapped_layer(mode):
    def forward(layer, x):
        with mode():
            return vmap(layer)(x)

    model = Transformed(nn.Linear(5, 7), forward)

    assert flopprof.count_flops(model, (torch.randn(10, 5),)).matmul_flops == 700


def test_a_hessian_has_no_unknown_op():
    w = torch.ones(5, 5)
    model = Transformed(nn.Identity(), lambda _, x: torch.func.hessian(lambda a: (w @ a) @ a)(x))

    count = flopprof.count_flops(model, (torch.ones(5),))

    assert count.flops == count.flops_at_most


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


def self_attention(layer, x):
    return layer(x, x, x, need_weights=False)[0]


# One example, 5 rows of 8 features, batch 2, heads 2: projections of 10·8·24 and 10·8·8
# multiply-adds × 2 = 3,840 + 1,280; two products of 4 heads × 5·5·4 × 2 = 800 each.
ATTENTION = 3840 + 1280 + 2 * 800


@pytest.mark.parametrize(
    "mapped",
    [
        lambda layer, x: vmap(lambda y: self_attention(layer, y))(x),
        lambda layer, x: vmap(vmap(lambda y: self_attention(layer, y)))(x),
        lambda layer, x: vmap(lambda y: self_attention(layer, y), 1)(x.transpose(0, 1)),
        lambda layer, x: vmap(lambda y: self_attention(layer, y), chunk_size=2)(x),
    ],
)
def test_mapped_attention_agrees_with_its_hook(mapped):
    layer = nn.MultiheadAttention(8, 2, batch_first=True)

    count, profiled, run = both(mapped, layer, 3, 2, 5, 8)

    assert count == profiled == 3 * ATTENTION
    assert "disagrees" not in set(run.sites["verdict"])


def test_gradients_of_mapped_attention_count_as_the_cpu_computes_them():
    def gradients(layer, x):
        return vmap(grad(lambda y: self_attention(layer, y).sum()))(x)

    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Transformed(layer, gradients)
    x = torch.randn(3, 2, 5, 8)
    flopprof.count_flops(Transformed(layer, lambda m, x: vmap(lambda y: m(y, y, y)[0])(x)), (x,))

    counted = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    # Back through both projections, and five products of attention: of the two, two each, and the
    # scores once more.
    assert counted.matmul_flops == run.totals.matmul_flops == 3 * (ATTENTION + 5120 + 5 * 800)
    assert counted.vector_flops == run.totals.vector_flops
    for each in (run, counted.run):
        assert "disagrees" not in set(each.sites["verdict"])


def test_a_product_that_vmap_takes_apart_counts_every_example():
    weight = torch.ones(2, 8, 8)

    def gradients(_layer, x):
        return vmap(grad(lambda y: F.bilinear(y, y, weight).sum()))(x)

    count, profiled, _ = both(gradients, nn.Identity(), 3, 4, 8)

    # Forward y·W for 2 outputs of 4 rows, 4·2·(8·8 + 8) multiply-adds × 2 = 1,152; back for each
    # of the two operands 4·2·8·8 × 2 = 1,024.
    assert count == profiled == 3 * (1152 + 2 * 1024)


def test_a_softmax_that_vmap_takes_apart_counts_every_example():
    def gradients(_layer, x):
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(grad(lambda y: attend(y).sum()))(x)

    run = flopprof.profile(
        Transformed(nn.Identity(), gradients), (torch.randn(3, 1, 4, 8),), repeats=1, warmup=1
    )

    softmax = run.sites[run.sites["op"].astype(str).str.contains("softmax$")]
    # 5 for each of 3·4·4 scores.
    assert softmax["flops"].sum() == 240


def test_a_sum_that_a_hessian_maps_counts_every_tangent():
    def curvature(_layer, x):
        return hessian(lambda y: torch.softmax(y, -1).pow(2).sum())(x)

    model = Transformed(nn.Identity(), curvature)
    x = torch.randn(2, 3)

    count = flopprof.count_flops(model, (x,))
    run = flopprof.profile(model, (x,), repeats=1, warmup=1, ceilings=False)

    assert count.vector_flops == run.totals.vector_flops
    # Six tangents, one for each element: the softmax sums along their rows, the function sums all.
    sums = run.sites.query("op == 'aten::sum' and phase == 'forward'").set_index("input_shapes")
    assert sums.loc["6x2x3", "vector_flops"] == 2 * 6 * 2 * 3


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: hessian(f),
        lambda f: jacrev(jacrev(f)),
        lambda f: jacfwd(f),
        lambda f: lambda x: torch.autograd.functional.hessian(f, x),
    ],
)
def test_what_attention_of_a_cpu_does_not_derive_is_refused_by_a_count_as_well(derivative):
    model = Transformed(nn.Identity(), lambda _, x: derivative(lambda y: attend(y).sum())(x))

    with pytest.raises(ModelError, match=r"not implemented|does not support"):
        flopprof.count_flops(model, (torch.randn(1, 1, 4, 8),))


def test_a_gradient_penalty_through_plain_attention_counts_as_in_a_profile():
    def penalty(_layer, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            (slope,) = torch.autograd.grad(attend(x).sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), x)[0]

    count, profiled, _ = both(penalty, nn.Identity(), 2, 1, 4, 8)

    # Products of 2 × 4·4·8 multiply-adds × 2 = 512: two, their four derivatives, and eight of
    # those, each of which has two operands.
    assert count == profiled == 14 * 512


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_hessian_counts_the_same_each_time():
    layer = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))
    model = Transformed(layer, lambda layer, x: hessian(lambda y: layer(y).sum())(x))
    x = torch.ones(5)

    counts = [flopprof.count_flops(model, (x,)).matmul_flops for _ in range(2)]

    # Forward 2·5·7 + 2·7·5 = 140, their tangents in five directions 700. Backward: the gradient
    # through both layers 140; of these operands the second's alone has tangents, 5·70 = 350. Each
    # of the three products with tangents is made once more beside them: 210.
    assert counts == [1540, 1540]
