"""Formulas for the layers of `torch.nn` and torchvision, from attributes and tensor sizes.

ARCHITECTURE.md, "Counting rules", says what counts. Without a formula are layers whose values
decide (CTC, adaptive softmax, multi-label margin), and the transformer layers and models, whose
own work is functional.
"""

import csv
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from math import inf, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, broadcast_shapes, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from flopprof.formulas import MODULE_FORMULAS, ModuleCall, ModuleFormula, Work, module_formula

_INTERNALS = ("forward", "__call__", "_conv_forward", "_apply_instance_norm")
"""Methods that do a layer's arithmetic: a subclass that overrides one is another layer."""


def canonical_name(cls: type) -> str:
    """Return the name a class is registered by: as users import torch's, else its full path."""
    if cls.__module__ == "torch.fx.graph_module" and "<locals>" in cls.__qualname__:
        cls = cls.__mro__[1]  # each graph module has a class of its own
    package = cls.__module__.partition(".modules")[0]
    exported = getattr(sys.modules.get(package), cls.__name__, None) is cls
    if exported and package.startswith("torch."):
        return f"{package}.{cls.__name__}"
    return f"{cls.__module__.removeprefix('flopprof_user_')}.{cls.__qualname__}"


def find_module_formula(
    module: nn.Module,
    *,
    whatever_weights: bool = False,
    formulas: dict[type, ModuleFormula | None] | None = None,
) -> ModuleFormula | None:
    """Return the formula of `module`'s class, or of the class whose forward it inherits.

    None for a forward of its own, also one set on the instance, and, unless `whatever_weights`,
    for weights that are computed on each call (parametrised, pruned, weight or spectral norm).

    Args:
        module: A module.
        whatever_weights: Whether how its weights come about does not matter.
        formulas: Those of classes met before; this module's is added.
    """
    fields = vars(module)
    if "forward" in fields:
        return None
    if not whatever_weights:
        pre_hooks = tuple(module._forward_pre_hooks.values())
        if any(type(hook).__module__.startswith("torch.nn.utils.") for hook in pre_hooks):
            return None
        if "parametrizations" in fields.get("_modules", ()) and is_parametrized(module):
            return None
    cls = type(module)
    if formulas is None:
        return _formula_of_class(cls)
    if cls not in formulas:
        formulas[cls] = _formula_of_class(cls)
    return formulas[cls]


def _formula_of_class(cls: type) -> ModuleFormula | None:
    for base in cls.__mro__:
        formula = MODULE_FORMULAS.get(canonical_name(base))
        if formula is not None:
            same = all(getattr(cls, name, None) is getattr(base, name, None) for name in _INTERNALS)
            return formula if same else None
    return None


def _argument(call: ModuleCall, index: int, name: str) -> Any:
    """Return an argument of forward, given by position or by name; None if left out."""
    return call.args[index] if index < len(call.args) else call.kwargs.get(name)


def _input(call: ModuleCall) -> Tensor:
    """Return the first tensor argument of forward."""
    values = (*call.args, call.kwargs.get("input"), *call.kwargs.values())
    return next(value for value in values if isinstance(value, Tensor))


def _output(call: ModuleCall) -> Tensor:
    """Return the tensor that came out, the first of several."""
    out = call.output[0] if isinstance(call.output, tuple | list) else call.output
    assert isinstance(out, Tensor)
    return out


def _elements(tensor: Tensor) -> int:
    """Return the elements whose arithmetic counts: none of an integer or boolean tensor."""
    return tensor.numel() if tensor.is_floating_point() or tensor.is_complex() else 0


def layer_formula(
    names: str, package: str = "torch.nn"
) -> Callable[[ModuleFormula], ModuleFormula]:
    """Register a formula for classes of a package, named in one text: "RNN LSTM GRU"."""
    return module_formula(*(f"{package}.{name}" for name in names.split()))


