"""Prefill and decode of language models, against counts by hand and against `generate` itself."""

import json
import math

import msgspec
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopprof
from flopprof.cli import main
from flopprof.errors import UsageError
from flopprof.provenance import Generation, Spread
from flopprof.report.generate import generate_figures, generate_lines
from flopprof.run import Run
from flopprof.tables import ROOFLINES
from tests.builders import make_run

transformers = pytest.importorskip("transformers")
WORDS = 99
WIDTH = 32
LAYERS = 2
HEADS = 4
HEAD_WIDTH = 8
KV_WIDTH = 2 * HEAD_WIDTH  # two heads of keys and values for four of queries
MLP_WIDTH = 64
SMALL = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "intermediate_size": MLP_WIDTH,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": WORDS, "d_model": WIDTH, "d_kv": HEAD_WIDTH, "d_ff": MLP_WIDTH, "num_layers": 2,
    "num_heads": HEADS, "decoder_start_token_id": 0,
}  # fmt: skip


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **options)).eval()


def mistral(window):
    config = transformers.MistralConfig(**SMALL, sliding_window=window)
    return transformers.MistralForCausalLM(config).eval()


def mixtral():
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config).eval()


def qwen2_moe():
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = transformers.Qwen2MoeConfig(**SMALL, **options, shared_expert_intermediate_size=16)
    return transformers.Qwen2MoeForCausalLM(config).eval()


