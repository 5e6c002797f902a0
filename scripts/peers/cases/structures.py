"""How models are put together: shared modules, odd inputs, caches, experts, language models."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from peers.case import Calls, Case, Subject, calling, randn, weight

LAYER = 2 * 4 * 16 * 16


def layer() -> nn.Module:
    """Return a linear layer, 16 → 16, without bias."""
    return nn.Linear(16, 16, bias=False)


def while_large(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call the layer until its result, halved each time, is below one: four times for ones."""
    size = 8.0
    while float(size * x.abs().max()) >= 1.0:
        x = m.layer(x) * 0 + 1
        size = size / 2
    return x


def cached_step() -> Subject:
    """Return one decoding step of attention: a new position after eight that are cached."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = m.project(x).chunk(3, -1)
        keys = torch.cat([m.keys, k], 1)
        values = torch.cat([m.values, v], 1)
        return m.out(F.scaled_dot_product_attention(q, keys, values))

    held = {"keys": torch.randn(2, 8, 16), "values": torch.randn(2, 8, 16)}
    model = Calls(
        forward, project=nn.Linear(16, 48, bias=False), out=nn.Linear(16, 16, bias=False), **held
    )
    return calling(model, randn(2, 1, 16))


def growing_cache() -> Subject:
    """Return a model that keeps what it was called with, called with a prompt of four."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        m.cache.append(m.project(x))
        past = torch.cat(m.cache, 1)
        return (x @ past.transpose(1, 2)).softmax(-1) @ past

    return calling(Calls(forward, project=layer(), cache=[]), randn(1, 4, 16))


def routed() -> Subject:
    """Return four experts; each of 12 tokens goes to one of them, given by its number."""
    experts = nn.ModuleList(nn.Linear(16, 32, bias=False) for _ in range(4))

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.arange(12) % 4
        result = torch.zeros(12, 32)
        for number, expert in enumerate(m.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            result[rows] = expert(x[rows])
        return result

    return calling(Calls(forward, experts=experts), randn(12, 16))


def top_two() -> Subject:
    """Return a router over four experts, two of which each of 12 tokens goes to, by its scores."""
    experts = nn.ModuleList(nn.Linear(16, 32, bias=False) for _ in range(4))

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = m.router(x).softmax(-1).topk(2, dim=-1)
        result = torch.zeros(12, 32)
        for number, expert in enumerate(m.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                result.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
        return result

    return calling(
        Calls(forward, router=nn.Linear(16, 4, bias=False), experts=experts), randn(12, 16)
    )


def grouped() -> Subject:
    """Return a grouped product: rows 0-7, 8-15 and 16-31 of 32 meet a weight each."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.grouped_mm(x, m.weight, offs=torch.tensor([8, 16, 32], dtype=torch.int32))

    model = Calls(forward, weight=nn.Parameter(torch.randn(3, 16, 32).bfloat16()))
    return calling(model, randn(32, 16).bfloat16())


HF = "transformers.models.auto.modeling_auto"  # which imports what each of them needs
TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "num_key_value_heads": 2}  # fmt: skip


def llama(**more: Any) -> nn.Module:
    """Return a Llama of two layers: 32 wide, 4 heads of 8, 2 of them for keys and values."""
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, **more))


class Product(nn.Module):
    """A model that has nothing of its own."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Multiply the inputs."""
        return x @ y


def llama_prompt() -> Subject:
    """Return a prompt of ten tokens, without a cache."""
    return calling(llama(use_cache=False), input_ids=torch.arange(10)[None])


def llama_decode() -> Subject:
    """Return one token after eight that a DynamicCache holds."""
    import transformers

    model = llama().eval()
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None], past_key_values=cache, use_cache=True)
    return calling(model, input_ids=torch.tensor([[9]]), past_key_values=cache, use_cache=True)


def mixtral() -> Subject:
    """Return a Mixtral of two layers, 4 experts of which 2 serve each of ten tokens."""
    import transformers

    config = transformers.MixtralConfig(
        **TEXT, num_local_experts=4, num_experts_per_tok=2, use_cache=False
    )
    model = transformers.MixtralForCausalLM(config)
    return calling(model, input_ids=torch.arange(10)[None])


def bert() -> Subject:
    """Return a BERT of two layers, 32 wide, 4 heads, on 2 sequences of ten, with its pooler."""
    import transformers

    options = {name: size for name, size in TEXT.items() if "key_value" not in name}
    model = transformers.BertModel(transformers.BertConfig(**options))
    return calling(model, input_ids=torch.arange(20).view(2, 10))