def _sum(layer: Any, terms: str) -> int:
    """Return the sum of `terms` such as "8 weight 3*full": numbers and attributes of a module.

    A flag or size counts as it is, anything else as one: a tensor that is there, a reduction.
    """
    total = 0
    for factor, name in _terms(terms):
        if name.isdigit():
            total += factor * int(name)
            continue
        value = getattr(layer, name, None)
        if name == "reduction" or not isinstance(value, int | str):
            value = 0 if value in (None, "none") else 1
        total += factor * int(value)
    return total


@cache
def _terms(text: str) -> list[tuple[int, str]]:
    """Return terms as factors and what each is to be multiplied with."""
    parts = (term.rpartition("*") for term in text.split())
    return [(int(factor or 1), name) for factor, _, name in parts]


def _rows(call: ModuleCall) -> int:
    """Return the rows of the first input: all its axes but the last."""
    return prod(_input(call).shape[:-1])


def nothing(_call: ModuleCall) -> Work:
    """Moves data, or only calls its children."""
    return Work()


def _of_elements(call: ModuleCall, *, per_element: str, per_row: str = "") -> Work:
    """So much for each element of the first input, and for each of its rows."""
    layer = call.module
    n = _elements(_input(call))
    return Work(vector_flops=_sum(layer, per_element) * n + _sum(layer, per_row) * _rows(call))