def t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval()


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=WORDS, d_model=WIDTH, encoder_layers=2, decoder_layers=2, pad_token_id=0,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=MLP_WIDTH,
        decoder_ffn_dim=MLP_WIDTH, max_source_positions=20, max_target_positions=40,
        num_mel_bins=8, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def moonshine():
    config = transformers.MoonshineConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=MLP_WIDTH,
        encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
    )  # fmt: skip
    return transformers.MoonshineForConditionalGeneration(config).eval()


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=WIDTH, n_layer=1, n_head=HEADS, n_positions=16, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def bart():
    config = transformers.BartConfig(
        vocab_size=WORDS, d_model=WIDTH, encoder_layers=1, decoder_layers=1, pad_token_id=0,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=MLP_WIDTH,
        decoder_ffn_dim=MLP_WIDTH, max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


def deepseek():
    """One layer with experts; queries of 16 + 8 for each head, and values of 16."""
    config = transformers.DeepseekV3Config(
        **{**SMALL, "num_hidden_layers": 1, "num_key_value_heads": HEADS}, q_lora_rank=24,
        kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        moe_intermediate_size=16, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=0,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config).eval()


def figures_of(model, **options):
    return generate_figures(flopprof.count_flops(model, **options).run)


def by_context(figures):
    return {at.context: at.matmul_flops for at in figures.by_context}


# One token: queries and the output 32×32, keys and values 32×16 each; the MLP's three 32×64; after
# two layers 32×99. Two FLOPs per multiply-add.
LLAMA_LAYER = 2 * (2 * WIDTH * WIDTH + 2 * WIDTH * KV_WIDTH + 3 * WIDTH * MLP_WIDTH)
LLAMA_HEAD = 2 * WIDTH * WORDS


def test_a_decoded_token_counts_its_projections_and_all_keys_before_it():
    decoded = by_context(figures_of(llama(), prompt_len=1000, new_tokens=2))

    # Scores and their sum over values: 4 heads × 8 for each of context + 1 keys, twice.
    for context in (1, 64, 1000):
        attention = 2 * 2 * HEADS * HEAD_WIDTH * (context + 1)
        assert decoded[context] == LAYERS * (LLAMA_LAYER + attention) + LLAMA_HEAD


def test_a_prefill_computes_the_last_logits_alone():
    figures = figures_of(llama(), prompt_len=10, new_tokens=1)

    # Ten tokens through each layer; each attends to all ten, as counts do not know of a mask.
    attention = 2 * 2 * HEADS * HEAD_WIDTH * 10
    assert figures.prefill.matmul_flops == LAYERS * 10 * (LLAMA_LAYER + attention) + LLAMA_HEAD
    assert figures.matmul_flops == figures.prefill.matmul_flops
    assert math.isnan(figures.decode.matmul_flops)  # the only new token comes of the prefill


def test_a_window_bounds_the_keys_and_the_cache():
    figures = figures_of(mistral(window=16), prompt_len=40, new_tokens=4)

    decoded = by_context(figures)
    attention = 2 * 2 * HEADS * HEAD_WIDTH
    assert decoded[1] == LAYERS * (LLAMA_LAYER + attention * 2) + LLAMA_HEAD
    assert decoded[40] == LAYERS * (LLAMA_LAYER + attention * 16) + LLAMA_HEAD
    # Keys and values of the 15 tokens that a step can still see, of two layers, 4 B each.
    assert figures.kv_cache_bytes == 2 * LAYERS * KV_WIDTH * 15 * 4


def test_a_cache_holds_keys_and_values_of_its_own_heads():
    figures = figures_of(llama(), prompt_len=10, new_tokens=6, batch=3)

    # 16 tokens of three examples; two heads of keys and of values, not four.
    assert figures.kv_cache_bytes == 3 * 2 * LAYERS * KV_WIDTH * 16 * 4


def test_a_token_uses_two_of_four_experts_and_a_batch_more():
    figures = figures_of(mixtral(), prompt_len=4, new_tokens=2)

    # Beside Llama's projections and norms: a router 32×4, and two experts of three 32×64.
    attention = 2 * WIDTH * WIDTH + 2 * WIDTH * KV_WIDTH
    expert = 3 * WIDTH * MLP_WIDTH
    shared = LAYERS * (attention + 4 * WIDTH + 2 * WIDTH) + WIDTH + WIDTH * WORDS
    used = shared + LAYERS * 2 * expert
    assert figures.active_parameters == used + WIDTH * WORDS  # with the whole embedding
    assert figures.weight_bytes_per_token == 4 * (used + WIDTH)  # of which one row is read
    of_batch = figures_of(mixtral(), prompt_len=4, new_tokens=2, batch=2)
    # Two tokens may go to all four experts.
    expected = 4 * (shared + LAYERS * 4 * expert + 2 * WIDTH)
    assert of_batch.weight_bytes_per_token == expected


def test_weights_that_a_module_uses_itself_are_read_too():
    config = transformers.MambaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=1, state_size=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.MambaForCausalLM(config).eval()

    figures = figures_of(model, prompt_len=4, new_tokens=1)

    # Its convolution and dt_proj are never called: the mixer takes their weights.
    assert figures.active_parameters == sum(weight.numel() for weight in model.parameters())


def test_latent_keys_are_widened_again_for_every_token_before():
    figures = figures_of(deepseek(), prompt_len=64, new_tokens=2)

    # Queries 32×24 and 24×(4·24); latents 32×(16 + 8); the output (4·16)×32. Then for each of
    # context + 1 latents, as transformers computes it: keys and values 16×(4·(16 + 16)), scores
    # 4·24 and their sum over values 4·16. The router 32×8; two experts and one shared, 32×16.
    latents = WIDTH * 24 + 24 * 96 + WIDTH * 24 + 64 * WIDTH
    experts = WIDTH * 8 + 3 * 3 * WIDTH * 16
    for context in (1, 64):
        macs = latents + (16 * 128 + 96 + 64) * (context + 1) + experts + WIDTH * WORDS
        assert by_context(figures)[context] == 2 * macs
    # Each token leaves 16 + 8 numbers of 4 B in the layer's cache.
    assert figures.kv_cache_bytes == 66 * 24 * 4
    # Weights as above, the widening once, norms of 24, 16 and three of 32; embedding and head.
    weights = latents + 16 * 128 + experts + 24 + 16 + 3 * WIDTH
    assert figures.active_parameters == weights + 2 * WIDTH * WORDS


def test_an_encoder_reads_its_sound_and_the_decoder_the_prompt():
    figures = figures_of(whisper(), prompt_len=4, new_tokens=8, batch=2)

    # A step's layer: six of 32×32 for queries, keys, values and output of its own attention, and
    # for queries and output of that to the sound; its MLP of two 32×64; 20 frames to attend to.
    layer = 2 * (6 * WIDTH * WIDTH + 2 * WIDTH * MLP_WIDTH)
    for context in (1, 4, 12):
        attention = 2 * 2 * WIDTH * (context + 1 + 20)
        assert by_context(figures)[context] == 2 * (layer + attention) + LLAMA_HEAD
    # Keys and values of two layers, for two examples: 12 tokens and 20 frames.
    assert figures.kv_cache_bytes == 2 * 2 * 2 * WIDTH * (12 + 20) * 4


@pytest.mark.parametrize(("build", "samples"), [(whisper, (1, 8, 40)), (moonshine, (1, 16_000))])
def test_a_sound_and_its_words_are_what_generate_computes(build, samples):
    model = build()
    model.set_attn_implementation("eager")  # whose products FlopCounterMode sees
    figures = figures_of(model, prompt_len=4, new_tokens=6)
    settings = model.generation_config
    settings.eos_token_id = None
    sound = torch.randn(samples)
    words = torch.full((1, 4), model.config.decoder_start_token_id)  # else it is put before them

    # Whisper's own generate, of several segments, adds words of its own: that of every model.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformers.GenerationMixin.generate(
            model, sound, decoder_input_ids=words, max_new_tokens=6,
            do_sample=False,
        )  # fmt: skip

    assert figures.matmul_flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (llama, {}),
        (llama, {"kv_cache": "static"}),
        (llama, {"batch": 2}),
        (lambda: mistral(window=8), {}),
        (qwen2_moe, {}),
        (deepseek, {}),
        (gpt2, {}),
        (bart, {"batch": 2}),
        (t5, {}),
    ],
)
def test_prefill_and_steps_are_what_generate_does(build, options):
    model = build()
    model.set_attn_implementation("eager")  # whose products FlopCounterMode sees
    if getattr(model.config, "_experts_implementation", None):
        model.set_experts_implementation("eager")
    figures = figures_of(model, prompt_len=6, new_tokens=6, **options)
    settings = model.generation_config
    settings.eos_token_id = None
    settings.pad_token_id = 0
    ids = torch.randint(3, WORDS, (options.get("batch", 1), 6))
    cache = {"cache_implementation": "static"} if "kv_cache" in options else {}

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **cache
        )

    assert figures.matmul_flops == counter.get_total_flops()


