"""What a generation says: prefill and decode apart, as a block of the JSON object and as lines."""

import math
from typing import Annotated

from msgspec import Meta

from flopprof.jobfacts import Part
from flopprof.provenance import AtContext, Generation
from flopprof.report.answer import json_block
from flopprof.report.figures import figures, peak_bytes_per_s, peak_flops_per_s, rate, ratio
from flopprof.run import Run
from flopprof.units import duration, percent, si, three_digits

_NEARLY_ALL = 0.99  # of the parameters: with fewer in use, the report says how many
Amount = Annotated[float, Meta(ge=0)]


class PrefillFigures(Part, frozen=True, kw_only=True):
    """The call that reads the prompt, of the whole batch.

    Attributes:
        matmul_flops: FLOPs of contractions.
        flops: All FLOPs.
        wall_us: Median time of the call, which is the time to the first token; null in a count.
        tokens_per_s: Tokens of the prompt, of all examples, per second.
        mfu_frac: matmul_flops over that time, over the matmul ceiling.
        mbu_frac: Compulsory bytes of its ops over that time, over bandwidth.
    """

    matmul_flops: Amount
    flops: Amount
    wall_us: Amount
    tokens_per_s: Amount
    mfu_frac: Amount
    mbu_frac: Amount


class DecodeFigures(Part, frozen=True, kw_only=True):
    """One decoded token, the mean over the steps of a generation; null without a step.

    Attributes:
        matmul_flops: FLOPs of contractions for one token of one example.
        flops: All FLOPs of it.
        wall_us: Median time of a step, which gives every example a token: time per output token.
        tokens_per_s: Tokens of all examples per second.
        mfu_frac: The step's matmul FLOPs over its time, over the matmul ceiling.
        mbu_frac: Weights and cache, each read once, over the step's time, over bandwidth.
    """

    matmul_flops: Amount
    flops: Amount
    wall_us: Amount
    tokens_per_s: Amount
    mfu_frac: Amount
    mbu_frac: Amount


class GenerateFigures(Part, frozen=True, kw_only=True):
    """A prompt read and tokens generated after it.

    Attributes:
        prompt_len: Tokens of the prompt; of an encoder-decoder, those of the encoder.
        new_tokens: Tokens generated of each example; the first comes of the prefill.
        batch: Examples.
        kv_cache: Kind of cache: dynamic or static.
        by_context: One decoded token with so many tokens in the cache before it.
        kv_cache_bytes: The cache with prompt and new tokens in it, of the whole batch.
        weight_bytes_per_token: Weights that a step reads, each once: of an embedding the rows, of
            experts those that are chosen.
        active_parameters: Parameters that one token uses; less than parameters with experts.
        matmul_flops: FLOPs of contractions of the whole: prefill and every step.
        ttft_us: Time to the first token: that of the prefill.
        time_per_output_token_us: That of a step.
    """

    prompt_len: int
    new_tokens: int
    batch: int
    kv_cache: str
    prefill: PrefillFigures
    decode: DecodeFigures
    by_context: tuple[AtContext, ...]
    kv_cache_bytes: Amount
    weight_bytes_per_token: Amount
    active_parameters: Amount
    matmul_flops: Amount
    ttft_us: Amount
    time_per_output_token_us: Amount


@json_block("generate")
def generate_figures(run: Run) -> GenerateFigures | None:
    """A prompt and what is generated after it; null without --prompt-len."""
    facts = run.provenance.generate
    if facts is None:
        return None
    prefill = _prefill(run, facts)
    decode = _decode(run, facts)
    steps = facts.new_tokens - 1
    of_steps = facts.step_matmul_flops * steps if steps else 0.0
    return GenerateFigures(
        prompt_len=facts.prompt_len,
        new_tokens=facts.new_tokens,
        batch=facts.batch,
        kv_cache=facts.kv_cache,
        prefill=prefill,
        decode=decode,
        by_context=facts.by_context,
        kv_cache_bytes=facts.kv_cache_bytes,
        weight_bytes_per_token=facts.weight_bytes,
        active_parameters=facts.active_parameters,
        matmul_flops=prefill.matmul_flops + of_steps,
        ttft_us=prefill.wall_us,
        time_per_output_token_us=decode.wall_us,
    )


def _prefill(run: Run, facts: Generation) -> PrefillFigures:
    of_run = figures(run)
    wall_us = run.provenance.wall_us
    return PrefillFigures(
        matmul_flops=float(run.totals.matmul_flops),
        flops=float(run.totals.flops),
        wall_us=wall_us,
        tokens_per_s=rate(float(facts.batch * facts.prompt_len), wall_us),
        mfu_frac=of_run.mfu_frac,
        mbu_frac=of_run.mbu_frac,
    )


def _decode(run: Run, facts: Generation) -> DecodeFigures:
    step_us = facts.step_us.median if facts.step_us else math.nan
    read_bytes = facts.weight_bytes + facts.kv_read_bytes
    return DecodeFigures(
        matmul_flops=facts.step_matmul_flops / facts.batch,
        flops=facts.step_flops / facts.batch,
        wall_us=step_us,
        tokens_per_s=rate(float(facts.batch), step_us),
        mfu_frac=ratio(rate(facts.step_matmul_flops, step_us), peak_flops_per_s(run)),
        mbu_frac=ratio(rate(read_bytes, step_us), peak_bytes_per_s(run)),
    )


def generate_lines(run: Run) -> list[tuple[str, str]]:
    """Return the summary's lines on a generation; none without one."""
    of_run = generate_figures(run)
    if of_run is None:
        return []
    prefill = of_run.prefill
    text = (
        f"{of_run.batch} × {of_run.prompt_len} tokens, matmul {si(prefill.matmul_flops, 'FLOPs')}"
    )
    if prefill.wall_us > 0:
        text += f"; first token after {duration(prefill.wall_us)}"
    lines = [("Prefill", text + _rates(prefill))]
    decode = of_run.decode
    if of_run.new_tokens > 1:
        text = f"{of_run.new_tokens - 1} steps, matmul {si(decode.matmul_flops, 'FLOPs')} per token"
        if decode.wall_us > 0:
            text += f"; {duration(decode.wall_us)} per output token"
        lines.append(("Decode", text + _rates(decode)))
    contexts = ", ".join(
        f"{si(at.matmul_flops, 'FLOPs')} at {at.context}" for at in of_run.by_context
    )
    lines.append(("", f"one token by context: {contexts}"))
    text = f"cache {si(of_run.kv_cache_bytes, 'B')} ({of_run.kv_cache}) at the end; a step reads "
    text += f"{si(of_run.weight_bytes_per_token, 'B')} of weights"
    parameters = run.provenance.source.parameters or math.nan
    if of_run.active_parameters < _NEARLY_ALL * parameters:
        text += f"; {si(of_run.active_parameters, '')} active parameters"
    return [*lines, ("", text)]


def _rates(of_part: PrefillFigures | DecodeFigures) -> str:
    """Return rates as far as they are known."""
    parts = []
    if of_part.tokens_per_s > 0:
        parts.append(f"{three_digits(of_part.tokens_per_s)} tokens/s")
    for name, share in (("MFU", of_part.mfu_frac), ("MBU", of_part.mbu_frac)):
        if share > 0:
            parts.append(f"{name} {percent(share)}")
    return ", " + ", ".join(parts) if parts else ""