def _product(call: ModuleCall, *, per_element: str) -> Work:
    """2·outputs·in_features, or 2·outputs·(in_channels ÷ groups)·taps; with bias 1 per output.

    Transposed, each input element goes into out_channels ÷ groups × filter taps. Bilinear,
    x₁ᵀ·W·x₂: in₁·in₂ products, then in₂. A quantised product counts as the real one, without the
    scaling to and from integers; what is fused to it adds `per_element` to each output.
    """
    layer: Any = call.module
    out = _output(call)
    if hasattr(layer, "in_features"):
        multiply_adds = out.numel() * layer.in_features
    elif isinstance(layer, nn.Bilinear):
        multiply_adds = out.numel() * (layer.in1_features * layer.in2_features + layer.in2_features)
    elif layer.transposed:
        multiply_adds = (
            _input(call).numel() * (layer.out_channels // layer.groups) * prod(layer.kernel_size)
        )
    else:
        multiply_adds = out.numel() * (layer.in_channels // layer.groups) * prod(layer.kernel_size)
    parts = 2 if out.is_complex() else 1  # a complex multiply-add is 8 FLOPs, an add 2
    # Of a quantised layer the bias is packed with the weight, and a method unpacks it.
    bias = layer.bias() if callable(layer.bias) else layer.bias
    each = _sum(layer, per_element)
    if bias is not None:
        each += 1
    outputs = out.numel() if out.is_quantized else _elements(out)
    return Work(2 * parts**2 * multiply_adds, parts * outputs * each)


def _register(package: str, classes: str, formula: str, per_element: str, per_row: str) -> None:
    """Register a row of modules.csv."""
    formulas: dict[str, ModuleFormula] = {
        "nothing": nothing,
        "product": partial(_product, per_element=per_element),
        "elements": partial(_of_elements, per_element=per_element, per_row=per_row),
    }
    layer_formula(classes, package)(formulas[formula])


with Path(__file__).with_name("modules.csv").open(encoding="utf-8", newline="") as _file:
    for _row in list(csv.reader(_file))[1:]:
        _register(*_row[:5])


@layer_formula("Quantize DeQuantize", "torch.ao.nn.quantized")
def quantize(call: ModuleCall) -> Work:
    """A scale and a shift."""
    return Work(vector_flops=2 * _input(call).numel())


@layer_formula("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm")
@layer_formula("InstanceNorm1d InstanceNorm2d InstanceNorm3d")
def batch_norm(call: ModuleCall) -> Work:
    """Running statistics fold, with the affine part, to one scale and one shift.

    Else mean, subtract, square, sum, scale, and weight and bias.
    """
    folded = not call.module.training and call.module.running_mean is not None
    return _of_elements(call, per_element="2" if folded else "5 weight bias")


@layer_formula("FrozenBatchNorm2d", "torchvision.ops.misc")
def frozen_batch_norm(call: ModuleCall) -> Work:
    """A scale and a shift; the fold w ÷ √(var + ε), b − mean·w, is done on each call: 5."""
    layer: Any = call.module
    return Work(vector_flops=2 * _elements(_input(call)) + 5 * layer.weight.numel())


@layer_formula("SmoothL1Loss BCEWithLogitsLoss KLDivLoss")
def loss_of_elements(call: ModuleCall) -> Work:
    """So much per element of the first input, and once per call: see the comments."""
    layer: Any = call.module
    if isinstance(layer, nn.SmoothL1Loss):
        # |d| < β ? ½d²/β : |d| − ½β: subtract, abs, compare; square, halve, divide; subtract.
        each = "7 reduction" if layer.beta else "2 reduction"
        once = 0
    elif isinstance(layer, nn.KLDivLoss):
        # y·(log y − x), or eʸ·(y − x); the batch mean divides the sum once.
        each = "3 reduction"
        once = 1 if layer.reduction == "batchmean" else 0
    else:
        # (1 − y)·x − w·logsigmoid x, where p makes w = 1 + (p − 1)·y.
        each = "4 weight 3*pos_weight reduction"
        once = 0 if layer.pos_weight is None else layer.pos_weight.numel()
    return Work(vector_flops=_sum(layer, each) * _elements(_input(call)) + once)


@layer_formula("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout")
def dropout(call: ModuleCall) -> Work:
    """In training mask and scale; a product with zero where all is dropped; else the input."""
    layer: Any = call.module
    if not layer.training or layer.p == 0:
        return Work()
    return Work(vector_flops=(1 if layer.p == 1 else 2) * _elements(_input(call)))


@layer_formula("StochasticDepth", "torchvision.ops.stochastic_depth")
def stochastic_depth(call: ModuleCall) -> Work:
    """In training, one multiply per element and one division per drawn number; else nothing."""
    layer: Any = call.module
    x = _input(call)
    if not layer.training or layer.p == 0:
        return Work()
    divisions = 0
    if layer.p < 1:
        divisions = len(x) if layer.mode == "row" else 1
    return Work(vector_flops=x.numel() + divisions)


@layer_formula("Embedding EmbeddingBag")
def embedding(call: ModuleCall) -> Work | None:
    """A look-up; a bag adds (or compares) each element, and multiplies by per-sample weights.

    Unknown with max_norm, which rescales the distinct rows hit.
    """
    layer: Any = call.module
    if layer.max_norm is not None:
        return None
    if not isinstance(layer, nn.EmbeddingBag):
        return Work()
    each = 1 if _argument(call, 2, "per_sample_weights") is None else 2
    return Work(vector_flops=each * _input(call).numel() * layer.embedding_dim)


def _window(size: Any, dims: int) -> int:
    """Return the elements of a window: a size for each axis, or one for all."""
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    return prod(sizes * dims if len(sizes) == 1 else sizes)


def _adaptive(x: Tensor, out: Tensor, dims: int) -> int:
    """Return the elements of all windows: those of an axis are ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉."""
    total = prod(x.shape[:-dims]) if _elements(x) else 0
    for size, windows in zip(x.shape[-dims:], out.shape[-dims:], strict=True):
        covered = 0
        for i in range(windows):
            first = i * size // windows
            end = -(-(i + 1) * size // windows)  # rounded up
            covered += end - first
        total *= covered
    return total


def _register_pools(dims: int) -> None:
    fractional = f" FractionalMaxPool{dims}d" if dims > 1 else ""

    @layer_formula(f"MaxPool{dims}d AvgPool{dims}d LPPool{dims}d{fractional}")
    def pool(call: ModuleCall) -> Work | None:
        """The window's size per output element.

        Of a norm, also the power of each input and, per output, sign, abs, relu, two multiplies,
        root; for p = ∞ the input's abs.
        """
        layer: Any = call.module
        norm = getattr(layer, "norm_type", None)
        each = _window(layer.kernel_size, dims)
        if norm == -inf:
            return None
        powers = 0 if norm is None else _elements(_input(call))
        roots = 0 if norm in (None, inf) else 6
        return Work(vector_flops=powers + (each + roots) * _elements(_output(call)))

    @layer_formula(f"AdaptiveMaxPool{dims}d AdaptiveAvgPool{dims}d")
    def adaptive_pool(call: ModuleCall) -> Work:
        """The sum of the real window sizes."""
        return Work(vector_flops=_adaptive(_input(call), _output(call), dims))


for _dims in (1, 2, 3):
    _register_pools(_dims)


@layer_formula("Upsample UpsamplingBilinear2d UpsamplingNearest2d")
def upsample(call: ModuleCall) -> Work:
    """Per output 3 a lerp: linear 3, bilinear 9, trilinear 21; bicubic 35; nearest none."""
    module: Any = call.module
    x = _input(call)
    out = _output(call)
    if module.mode == "area":
        return Work(vector_flops=_adaptive(x, out, x.dim() - 2))
    each = {"linear": 3, "bilinear": 9, "trilinear": 21, "bicubic": 35}.get(module.mode, 0)
    return Work(vector_flops=each * _elements(out))


_CELLS = {"RNN": (1, 2, 2), "LSTM": (4, 13, 8), "GRU": (3, 11, 6)}
"""Gates, vector FLOPs and those of the biases, per hidden element and step."""


def _recurrent(call: ModuleCall, *, kind: str) -> Work:
    """2·steps·batch·gates·H·(in + recurrent) of each layer and direction; gates 4, 3 or 1.

    A packed sequence has its real lengths. P·H more multiply-adds project H to P. Dropout between
    layers in training is 2 per element handed on. A cell is one layer's step.
    """
    layer: Any = call.module
    gates, vector, biases = _CELLS[kind]
    sequence = _argument(call, 0, "input")
    x = sequence.data if isinstance(sequence, PackedSequence) else sequence
    layers = getattr(layer, "num_layers", 1)
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    hidden = layer.hidden_size
    projected = getattr(layer, "proj_size", 0)
    handed_on = projected or hidden
    widths = layer.input_size + (layers - 1) * directions * handed_on  # summed over the layers
    multiply_adds = gates * hidden * (widths + layers * handed_on) + layers * hidden * projected
    each = layers * hidden * (vector + biases if layer.bias else vector)
    if layer.training and getattr(layer, "dropout", 0):
        each += 2 * (layers - 1) * handed_on
    steps = x.numel() // layer.input_size * directions
    return Work(2 * steps * multiply_adds, steps * each)


for _kind in _CELLS:
    for _package in ("torch.nn", "torch.ao.nn.quantized.dynamic"):
        layer_formula(f"{_kind} {_kind}Cell", _package)(partial(_recurrent, kind=_kind))


@layer_formula("MultiheadAttention")
def multihead_attention(call: ModuleCall) -> Work:
    """In-projections, Q·Kᵀ, softmax, ·V and out-projection, with the projections' biases.

    Per score: softmax 5, scale 1, each mask tensor 1 (two are first added up), dropout in training
    2. Asked for its weights, it scales the query instead of the scores, and averaging the heads
    adds 1. bias_k and add_zero_attn each lengthen the keys by one.
    """
    layer: Any = call.module
    bound = inspect.signature(nn.MultiheadAttention.forward).bind(layer, *call.args, **call.kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    key = arguments["key"]
    need_weights = arguments["need_weights"]
    embed = layer.embed_dim
    queries = arguments["query"].numel() // embed  # batch × length
    keys = key.numel() // layer.kdim  # batch × length
    key_length = key.shape[1 if layer.batch_first and key.dim() == 3 else 0]
    key_length += _sum(layer, "bias_k add_zero_attn")

    scores = queries * layer.num_heads * key_length
    multiply_adds = embed * (2 * queries * (embed + key_length) + keys * (layer.kdim + layer.vdim))
    vector = (5 + _mask_tensors(arguments)) * scores
    vector += queries * embed if need_weights else scores
    if need_weights and arguments["average_attn_weights"]:
        vector += scores
    if layer.training and layer.dropout:
        vector += 2 * scores
    if layer.in_proj_bias is not None:
        vector += (queries + 2 * keys) * embed
    if layer.out_proj.bias is not None:
        vector += queries * embed
    return Work(2 * multiply_adds, vector)


def _mask_tensors(arguments: dict[str, Any]) -> int:
    """Return how many masks `MultiheadAttention.forward` adds to the scores, by its arguments."""
    padding = arguments["key_padding_mask"] is not None
    mask = arguments["attn_mask"] is not None
    # A causal hint stands in for the mask, unless a padding mask or the weights need the tensor.
    hint = arguments["is_causal"] and not padding and not arguments["need_weights"]
    if mask and not hint:
        return 2 if padding else 1
    return 1 if padding else 0


@layer_formula("CosineSimilarity PairwiseDistance")
def distance(call: ModuleCall) -> Work:
    """‖x₁ − x₂ + ε‖: 4n. x₁·x₂ ÷ (max(‖x₁‖, ε)·max(‖x₂‖, ε)): 2n, norms 4n, 4 per output."""
    x1 = _argument(call, 0, "x1")
    x2 = _argument(call, 1, "x2")
    n = prod(broadcast_shapes(x1.shape, x2.shape))
    if isinstance(call.module, nn.CosineSimilarity):
        return Work(vector_flops=6 * n + 4 * _output(call).numel())
    return Work(vector_flops=4 * n)


@layer_formula("TripletMarginLoss TripletMarginWithDistanceLoss")
def triplet_margin_loss(call: ModuleCall) -> Work | None:
    """Max(0, d(a, p) − d(a, n) + margin), with swap the lesser of d(a, n) and d(p, n).

    A distance is 4n; one that is a module is counted as that module, a function is unknown.
    """
    layer: Any = call.module
    function = getattr(layer, "distance_function", None)
    if function is not None and not isinstance(function, nn.Module):
        return None
    distances = 3 if layer.swap else 2
    of_distances = distances * 4 * _input(call).numel() if function is None else 0
    per_row = 1 + distances + _sum(layer, "reduction")
    return Work(vector_flops=of_distances + per_row * _rows(call))


@layer_formula("GaussianNLLLoss")
def gaussian_nll_loss(call: ModuleCall) -> Work:
    """½·(log v + (x − y)²/v): 5n, and per variance a check, a clamp and a log; + n in full."""
    layer: Any = call.module
    n = _input(call).numel()
    variance = _argument(call, 2, "var")
    variances = variance.numel() if isinstance(variance, Tensor) else n
    return Work(vector_flops=3 * variances + (5 + _sum(layer, "full reduction")) * n)


@layer_formula("NLLLoss CrossEntropyLoss LinearCrossEntropyLoss")
def negative_log_likelihood(call: ModuleCall) -> Work | None:
    """Per target −w·x and its reduction; a weighted mean sums the weights.

    Cross-entropy first does log-softmax, 5n, and with a linear head the product before that. Its
    class probabilities and label smoothing are left out: unknown. So is a head whose options let
    it make gradients in forward.
    """
    layer: Any = call.module
    x = _input(call)
    target = _argument(call, 1, "target")
    if target.is_floating_point() or getattr(layer, "label_smoothing", 0):
        return None
    each = 1 + _sum(layer, "weight reduction")
    if layer.weight is not None and layer.reduction == "mean":
        each += 1
    vector = each * target.numel()
    if isinstance(layer, nn.NLLLoss):
        return Work(vector_flops=vector)
    head = getattr(layer, "linear", None)
    if head is None:
        return Work(vector_flops=vector + 5 * x.numel())
    if getattr(layer, "options", None) is not None and torch.is_grad_enabled():
        return None
    logits = x.numel() // head.in_features * head.out_features
    return Work(2 * logits * head.in_features, vector + (5 + _sum(head, "bias")) * logits)