def gpt2() -> Subject:
    """Return a GPT-2 of two layers, 32 wide, 4 heads, on ten tokens."""
    import transformers

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, use_cache=False)
    )
    return calling(model, input_ids=torch.arange(10)[None])


def of_tokens(tokens: int, keys: int, feed_forward: int) -> int:
    """Return the multiply-adds of one layer of the Llamas: projections, attention, feed-forward."""
    projections = tokens * (32 * 32 + 2 * 32 * 16 + 32 * 32)  # query, key and value, output
    attention = 2 * 4 * tokens * keys * 8
    return projections + attention + feed_forward


LLAMA_PROMPT = 2 * (2 * of_tokens(10, 10, 10 * 3 * 32 * 64) + 10 * 32 * 99)
LLAMA_DECODE = 2 * (2 * of_tokens(1, 9, 1 * 3 * 32 * 64) + 1 * 32 * 99)
MIXTRAL = 2 * (2 * of_tokens(10, 10, 10 * 32 * 4 + 2 * 10 * 3 * 32 * 64) + 10 * 32 * 99)
BERT = 2 * (2 * (20 * 4 * 32 * 32 + 2 * 2 * 4 * 10 * 10 * 8 + 20 * 2 * 32 * 64) + 2 * 32 * 32)
GPT2 = 2 * (2 * (10 * 4 * 32 * 32 + 2 * 4 * 10 * 10 * 8 + 10 * 2 * 32 * 128) + 10 * 32 * 99)
ANGLES_PROMPT = 2 * 4 * 10  # two FLOPs × 4 frequencies × 10 positions, if written as a product
ANGLES_DECODE = 2 * 4 * 1