def test_steps_are_timed_and_the_model_is_left_as_it_was():
    model = llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = vars(model.config).copy()

    run = flopprof.profile(
        model, prompt_len=8, new_tokens=3, repeats=2, traces=1, ceilings=False, warmup=0
    )

    figures = generate_figures(run)
    assert figures.ttft_us == figures.prefill.wall_us == run.provenance.wall_us
    assert figures.decode.wall_us > 0
    assert run.provenance.generate is not None
    assert run.provenance.generate.timed_steps == 4  # two steps, twice
    assert vars(model.config) == settings
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rates_are_of_the_step_and_of_the_whole_batch():
    facts = Generation(
        prompt_len=10,
        new_tokens=5,
        batch=2,
        kv_cache="dynamic",
        step_matmul_flops=4_000.0,
        step_flops=6_000.0,
        step_us=Spread(median=100.0),
        kv_read_bytes=200.0,
        weight_bytes=800.0,
    )
    roof = {
        "dtype": "float32", "unit": "tensor", "memory_level": "DRAM", "peak_flops_per_s": 1e9,
        "peak_bytes_per_s": 1e8, "kind": "measured", "source": "by hand", "valid": True,
    }  # fmt: skip
    run = make_run(wall_us={"median": 50.0})
    run = run.replaced(
        provenance=msgspec.structs.replace(run.provenance, generate=facts),
        rooflines=ROOFLINES.from_rows([roof]),
    )

    decode = generate_figures(run).decode

    assert decode.matmul_flops == 2_000  # 4,000 for two examples
    assert decode.flops == 3_000
    assert decode.tokens_per_s == pytest.approx(20_000)  # 2 in 100 µs
    assert decode.mfu_frac == pytest.approx(0.04)  # 4,000 / 100 µs = 4e7 of 1e9
    assert decode.mbu_frac == pytest.approx(0.1)  # 1,000 B / 100 µs = 1e7 of 1e8
    assert generate_figures(run).prefill.tokens_per_s == pytest.approx(400_000)  # 20 in 50 µs


