"""Read what a config.json says, of whatever types its values are, and refuse what is absurd."""

import re
from collections.abc import Mapping
from typing import Any

from flopprof.errors import LoadError
from flopprof.units import safe_text

MAX_REPEATED = 10_000  # layers, blocks or experts: no model has a tenth of it
MAX_SIZE = 100_000_000  # elements of one dimension: the largest vocabularies have a hundredth
MAX_MODULES = 300_000  # of one model; 60 µs and 3 kB each to build
_REPEATED = re.compile("(?i)(^|_)n?(um)?_?(hidden_)?(layers?|blocks?|experts?|stages?|depths?)$")
_SIZE = re.compile("(?i)size|dim|width|hidden|channels|d_model|d_ff|heads|features|position|embd")
_TEXT_LENGTH = 128  # tokens of an example text
_SAMPLES = 16_000  # a second of sound
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings", "n_positions")
DECODER_POSITIONS = ("max_target_positions", "max_decoder_position_embeddings", *POSITIONS)
_POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Models whose positions are counted from the one after the padding's."""


def check_config(config: Mapping[str, Any], path: str) -> None:
    """Refuse a configuration of which no computer could build the model, before any of it is.

    Raises:
        LoadError: A number in it is beyond every model's, or no number where one must be.
    """
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((name, item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            limit = MAX_REPEATED if _REPEATED.search(name) else MAX_SIZE
            if (_REPEATED.search(name) or _SIZE.search(name)) and not abs(value) <= limit:
                fact = f"{path}: its config.json has {safe_text(name)} = {safe_text(value, 40)}"
                raise LoadError(
                    f"{fact}, more than the {limit:,} that flopprof builds",
                    remedy="take the config.json that was saved with the model",
                )


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the configuration with that of a part of the model, such as text_config, over it."""
    part = config.get(name)
    return {**config, **part} if isinstance(part, dict) else dict(config)


def text(config: Mapping[str, Any], name: str) -> str:
    """Return a text; '' where there is none."""
    value = config.get(name)
    return value if isinstance(value, str) else ""


def number(config: Mapping[str, Any], *names: str, default: int) -> int:
    """Return the first positive whole number of these names."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 1 << 40:
            return int(value)
    return default


def image_size(config: Mapping[str, Any], default: int = 224) -> list[int]:
    """Return the sides of an image: a number, two of them, or {"height": …, "width": …}."""
    for name in ("image_size", "sample_size", "input_size"):
        value = config.get(name)
        if isinstance(value, dict):
            value = [value.get("height"), value.get("width")]
        if isinstance(value, list):
            sides = [side for side in value[-2:] if type(side) is int and side > 0]
            if len(sides) == 2:
                return sides
        elif type(value) is int and value > 0:
            return [value, value]
    return [default, default]


def model_inputs(main: str, config: Mapping[str, Any]) -> str | None:
    """Return the inputs that a model of transformers takes, as specs; None where not known.

    Args:
        main: Its `main_input_name`, such as "pixel_values".
        config: Its config.json.
    """
    language = section(config, "text_config")
    vision = section(config, "vision_config")
    last_word = number(language, "vocab_size", default=1000) - 1
    ids = f"1x{_length(language, *POSITIONS)}:int64:0-{last_word}"
    channels = number(vision, "num_channels", "in_channels", default=3)
    pixels = f"pixel_values=1x{channels}x{'x'.join(map(str, image_size(vision)))}"
    inputs = {
        "input_ids": f"input_ids={ids}",  # without a mask all count
        "pixel_values": pixels,
        "input_features": f"input_features=1x{_spectrum(config)}",
        "input_values": f"input_values=1x{_SAMPLES}",
    }
    if config.get("model_type") == "audio-spectrogram-transformer":  # frames, not samples
        frames = number(config, "max_length", default=1024)
        inputs["input_values"] = (
            f"input_values=1x{frames}x{number(config, 'num_mel_bins', default=128)}"
        )
    specs = inputs.get(main)
    parts = (config.get("text_config"), config.get("vision_config"))
    if all(isinstance(part, dict) for part in parts):
        specs = f"input_ids={ids} {pixels}"
    if specs and config.get("is_encoder_decoder") is True:
        length = _length(language, *DECODER_POSITIONS)
        specs += f" decoder_input_ids=1x{length}:int64:0-{last_word}"
    return specs


def _length(config: Mapping[str, Any], *names: str) -> int:
    """Return how many tokens to give: 128, or as many as the model has positions for if fewer."""
    longest = number(config, *names, default=_TEXT_LENGTH)
    if config.get("model_type") in _POSITIONS_AFTER_PADDING:
        longest -= number(config, "pad_token_id", default=1) + 1
    return max(1, min(_TEXT_LENGTH, longest))


def _spectrum(config: Mapping[str, Any]) -> str:
    """Return the size of a sound's spectrum: bins by frames, or frames by channels."""
    positions = number(config, "max_source_positions", default=1500)
    if "input_feat_per_channel" in config:
        return f"{positions}x{number(config, 'input_feat_per_channel', default=80)}"
    return f"{number(config, 'num_mel_bins', default=80)}x{2 * positions}"
