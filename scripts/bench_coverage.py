"""Measure which share of the ops that real models run has a formula or is known to be free.

usage: python scripts/bench_coverage.py [torchvision] [timm] [transformers] [op_db] [-o FILE.csv]

Counts every torchvision model, 150 timm models over all families, 15 transformers types with small
configurations and random weights, and every float sample of torch's own list of ops; prints per
source the ops, how many are unknown, and which. Needs the packages it is asked to measure.
"""

import argparse
import csv
import math
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flopprof

LONGEST_FAULT = 150  # letters
MOST_NAMED = 10  # sites that disagree

Model = tuple[str, nn.Module, Any, dict[str, Any]]


def main() -> None:
    """Count each source's models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=list(SOURCES))
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for source in args.sources:
        coverage = Coverage(source)
        for name, model, inputs, kwargs in SOURCES[source]():
            coverage.add(name, model, inputs, kwargs)
        rows.append(coverage.row())
        print("  ".join(f"{key}: {value}" for key, value in rows[-1].items()))
        for fault in coverage.faults:
            print(f"  not counted: {fault}")
    if args.output:
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


class Coverage:
    """The ops seen in one source's models, by verdict."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.models = 0
        self.sites: Counter[str] = Counter()
        self.unknown: dict[str, set[str]] = defaultdict(set)
        self.ops: set[str] = set()
        self.disagree: set[str] = set()
        self.faults: list[str] = []

    def add(self, name: str, model: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> None:
        """Count one model."""
        print(f"\r\x1b[K{self.source} {name}", end="", file=sys.stderr)
        try:
            run = flopprof.count_flops(model, inputs, kwargs=kwargs).run
        except Exception as error:  # a model that does not run is no fault of the formulas
            text = str(error)[:LONGEST_FAULT]
            self.faults.append(f"{name}: {type(error).__name__}: {text}")
            return
        self.models += 1
        # Sites without FLOPs and without a bound are unknown; those with a bound are counted so.
        self.ops |= set(run.sites["op"])
        for site in run.sites.itertuples(index=False):
            self.sites[site.verdict] += site.calls
            if math.isnan(site.flops) and math.isnan(site.flops_at_most):
                self.unknown[site.op].add(name)
            if site.verdict == "disagrees":
                self.disagree.add(f"{name}:{site.module_path}:{site.op}")

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        print("\r\x1b[K", end="", file=sys.stderr)
        unknown_frac = len(self.unknown) / max(len(self.ops), 1)
        return {
            "source": self.source,
            "models": self.models,
            "not_counted": len(self.faults),
            "ops": len(self.ops),
            "known_ops_frac": round(1 - unknown_frac, 4),
            "unknown": "; ".join(
                f"{op} ({len(models)}: {sorted(models)[0]})"
                for op, models in sorted(self.unknown.items())
            ),
            "disagrees": "; ".join(sorted(self.disagree)[:MOST_NAMED]),
        }


def torchvision_models() -> Iterator[Model]:
    """Yield every torchvision model with an input of its kind."""
    import torchvision

    for name in torchvision.models.list_models():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        quantised = {"quantize": True} if name.startswith("quantized_") else {}
        build = torchvision.models.get_model_builder(name)
        small = (
            {"weights_backbone": None} if "weights_backbone" in str(build.__annotations__) else {}
        )
        model = build(weights=None, **small, **quantised).eval()
        size = getattr(weights.transforms(), "crop_size", [224])
        size = size[0] if isinstance(size, list | tuple) else size
        if "vit_h_14" in name:
            size = 224
        module = build.__module__
        if "detection" in module:
            yield name, model, ([torch.rand(3, 320, 320)],), {}
        elif "video" in module:
            side = 224 if name == "s3d" or "mvit" in name or "swin" in name else 112
            yield name, model, (1, 3, 16, side, side), {}
        elif "optical_flow" in module:
            yield name, model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)), {}
        else:
            yield name, model, (1, 3, size, size), {}


MOST_OF_A_FAMILY = 20  # models


