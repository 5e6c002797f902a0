"""Language models of transformers: the prompt's call, and the tokens decoded one by one after it.

The prompt's call, the prefill, is a run like any other. A step after it reads one token and the
cache that the calls before it have left; how many tokens these were is its context.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

from flopprof.capture.call import (
    SEED,
    Inputs,
    home,
)
from flopprof.errors import UsageError
from flopprof.model.configs import DECODER_POSITIONS, POSITIONS, model_inputs, number
from flopprof.model.inputs import InputSpec, make_inputs, parse_input, with_floats
from flopprof.model.resize import resized
from flopprof.settings import NEW_TOKENS, Settings

CACHES = ("cache", "past_key_values", "cache_params")
"""Names of a cache in calls and outputs, by version and kind of model."""

_ROWS_BEFORE = 2  # of a table of positions, before the first one: BART and its like keep them


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model that generates, and what it is to generate.

    Attributes:
        model: The model of transformers.
        prompt_len: Tokens of the prompt: the encoder's, where one reads words, else the decoder's.
        new_tokens: Tokens to generate.
        batch: Examples.
        is_static: Whether the cache is as long from the start as it ever gets.
    """

    model: Any
    prompt_len: int
    new_tokens: int
    batch: int
    is_static: bool

    @property
    def has_encoder(self) -> bool:
        """Whether the decoder attends to what an encoder made of words, a sound or a picture."""
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    @property
    def main_input(self) -> str:
        """The input that the encoder reads, or the decoder without one."""
        return str(getattr(self.model, "main_input_name", "input_ids"))

    @property
    def is_prompt_encoded(self) -> bool:
        """Whether an encoder reads the prompt, and the decoder begins with one token."""
        return self.has_encoder and self.main_input == "input_ids"

    @property
    def first_context(self) -> int:
        """Tokens in the decoder's cache after the prefill."""
        return 1 if self.is_prompt_encoded else self.prompt_len

    @property
    def last_context(self) -> int:
        """Tokens in it with every new token."""
        return self.first_context + self.new_tokens

    @property
    def rows_of_positions(self) -> int | None:
        """Rows of the decoder's table of positions; None where it computes any position."""
        longest = self.made_for
        part = self.model.get_decoder() if self.has_encoder else self.model
        return longest if longest and _has_row_per_position(part, longest) else None

    @property
    def made_for(self) -> int:
        """Tokens that the decoder is made for; 0 where its configuration does not say."""
        config = self.model.config.get_text_config(decoder=True).to_dict()
        return int(number(config, *DECODER_POSITIONS, default=0))

    @property
    def cache_name(self) -> str:
        """The argument by which the model takes its cache."""
        parameters = inspect.signature(self.model.forward).parameters
        return next((name for name in CACHES if name in parameters), "")

    def prefill(self, context: int) -> Inputs:
        """Return the inputs after whose call the decoder's cache holds `context` tokens."""
        kwargs: dict[str, Any] = {"use_cache": True}
        if not self.has_encoder:
            kwargs["input_ids"] = self._ids(context)
        else:
            kwargs |= self._read_by_encoder()
            kwargs["decoder_input_ids"] = self._ids(context)
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            kwargs["logits_to_keep"] = 1  # as generate does: the prompt's other logits are not used
        if self.is_static:
            kwargs[self.cache_name] = self._static_cache()
        return Inputs((), kwargs)

    def step(self, output: Any, token: Any, cache: Any) -> Inputs:
        """Return the inputs of a step with this cache, after a prefill with that output."""
        kwargs: dict[str, Any] = {"use_cache": True, self.cache_name: cache}
        if not self.has_encoder:
            return Inputs((), {"input_ids": token, **kwargs})
        kwargs["encoder_outputs"] = _encoded()(output.encoder_last_hidden_state)
        return Inputs((), {"decoder_input_ids": token, **kwargs})

    def token(self) -> Any:
        """Return one token for each example."""
        return self._ids(1)

    def cache_of(self, output: Any) -> Any:
        """Return the cache that a call has left.

        Raises:
            UsageError: It has left none.
        """
        cache = getattr(output, self.cache_name, None)
        if cache is None:
            fact = f"{type(self.model).__name__} leaves no cache to decode with"
            raise UsageError(fact, remedy="count its call alone: leave out --prompt-len")
        return cache

    def _ids(self, length: int) -> Any:
        config = self.model.config.get_text_config(decoder=True)
        words = getattr(config, "vocab_size", None) or 2
        spec = InputSpec((self.batch, length), "int64", None, 0, words - 1)
        tensors, _ = make_inputs([spec], device=home(self.model)[0], seed=SEED)
        return tensors[0]

    def encoder_specs(self) -> list[str]:
        """Return the sound or picture that the encoder takes, as specs; none if unknown."""
        config = self.model.config.to_dict()
        encoder = config.get("encoder")
        specs = model_inputs(self.main_input, encoder if isinstance(encoder, dict) else config)
        return [spec for spec in (specs or "").split() if spec.startswith(f"{self.main_input}=")]

    def _read_by_encoder(self) -> dict[str, Any]:
        if self.is_prompt_encoded:
            return {"input_ids": self._ids(self.prompt_len)}
        device, dtype = home(self.model)
        texts = resized(self.encoder_specs(), batch=self.batch, input_size=None)
        specs = [with_floats(parse_input(text), dtype or "float32") for text in texts]
        _, keyword_inputs = make_inputs(specs, device=device, seed=SEED)
        return keyword_inputs

    def _static_cache(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache, StaticCache

        # As generate makes it: the last new token is not read by any step.
        slots = self.last_context - 1
        cache = StaticCache(config=self.model.config, max_cache_len=slots)
        if not self.has_encoder:
            return cache
        return EncoderDecoderCache(cache, DynamicCache())  # the encoder's part never grows


@cache
def _encoded() -> Any:
    """Return the class of what an encoder leaves: of sounds some leave which of it counts, too."""
    from transformers.modeling_outputs import BaseModelOutput

    @dataclass
    class Encoded(BaseModelOutput):  # type: ignore[misc, unused-ignore]  # may be untyped
        attention_mask: Any = None

    return Encoded


def decoder_of(model: Any, settings: Settings) -> Decoder:
    """Return the model as one that generates what the settings ask for.

    Raises:
        UsageError: It is no model of transformers that generates words.
    """
    name = type(model).__name__
    if not _generates(model):
        raise UsageError(
            f"--prompt-len is for models of transformers that generate, and {name} does not",
            remedy="name one such as LlamaForCausalLM in config.json (architectures), or leave "
            "out --prompt-len",
        )
    decoder = Decoder(
        model,
        prompt_len=settings.prompt_len or 1,
        new_tokens=settings.new_tokens or NEW_TOKENS,
        batch=settings.batch or 1,
        is_static=settings.kv_cache == "static",
    )
    reads = decoder.main_input
    is_read = reads == "input_ids" or (decoder.has_encoder and decoder.encoder_specs())
    if not is_read or not decoder.cache_name:
        lacks = f"reads {reads}, no input_ids" if decoder.cache_name else "takes no cache"
        fact = f"--prompt-len is for models that write words with a cache: {name} {lacks}"
        raise UsageError(fact, remedy="leave out --prompt-len, and give --input")
    return decoder


def _generates(model: Any) -> bool:
    """Return whether this is a model of transformers, or a class made of one, that generates."""
    is_theirs = any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)
    return is_theirs and hasattr(model, "can_generate") and bool(model.can_generate())