CASES = [
    Case("shared_twice", 2 * LAYER, "one layer called twice: 2 × 4·16·16", needs="shared module",
         build=lambda: calling(Calls(lambda m, x: m.layer(m.layer(x)), layer=layer()),
                               randn(4, 16))),
    Case("shared_in_sequential", 3 * LAYER, "one layer three times in a Sequential",
         needs="shared module", build=lambda: calling(nn.Sequential(*[layer()] * 3), randn(4, 16))),
    Case("shared_other_sizes", LAYER + 2 * 9 * 16 * 16, "4 rows, then 9, through one layer",
         needs="shared module",
         build=lambda: calling(Calls(lambda m, x, y: (m.layer(x), m.layer(y)), layer=layer()),
                               randn(4, 16), randn(9, 16))),
    Case("loop", 5 * LAYER, "five calls in a loop", needs="shared module",
         build=lambda: calling(
             Calls(lambda m, x: [x := m.layer(x) for _ in range(5)][-1], layer=layer()),
             randn(4, 16))),
    Case("loop_by_value", 4 * LAYER, "8, 4, 2, 1: four calls until the value is small",
         needs="control flow by values", vector_flops=8 * 64,
         build=lambda: calling(Calls(while_large, layer=layer()), torch.ones(4, 16))),
    Case("tied_weights", 2 * 3 * 16 * 10, "3 rows × 16 × 10: the embedding's weight as a head",
         needs="functional linear",
         build=lambda: calling(
             Calls(lambda m, i: F.linear(m.table(i), m.table.weight), table=nn.Embedding(10, 16)),
             torch.tensor([1, 2, 3]))),
    Case("unused_module", LAYER, "one of two layers is called", needs="linear",
         build=lambda: calling(
             Calls(lambda m, x: m.used(x), used=layer(), unused=layer()), randn(4, 16))),
    Case("early_exit", LAYER, "the second layer is not reached", needs="control flow by values",
         build=lambda: calling(
             Calls(lambda m, x: m.second(m.first(x)) if bool(x.sum() > 1e9) else m.first(x),
                   first=layer(), second=layer()), randn(4, 16))),
    Case("module_dict", 2 * LAYER, "two layers by name", needs="linear",
         build=lambda: calling(
             Calls(lambda m, x: m.parts["b"](m.parts["a"](x)),
                   parts=nn.ModuleDict({"a": layer(), "b": layer()})), randn(4, 16))),
    Case("parameter_list", 3 * LAYER, "three weights in a list", needs="operator @",
         build=lambda: calling(
             Calls(lambda m, x: x @ m.weights[0] @ m.weights[1] @ m.weights[2],
                   weights=nn.ParameterList(weight(16, 16) for _ in range(3))), randn(4, 16))),
    Case("dict_input", LAYER, "4·16·16", needs="inputs in a dict",
         build=lambda: calling(Calls(lambda m, batch: m.layer(batch["x"]), layer=layer()),
                               {"x": randn(4, 16)})),
    Case("list_input", 2 * LAYER, "two inputs in a list", needs="inputs in a list",
         build=lambda: calling(
             Calls(lambda m, xs: [m.layer(x) for x in xs], layer=layer()),
             [randn(4, 16), randn(4, 16)])),
    Case("keyword_input", LAYER, "4·16·16", needs="keyword inputs",
         build=lambda: calling(Calls(lambda m, *, x, scale=None: m.layer(x), layer=layer()),
                               x=randn(4, 16))),
    Case("number_and_none_inputs", LAYER, "4·16·16", needs="inputs that are no tensors",
         vector_flops=64,
         build=lambda: calling(
             Calls(lambda m, x, scale, mask: m.layer(x) * scale, layer=layer()), randn(4, 16), 2.0,
             None)),
    Case("dict_output", LAYER, "4·16·16", needs="outputs in a dict",
         build=lambda: calling(Calls(lambda m, x: {"y": m.layer(x), "n": 3}, layer=layer()),
                               randn(4, 16))),
    Case("no_parameters", LAYER, "4·16·16", needs="a model without parameters",
         build=lambda: calling(Product(), randn(4, 16), randn(16, 16))),
    Case("frozen_parameter_argument", LAYER, "4·16·16",
         needs="a parameter as an argument",
         build=lambda: calling(
             Calls(lambda m, x: m.inner(x, m.weight), weight=weight(16, 16),
                   inner=Calls(lambda m, x, w: x @ w)), randn(4, 16))),
    Case("kv_cache_step", 2 * 2 * (16 * 48 + 2 * 9 * 16 + 16 * 16),
         "per sequence: 16·48, two products with nine positions of 16, 16·16",
         needs="fused attention", vector_flops=2 * 9 * 7, build=cached_step),
    Case("growing_cache", 2 * (4 * 16 * 16 + 2 * 4 * 4 * 16), "4·16·16, two products of 4·4·16",
         needs="a model that keeps state", vector_flops=16 * 6, build=growing_cache),
    Case("moe_routed", 2 * 12 * 16 * 32, "each of 12 tokens through one expert of 16 × 32",
         needs="control flow by values", build=routed),
    Case("moe_top_two", 2 * 12 * (16 * 4 + 2 * 16 * 32),
         "12 tokens × (router 16·4, two experts of 16·32)", needs="control flow by values",
         vector_flops=12 * 4 * 8 + 12 * 2 * 32 * 3, build=top_two),
    Case("moe_batched", 2 * 4 * 3 * 16 * 32, "4 experts × 3 tokens × 16 × 32", needs="einsum",
         build=lambda: calling(
             Calls(lambda m, x: torch.einsum("ecd,edh->ech", x, m.experts),
                   experts=weight(4, 16, 32)), randn(4, 3, 16))),
    Case("moe_grouped_mm", 2 * 32 * 16 * 32, "32 rows × 16 × 32, each with its group's weight",
         needs="grouped products", build=grouped),
    Case("llama_prompt", LLAMA_PROMPT,
         "two layers on 10 tokens: projections 32·(32+16+16+32), attention 2·4·10·10·8, "
         "feed-forward 3·32·64; head 32·99; 4 angles a token count if written as a product",
         needs="fused attention", also=(LLAMA_PROMPT + ANGLES_PROMPT,),
         vector_flops=10 * 2000, library=HF, build=llama_prompt),
    Case("llama_decode", LLAMA_DECODE, "as the prompt, for one token that sees nine",
         needs="fused attention", also=(LLAMA_DECODE + ANGLES_DECODE,), vector_flops=2000,
         library=HF, build=llama_decode),
    Case("mixtral", MIXTRAL, "as Llama; per token a router 32·4 and two experts of 3·32·64",
         needs="grouped products", also=(MIXTRAL + ANGLES_PROMPT,), vector_flops=10 * 3000,
         library=HF, build=mixtral),
    Case("bert", BERT,
         "two layers on 20 tokens: 4·32·32, attention 2·2·4·10·10·8, 2·32·64; pooler 2·32·32",
         needs="fused attention", vector_flops=20 * 3000, library=HF, build=bert),
    Case("gpt2", GPT2,
         "two layers on 10 tokens: 4·32·32, attention 2·4·10·10·8, 2·32·128; head 32·99",
         needs="layers of a library", vector_flops=10 * 3000, library=HF, build=gpt2),
]  # fmt: skip