def timm_models(count: int = 150) -> Iterator[Model]:
    """Yield models of every timm family, evenly, at most `count`."""
    import timm

    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        families[timm.models.model_entrypoint(name).__module__].append(name)
    chosen: list[str] = []
    depth = 0
    while len(chosen) < count and depth < MOST_OF_A_FAMILY:
        for names in families.values():
            if depth < len(names) and len(chosen) < count:
                chosen.append(sorted(names, key=len)[depth])
        depth += 1
    for name in sorted(chosen):
        with torch.device("meta"):
            try:
                model = timm.create_model(name, pretrained=False).eval()
            except Exception:
                model = None
        if model is None:
            model = timm.create_model(name, pretrained=False).eval()
        yield name, model, (1, *model.pretrained_cfg.get("input_size", (3, 224, 224))), {}


TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def transformers_models() -> Iterator[Model]:
    """Yield 15 types of transformers models with small configurations and random weights."""
    import transformers as t

    ids = torch.randint(0, 99, (2, 16))
    image = torch.rand(1, 3, 32, 32)
    inner = TEXT | {"intermediate_size": 64}
    vision = {name: size for name, size in inner.items() if name != "vocab_size"}
    vision |= {"image_size": 32, "patch_size": 8}
    key_values = inner | {"num_key_value_heads": 2}
    yield "bert", t.BertModel(t.BertConfig(**inner)).eval(), ids, {}
    yield "roberta", t.RobertaModel(t.RobertaConfig(**inner)).eval(), ids, {}
    yield (
        "distilbert",
        t.DistilBertModel(
            t.DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        ).eval(),
        ids,
        {},
    )
    yield (
        "deberta_v2",
        t.DebertaV2Model(
            t.DebertaV2Config(**inner, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ).eval(),
        ids,
        {},
    )
    yield (
        "gpt2",
        t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)).eval(),
        ids,
        {},
    )
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(**key_values)).eval(), ids, {}
    yield "mistral", t.MistralForCausalLM(t.MistralConfig(**key_values)).eval(), ids, {}
    yield (
        "mixtral",
        t.MixtralForCausalLM(t.MixtralConfig(**key_values, num_local_experts=4)).eval(),
        ids,
        {},
    )
    yield "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(**key_values)).eval(), ids, {}
    yield "gemma", t.GemmaForCausalLM(t.GemmaConfig(**key_values, head_dim=8)).eval(), ids, {}
    yield (
        "mamba",
        t.MambaForCausalLM(
            t.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2)
        ).eval(),
        ids,
        {},
    )
    t5 = t.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    yield (
        "t5",
        t.T5ForConditionalGeneration(t5).eval(),
        (),
        {"input_ids": ids, "decoder_input_ids": ids},
    )
    yield "vit", t.ViTModel(t.ViTConfig(**vision)).eval(), image, {}
    clip = t.CLIPConfig(
        text_config=inner | {"eos_token_id": 98}, vision_config=vision, projection_dim=16
    )
    yield "clip", t.CLIPModel(clip).eval(), (), {"input_ids": ids, "pixel_values": image}
    whisper = t.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=20,
        max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    features = {"input_features": torch.rand(1, 20, 100), "decoder_input_ids": ids[:1]}
    yield "whisper", t.WhisperForConditionalGeneration(whisper).eval(), (), features


class Sample(nn.Module):
    """Calls one op on one sample of it."""

    def __init__(self, op: Any, sample: Any) -> None:
        super().__init__()
        self.op = op
        self.sample = sample

    def forward(self) -> Any:
        """Call the op."""
        return self.op(self.sample.input, *self.sample.args, **self.sample.kwargs)


SAMPLES = 5  # of an op, at most


def op_samples() -> Iterator[Model]:
    """Yield every op of torch's own test list on its float samples."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        if torch.float32 in op.dtypes:
            try:
                samples = list(op.sample_inputs("cpu", torch.float32))[:SAMPLES]
            except Exception:
                continue
            for sample in samples:
                yield f"{op.name}.{op.variant_test_name}", Sample(op, sample), (), {}


SOURCES = {
    "torchvision": torchvision_models,
    "timm": timm_models,
    "transformers": transformers_models,
    "op_db": op_samples,
}

if __name__ == "__main__":
    main()