def of_prompt(model: Any, settings: Settings, *, is_ours: bool) -> tuple[Inputs, list[str]]:
    """Return the prefill's inputs, and what is doubtful about them.

    Args:
        model: What is called with them.
        settings: They say which prompt.
        is_ours: Whether the model was loaded here, so that it may be set up for the meta device.

    Raises:
        UsageError: The model does not generate.
    """
    decoder = decoder_of(model, settings)
    if is_ours and home(model)[0] == "meta":
        choose_experts_by_shape(model)
    doubts = [*_beyond_positions(decoder), *_without_cache(model)]
    return decoder.prefill(decoder.first_context), doubts


def _beyond_positions(decoder: Decoder) -> list[str]:
    """Return what to say of more tokens than a model is made for, where it computes them all.

    Raises:
        UsageError: It has a table with a row for each position, and none for the last ones.
    """
    model = decoder.model
    positions = decoder.last_context - 1  # no step reads the last new token
    longest = decoder.made_for
    doubts = []
    if longest and positions > longest:
        whose = (
            "new tokens of the decoder" if decoder.is_prompt_encoded else "prompt and new tokens"
        )
        fact = f"{whose} are {decoder.last_context}, and the model is made for {longest}"
        if decoder.rows_of_positions is not None:
            raise _no_position(fact, longest)
        doubts.append(f"{fact} (max_position_embeddings)")
    if decoder.is_prompt_encoded:
        longest = number(model.config.to_dict(), *POSITIONS, default=0)
        if longest and decoder.prompt_len > longest:
            fact = f"the prompt is {decoder.prompt_len}, and the encoder is made for {longest}"
            if _has_row_per_position(model.get_encoder(), longest):
                raise _no_position(fact, longest)
            doubts.append(f"{fact} (max_position_embeddings)")
    return doubts


def _without_cache(model: Any) -> list[str]:
    """Return what to say of a model that generates without a cache unless it is told to use one."""
    if getattr(model.generation_config, "use_cache", None) is not False:
        return []
    return [
        "its configuration says use_cache: false, so generate computes all tokens anew for each; "
        "what is here is with a cache"
    ]


def _no_position(fact: str, longest: int) -> UsageError:
    remedy = f"ask for {longest} at most: a smaller --prompt-len or --new-tokens"
    return UsageError(f"{fact}: it has no position after that", remedy=remedy)


def _has_row_per_position(part: Any, longest: int) -> bool:
    """Return whether positions are learned: an embedding beside that of words, as long as they."""
    import torch

    words = part.get_input_embeddings()
    lengths = [
        layer.num_embeddings
        for layer in part.modules()
        if isinstance(layer, torch.nn.Embedding) and layer is not words
    ]
    return any(longest <= length <= longest + _ROWS_BEFORE for length in lengths)


def says_empty_cache(model: Any, inputs: Inputs) -> list[str]:
    """Return what to say of one token without a cache: it is no prompt, and no decoded token."""
    if not _generates(model) or getattr(model.config, "is_encoder_decoder", False):
        return []
    ids = inputs.kwargs.get("input_ids", inputs.args[0] if inputs.args else None)
    caches = [inputs.kwargs.get(name) for name in CACHES]
    is_one = getattr(ids, "ndim", 0) == 2 and ids.shape[1] == 1
    if not is_one or any(cache is not None for cache in caches):
        return []
    return [
        "the input is one token and no cache: a decode step with an empty cache, at context 0; "
        "for a step after a prompt give --prompt-len 128 in place of --input"
    ]


def choose_experts_by_shape(model: Any) -> None:
    """Have experts computed by a product that the meta device has for their element type.

    The same multiply-adds, one product for each token in place of one for each expert.
    """
    implementation = getattr(model.config, "_experts_implementation", None)
    if implementation == "grouped_mm" and home(model)[1] != "bfloat16":
        model.set_experts_implementation("batched_mm")
