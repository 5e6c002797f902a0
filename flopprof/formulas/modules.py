"""Formulas for the layers of `torch.nn` and torchvision, from attributes and tensor sizes.

ARCHITECTURE.md, "Counting rules", says what counts. Without a formula are layers whose values
decide (CTC, adaptive softmax, multi-label margin), and the transformer layers and models, whose
own work is functional.
"""

import inspect
from collections.abc import Callable
from math import inf, prod
from typing import Any

from torch import Tensor, broadcast_shapes, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from flopprof.formulas import MODULE_FORMULAS, ModuleCall, ModuleFormula, Work, module_formula

_INTERNALS = ("forward", "__call__", "_conv_forward", "_apply_instance_norm")
"""Methods that do a layer's arithmetic: a subclass that overrides one is another layer."""
_DIMS = (1, 2, 3)


def canonical_name(cls: type) -> str:
    """Return the name a class is registered by: `torch.nn.Conv2d`, else its full module path."""
    if cls.__module__.startswith("torch.nn.modules.") and vars(nn).get(cls.__name__) is cls:
        return f"torch.nn.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def find_module_formula(module: nn.Module) -> ModuleFormula | None:
    """Return the formula of `module`'s class, or of the class whose forward it inherits.

    None for a forward of its own, also one set on the instance, and for weights that are
    computed on each call (parametrised, pruned, weight or spectral norm).
    """
    if "forward" in vars(module) or is_parametrized(module):
        return None
    pre_hooks = tuple(module._forward_pre_hooks.values())
    if any(type(hook).__module__.startswith("torch.nn.utils.") for hook in pre_hooks):
        return None
    cls = type(module)
    for base in cls.__mro__:
        formula = MODULE_FORMULAS.get(canonical_name(base))
        if formula is not None:
            same = all(getattr(cls, m, None) is getattr(base, m, None) for m in _INTERNALS)
            return formula if same else None
    return None


def _argument(call: ModuleCall, index: int, name: str) -> Any:
    """Return an argument of forward, given by position or by name; None if left out."""
    return call.args[index] if index < len(call.args) else call.kwargs.get(name)


def _input(call: ModuleCall) -> Tensor:
    """Return the first tensor argument of forward."""
    named = (call.kwargs.get("input"), *call.kwargs.values())
    return next(value for value in (*call.args, *named) if isinstance(value, Tensor))


def _output(call: ModuleCall) -> Tensor:
    """Return the tensor that came out, the first of several."""
    out = call.output[0] if isinstance(call.output, tuple | list) else call.output
    assert isinstance(out, Tensor)
    return out


def _elements(tensor: Tensor) -> int:
    """Return the elements whose arithmetic counts: none of an integer or boolean tensor."""
    return tensor.numel() if tensor.is_floating_point() or tensor.is_complex() else 0


def _nn(names: str) -> Callable[[ModuleFormula], ModuleFormula]:
    """Register a formula for the classes `names` of torch.nn."""
    return module_formula(*(f"torch.nn.{name}" for name in names.split()))


def _of_input(flops: Callable[[Any, int], int]) -> ModuleFormula:
    """Return the formula of a layer that does `flops(module, n)` on an input of n elements."""
    return lambda call: Work(vector_flops=flops(call.module, _elements(_input(call))))


def _has(module: Any, *names: str) -> int:
    """Return how many of the optional tensors `names` the module has."""
    return sum(getattr(module, name, None) is not None for name in names)


def _rows(call: ModuleCall) -> int:
    """Return the rows of the first input: all its axes but the last."""
    return prod(_input(call).shape[:-1])


def _reduces(module: Any) -> int:
    """Return the reduction's FLOPs per element of a loss: a sum or mean is 1."""
    return int(module.reduction != "none")


def _normalise(m: Any, n: int) -> int:
    """Return 5n (mean, subtract, square, sum, scale), + n with weight, + n with bias."""
    return (5 + _has(m, "weight", "bias")) * n


_PADS = [f"{k}Pad" for k in ("Zero", "Constant", "Reflection", "Replication", "Circular")]