def test_a_folder_is_counted_without_its_weights_and_saved_as_json(tmp_path, capsys):
    mixtral().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["MixtralForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))

    arguments = ["count", str(tmp_path), "--prompt-len", "8", "--new-tokens", "3", "--json"]
    assert main(arguments) == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["device"] == "meta"
    assert answer["input"].startswith("use_cache=True, input_ids=1x8:int64")
    generate = answer["generate"]
    assert generate["prefill"]["matmul_flops"] == answer["matmul_flops"]
    assert generate["decode"]["wall_us"] is None
    assert [at["context"] for at in generate["by_context"]] == [1, 8, 11]


def test_a_generation_is_saved_with_its_run(tmp_path):
    run = flopprof.count_flops(llama(), prompt_len=4, new_tokens=2).run

    run.save(tmp_path / "llama.flopprof")

    loaded = Run.load(tmp_path / "llama.flopprof")
    assert loaded.provenance.generate == run.provenance.generate
    assert dict(generate_lines(loaded))["Decode"].startswith("1 steps, matmul 44.")


def test_one_token_without_a_cache_is_said_to_be_a_decode():
    ids = torch.ones(1, 1, dtype=torch.int64)

    alone = flopprof.count_flops(llama(), kwargs={"input_ids": ids}).run
    several = flopprof.count_flops(llama(), kwargs={"input_ids": ids.repeat(1, 2)}).run

    assert "a decode step with an empty cache" in " ".join(alone.provenance.warning_texts)
    assert several.provenance.warnings == ()


def test_a_prompt_longer_than_the_model_is_made_for_is_said():
    run = flopprof.count_flops(llama(), prompt_len=2040, new_tokens=16).run

    text = "prompt and new tokens are 2056, and the model is made for 2048"
    assert text in run.provenance.warning_texts[0]


@pytest.mark.parametrize(
    ("build", "prompt_len", "new_tokens", "contexts"),
    [
        # 16 positions: the last token is not read, and a step reads the one behind its context.
        (gpt2, 12, 5, [1, 12, 15]),
        (gpt2, 16, 1, [1, 15]),
        (bart, 16, 16, [1, 15]),
        (whisper, 36, 5, [1, 36, 39]),
    ],
)
def test_a_table_of_positions_is_used_to_its_last_row(build, prompt_len, new_tokens, contexts):
    run = flopprof.count_flops(build(), prompt_len=prompt_len, new_tokens=new_tokens).run

    assert [at.context for at in generate_figures(run).by_context] == contexts
    assert "made for" not in " ".join(run.provenance.warning_texts)


def test_the_cache_has_room_for_a_last_token_without_a_position():
    figures = figures_of(gpt2(), prompt_len=12, new_tokens=5)

    assert figures.kv_cache_bytes == 2 * WIDTH * 17 * 4  # keys and values of one layer


def test_a_model_that_generates_without_a_cache_is_told_of():
    model = llama(use_cache=False)

    run = flopprof.count_flops(model, prompt_len=8, new_tokens=2).run

    assert "use_cache: false" in run.provenance.warning_texts[0]


@pytest.mark.parametrize(
    ("build", "prompt_len", "new_tokens", "said"),
    [
        (gpt2, 15, 3, "prompt and new tokens are 18, and the model is made for 16: it has no"),
        (bart, 17, 1, "the prompt is 17, and the encoder is made for 16: it has no position"),
        (bart, 4, 17, "new tokens of the decoder are 18, and the model is made for 16: it has no"),
        (whisper, 39, 3, "prompt and new tokens are 42, and the model is made for 40: it has no"),
    ],
)
def test_positions_beyond_a_table_of_them_are_refused(build, prompt_len, new_tokens, said):
    with pytest.raises(UsageError, match=said):
        flopprof.count_flops(build(), prompt_len=prompt_len, new_tokens=new_tokens)


def test_the_last_position_of_a_table_is_used():
    # 15 tokens and one decoded are 16; the other new token is read by nothing.
    assert figures_of(gpt2(), prompt_len=15, new_tokens=2).decode.matmul_flops > 0
    assert figures_of(bart(), prompt_len=16, new_tokens=8).decode.matmul_flops > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"new_tokens": 4}, "--new-tokens is given without --prompt-len"),
        ({"kv_cache": "static"}, "--kv-cache is given without --prompt-len"),
        ({"prompt_len": 0}, "--prompt-len is 0"),
        ({"prompt_len": 4, "new_tokens": 0}, "--new-tokens is 0"),
        ({"prompt_len": 4, "kv_cache": "paged"}, "knows no 'paged'"),
        ({"prompt_len": 4, "train": True}, "--prompt-len and --train are both given"),
        ({"prompt_len": 4, "input": "1x8"}, "--prompt-len and --input are both given"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        flopprof.count_flops(nn.Linear(2, 2), **options)


def test_what_does_not_generate_is_refused():
    bert = transformers.BertConfig(**{k: v for k, v in SMALL.items() if "key_value" not in k})
    patches = transformers.Pix2StructConfig(
        text_config={"vocab_size": WORDS, "hidden_size": 16, "d_ff": 16, "num_layers": 1},
        vision_config={"hidden_size": 16, "d_ff": 16, "num_hidden_layers": 1},
    )

    for model in (nn.Linear(2, 2), transformers.BertForMaskedLM(bert)):
        with pytest.raises(UsageError, match="that generate, and"):
            flopprof.count_flops(model, prompt_len=4)
    with pytest.raises(UsageError, match="reads flattened_patches, no input_ids"):
        flopprof.count_flops(transformers.Pix2StructForConditionalGeneration(patches), prompt_len=4)
    with pytest.raises(UsageError, match="prompt_len makes the inputs"):
        flopprof.count_flops(llama(), (1, 8), prompt_len=4)