@_nn(
    "Identity Sequential ModuleList ModuleDict ParameterList ParameterDict Flatten Unflatten Unfold"
    " PixelShuffle PixelUnshuffle ChannelShuffle MaxUnpool1d MaxUnpool2d MaxUnpool3d "
    + " ".join(f"{pad}{dims}d" for pad in _PADS for dims in _DIMS)
)
@module_formula("torchvision.ops.misc.Permute")
def nothing(_call: ModuleCall) -> Work:
    """Moves data, or only calls its children."""
    return Work()


for _names, _flops in {
    "ReLU ReLU6 Hardtanh LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid"
    " Softplus Sigmoid Tanh LogSigmoid Hardshrink Softshrink Threshold": lambda _, n: n,
    "GLU": lambda _, n: n,  # a sigmoid and a multiply for half of the elements
    "Fold": lambda _, n: n,  # each element is added to the image
    "Tanhshrink": lambda _, n: 2 * n,  # x − tanh x, composed in Python
    "Softsign": lambda _, n: 3 * n,  # x ÷ (|x| + 1), composed in Python
    "Softmax Softmax2d LogSoftmax": lambda _, n: 5 * n,  # max, subtract, exp, sum, divide
    "Softmin": lambda _, n: 6 * n,  # the same of −x
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout": lambda m, n: (
        2 * n * m.training  # mask, scale
    ),
    "LayerNorm GroupNorm": _normalise,
    # Running statistics fold, with the affine part, to one scale and one shift.
    "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm": lambda m, n: (
        2 * n if not m.training and m.running_mean is not None else _normalise(m, n)
    ),
    "InstanceNorm1d InstanceNorm2d InstanceNorm3d": lambda m, n: (
        2 * n if not m.training and m.track_running_stats else _normalise(m, n)
    ),
    "RMSNorm": lambda m, n: (3 + _has(m, "weight")) * n,  # square, sum, scale
    # Square, mean of `size` channels, scale, shift, power, divide.
    "LocalResponseNorm CrossMapLRN2d": lambda m, n: (m.size + 5) * n,
    "L1Loss MSELoss": lambda m, n: (2 + _reduces(m)) * n,  # |x − y| or (x − y)²
    # |d| < β ? ½d²/β : |d| − ½β: subtract, abs, compare; square, halve, divide; subtract.
    "SmoothL1Loss": lambda m, n: ((7 if m.beta else 2) + _reduces(m)) * n,
    # |d| ≤ δ ? ½d² : δ(|d| − ½δ): subtract, abs, compare; square, halve; subtract, multiply.
    "HuberLoss": lambda m, n: (7 + _reduces(m)) * n,
    "SoftMarginLoss": lambda m, n: (4 + _reduces(m)) * n,  # log1p(exp(−y·x))
    "HingeEmbeddingLoss": lambda m, n: (3 + _reduces(m)) * n,  # y = 1 ? x : max(0, δ − x)
    "MarginRankingLoss": lambda m, n: (5 + _reduces(m)) * n,  # max(0, −y·(x₁ − x₂) + margin)
    # −w·(y·log x + (1 − y)·log(1 − x))
    "BCELoss": lambda m, n: (8 + _has(m, "weight") + _reduces(m)) * n,
    # (1 − y)·x − w·logsigmoid x, where p makes w = 1 + (p − 1)·y.
    "BCEWithLogitsLoss": lambda m, n: (
        (4 + _has(m, "weight") + 3 * _has(m, "pos_weight") + _reduces(m)) * n
        + (m.pos_weight.numel() if _has(m, "pos_weight") else 0)
    ),
    # y·(log y − x), or eʸ·(y − x); the batch mean divides the sum once.
    "KLDivLoss": lambda m, n: (3 + _reduces(m)) * n + (m.reduction == "batchmean"),
    # eˣ − y·x or x − y·log(x + ε); in full, Stirling's y·log y − y + ½·log(2πy) where y > 1.
    "PoissonNLLLoss": lambda m, n: ((3 if m.log_input else 4) + 9 * m.full + _reduces(m)) * n,
}.items():
    _nn(_names)(_of_input(_flops))
module_formula("torchvision.models.convnext.LayerNorm2d")(_of_input(_normalise))
# The fold w ÷ √(var + ε), b − mean·w, is done on each call: 5 per channel.
module_formula("torchvision.ops.misc.FrozenBatchNorm2d")(
    _of_input(lambda m, n: 2 * n + 5 * m.weight.numel())
)


@module_formula("torchvision.ops.stochastic_depth.StochasticDepth")
def stochastic_depth(call: ModuleCall) -> Work:
    """In training, one multiply per element and one division per drawn number; else nothing."""
    module: Any = call.module
    x = _input(call)
    if not module.training or module.p == 0:
        return Work()
    drawn = len(x) if module.mode == "row" else 1
    return Work(vector_flops=x.numel() + drawn * (module.p < 1))


@_nn("Linear Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d")
def product(call: ModuleCall) -> Work:
    """Each output element sums in_features products, or in_channels ÷ groups × filter taps.

    Transposed, each input element goes into out_channels ÷ groups × filter taps. Bilinear,
    x₁ᵀ·W·x₂: in₁·in₂ products, then in₂.
    """
    m: Any = call.module
    out = _output(call)
    if isinstance(m, nn.Linear):
        multiply_adds = out.numel() * m.in_features
    elif isinstance(m, nn.Bilinear):
        multiply_adds = out.numel() * (m.in1_features * m.in2_features + m.in2_features)
    elif m.transposed:
        multiply_adds = _input(call).numel() * (m.out_channels // m.groups) * prod(m.kernel_size)
    else:
        multiply_adds = out.numel() * (m.in_channels // m.groups) * prod(m.kernel_size)
    parts = 2 if out.is_complex() else 1  # a complex multiply-add is 8 FLOPs, an add 2
    bias = parts * _elements(out) if m.bias is not None else 0
    return Work(matmul_flops=2 * parts**2 * multiply_adds, vector_flops=bias)


@_nn("Embedding EmbeddingBag")
def embedding(call: ModuleCall) -> Work | None:
    """A look-up; a bag adds (or compares) each element, and multiplies by per-sample weights.

    Unknown with max_norm, which rescales the distinct rows hit.
    """
    m: Any = call.module
    if m.max_norm is not None:
        return None
    each = 1 + (_argument(call, 2, "per_sample_weights") is not None)
    bag = isinstance(m, nn.EmbeddingBag)
    return Work(vector_flops=each * _input(call).numel() * m.embedding_dim if bag else 0)


def _window(size: Any, dims: int) -> int:
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    return prod(sizes * dims if len(sizes) == 1 else sizes)


def _adaptive(x: Tensor, out: Tensor, dims: int) -> int:
    """Return the elements of all windows: those of an axis are ⌊i·in/out⌋ … ⌈(i+1)·in/out⌉."""
    total = prod(x.shape[:-dims]) if _elements(x) else 0
    for size, windows in zip(x.shape[-dims:], out.shape[-dims:], strict=True):
        total *= sum(-(-(i + 1) * size // windows) - i * size // windows for i in range(windows))
    return total


def _register_pools(dims: int) -> None:
    fractional = f" FractionalMaxPool{dims}d" if dims > 1 else ""

    @_nn(f"MaxPool{dims}d AvgPool{dims}d{fractional}")
    def pool(call: ModuleCall) -> Work:
        """The window's size per output element."""
        module: Any = call.module
        return Work(vector_flops=_window(module.kernel_size, dims) * _elements(_output(call)))

    @_nn(f"LPPool{dims}d")
    def lp_pool(call: ModuleCall) -> Work | None:
        """Power n; per output the window, then sign, abs, relu, two multiplies, root.

        For p = ∞, abs n and the window per output.
        """
        module: Any = call.module
        if module.norm_type == -inf:
            return None
        each = _window(module.kernel_size, dims) + (0 if module.norm_type == inf else 6)
        return Work(vector_flops=_input(call).numel() + each * _output(call).numel())

    @_nn(f"AdaptiveMaxPool{dims}d AdaptiveAvgPool{dims}d")
    def adaptive_pool(call: ModuleCall) -> Work:
        """The sum of the real window sizes."""
        return Work(vector_flops=_adaptive(_input(call), _output(call), dims))


for _dims in _DIMS:
    _register_pools(_dims)


@_nn("Upsample UpsamplingBilinear2d UpsamplingNearest2d")
def upsample(call: ModuleCall) -> Work:
    """Per output 3 a lerp: linear 3, bilinear 9, trilinear 21; bicubic 35; nearest none."""
    module: Any = call.module
    x, out = _input(call), _output(call)
    if module.mode == "area":
        return Work(vector_flops=_adaptive(x, out, x.dim() - 2))
    each = {"linear": 3, "bilinear": 9, "trilinear": 21, "bicubic": 35}.get(module.mode, 0)
    return Work(vector_flops=each * _elements(out))


_CELLS = {"RNN": (1, 2, 2), "LSTM": (4, 13, 8), "GRU": (3, 11, 6)}
"""Gates, vector FLOPs and those of the biases, per hidden element and step."""


def _step(module: Any, kind: str, width: int, recurrent: int) -> Work:
    """Return one step: gates·H·(in + recurrent) multiply-adds, P·H more to project H to P."""
    gates, vector, biases = _CELLS[kind]
    hidden = module.hidden_size
    multiply_adds = gates * hidden * (width + recurrent)
    if recurrent != hidden:
        multiply_adds += hidden * recurrent
    return Work(2 * multiply_adds, (vector + biases * bool(module.bias)) * hidden)


def _register_cell(kind: str) -> None:
    @_nn(f"{kind}Cell")
    def recurrent_cell(call: ModuleCall) -> Work:
        """One step for each element of the batch."""
        module: Any = call.module
        step = _step(module, kind, module.input_size, module.hidden_size)
        batch = _input(call).numel() // module.input_size
        return Work(batch * step.matmul_flops, batch * step.vector_flops)

    @_nn(kind)
    def recurrent(call: ModuleCall) -> Work:
        """One step per position, layer and direction; a packed sequence has its real lengths.

        Dropout between layers in training is 2 per element handed on.
        """
        module: Any = call.module
        sequence = _argument(call, 0, "input")
        x = sequence.data if isinstance(sequence, PackedSequence) else sequence
        positions = x.numel() // module.input_size
        directions = 2 if module.bidirectional else 1
        handed_on = module.proj_size or module.hidden_size
        first = _step(module, kind, module.input_size, handed_on)
        later = _step(module, kind, directions * handed_on, handed_on)
        dropped = 2 * handed_on if module.training and module.dropout else 0
        more, steps = module.num_layers - 1, positions * directions
        return Work(
            steps * (first.matmul_flops + more * later.matmul_flops),
            steps * (first.vector_flops + more * (later.vector_flops + dropped)),
        )


for _kind in _CELLS:
    _register_cell(_kind)


@_nn("MultiheadAttention")
def multihead_attention(call: ModuleCall) -> Work:
    """In-projections, Q·Kᵀ, softmax, ·V and out-projection, with the projections' biases.

    Per score: softmax 5, scale 1, each mask tensor 1 (two are first added up), dropout in training
    2. Asked for its weights, it scales the query instead of the scores, and averaging the heads
    adds 1. bias_k and add_zero_attn each lengthen the keys by one.
    """
    m: Any = call.module
    bound = inspect.signature(nn.MultiheadAttention.forward).bind(m, *call.args, **call.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    key, need_weights = given["key"], given["need_weights"]
    embed = m.embed_dim
    queries = given["query"].numel() // embed  # batch × length
    keys = key.numel() // m.kdim  # batch × length
    key_length = key.shape[1 if m.batch_first and key.dim() == 3 else 0]
    key_length += _has(m, "bias_k") + bool(m.add_zero_attn)
    padding = given["key_padding_mask"] is not None
    # A causal hint stands in for the mask, unless a padding mask or the weights need the tensor.
    causal = given["is_causal"] and not padding and not need_weights
    masks = (given["attn_mask"] is not None and not causal) + padding

    scores = queries * m.num_heads * key_length
    multiply_adds = embed * (2 * queries * (embed + key_length) + keys * (m.kdim + m.vdim))
    vector = (5 + masks) * scores + (queries * embed if need_weights else scores)
    vector += scores if need_weights and given["average_attn_weights"] else 0
    vector += 2 * scores if m.training and m.dropout else 0
    vector += (queries + 2 * keys) * embed if m.in_proj_bias is not None else 0
    vector += queries * embed if m.out_proj.bias is not None else 0
    return Work(2 * multiply_adds, vector)


@_nn("CosineSimilarity PairwiseDistance")
def distance(call: ModuleCall) -> Work:
    """‖x₁ − x₂ + ε‖: 4n. x₁·x₂ ÷ (max(‖x₁‖, ε)·max(‖x₂‖, ε)): 2n, norms 4n, 4 per output."""
    x1, x2 = _argument(call, 0, "x1"), _argument(call, 1, "x2")
    n = prod(broadcast_shapes(x1.shape, x2.shape))
    cosine = isinstance(call.module, nn.CosineSimilarity)
    return Work(vector_flops=6 * n + 4 * _output(call).numel() if cosine else 4 * n)


@_nn("TripletMarginLoss TripletMarginWithDistanceLoss")
def triplet_margin_loss(call: ModuleCall) -> Work | None:
    """Max(0, d(a, p) − d(a, n) + margin), with swap the lesser of d(a, n) and d(p, n).

    A distance is 4n; one that is a module is counted as that module, a function is unknown.
    """
    m: Any = call.module
    n, swap, function = _input(call).numel(), bool(m.swap), getattr(m, "distance_function", None)
    if function is not None and not isinstance(function, nn.Module):
        return None
    distances = (2 + swap) * 4 * n if function is None else 0
    return Work(vector_flops=distances + (3 + swap + _reduces(m)) * _rows(call))


@_nn("GaussianNLLLoss")
def gaussian_nll_loss(call: ModuleCall) -> Work:
    """½·(log v + (x − y)²/v): 5n, and per variance a check, a clamp and a log; + n in full."""
    m: Any = call.module
    n, variance = _input(call).numel(), _argument(call, 2, "var")
    variances = variance.numel() if isinstance(variance, Tensor) else n
    return Work(vector_flops=3 * variances + (5 + bool(m.full) + _reduces(m)) * n)


@_nn("CosineEmbeddingLoss MultiLabelSoftMarginLoss MultiMarginLoss")
def loss_of_rows(call: ModuleCall) -> Work:
    """So much per element of the first input, and per row: see the comments."""
    m: Any = call.module
    if isinstance(m, nn.CosineEmbeddingLoss):
        # Three dot products; ε is added twice, multiply, root, divide, 1 − c, max(0, c − m), add.
        each, row = 6, 9
    elif isinstance(m, nn.MultiLabelSoftMarginLoss):
        # −(y·logsigmoid x + (1 − y)·logsigmoid(−x)), weight, and the mean over the classes.
        each, row = 9 + _has(m, "weight"), 1
    else:
        # Σ w·max(0, (margin − x_y) + x)^p ÷ C: add, max, power of two, weight, sum.
        each, row = 3 + (m.p == 2) + _has(m, "weight"), 2
    return Work(vector_flops=each * _input(call).numel() + (row + _reduces(m)) * _rows(call))


@_nn("NLLLoss CrossEntropyLoss LinearCrossEntropyLoss")
def negative_log_likelihood(call: ModuleCall) -> Work | None:
    """Per target −w·x and its reduction; a weighted mean sums the weights.

    Cross-entropy first does log-softmax, 5n, and with a linear head the product before that. Its
    class probabilities and label smoothing are left out: unknown.
    """
    m: Any = call.module
    x, target, weighted = _input(call), _argument(call, 1, "target"), _has(m, "weight")
    if target.is_floating_point() or getattr(m, "label_smoothing", 0):
        return None
    each = 1 + weighted + _reduces(m) + (weighted and m.reduction == "mean")
    vector = each * target.numel()
    if isinstance(m, nn.NLLLoss):
        return Work(vector_flops=vector)
    head = getattr(m, "linear", None)
    if head is None:
        return Work(vector_flops=vector + 5 * x.numel())
    logits = x.numel() // head.in_features * head.out_features
    return Work(2 * logits * head.in_features, vector + (5 + _has(head, "bias")) * logits)
