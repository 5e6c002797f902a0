"""Hold what changed between two runs against limits, as `flopprof diff --fail-…` does."""

import math
from dataclasses import dataclass
from typing import Any

from flopprof.report import noise
from flopprof.report.limits import Rule
from flopprof.units import clean_text, duration, percent, shorten_path, si, three_digits

NAMED = 3  # modules named in a message
_ALLOW = "--allow-unknown lets that pass"
_PATH_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class GrowthLimits:
    """What the second run may have more than the first; None where there is no limit.

    Attributes:
        slower_frac: By which share of the first's its time may be longer, noise aside.
        flops_frac: The same for its FLOPs.
        allow_unknown: Whether what is not known passes.
    """

    slower_frac: float | None = None
    flops_frac: float | None = None
    allow_unknown: bool = False


def judge_growth(comparison: dict[str, Any], limits: GrowthLimits) -> list[Rule]:
    """Return the rules that there are limits for, each judged; what is not known holds no rule.

    Args:
        comparison: What `diff.compared` returns.
        limits: The limits.
    """
    rules = []
    if limits.slower_frac is not None:
        rules.append(_slower(comparison["time"], limits.slower_frac, limits.allow_unknown))
    if limits.flops_frac is not None:
        rules.append(_more_flops(comparison, limits.flops_frac, limits.allow_unknown))
    return rules


def _slower(time: dict[str, Any], limit: float, allow_unknown: bool) -> Rule:
    name = f"--fail-slower {_share(limit)}"
    growth = time["change_frac"]
    significance = time["significance"]
    if math.isnan(growth):
        fact = f"{name}: the change of time is not known: {_missing(time)}"
        return _unknown(name, growth, fact, allow_unknown)
    before_us, after_us = (time[side]["median_us"] for side in ("before", "after"))
    fact = f"{name}: {duration(before_us)} → {duration(after_us)}, {signed(growth)}"
    if growth > limit and significance == noise.UNKNOWN:
        why = "fewer than two calls were timed, so whether it is noise is not known"
        return _unknown(name, growth, f"{fact}: {why}", allow_unknown)
    if growth > limit and significance == noise.SLOWER:
        return Rule(name, growth, fact)
    return Rule(name, growth, "", fact + _what_is_not_seen(time, limit))


def _missing(time: dict[str, Any]) -> str:
    untimed = [side for side in ("before", "after") if math.isnan(time[side]["median_us"])]
    if untimed:
        without = "neither run has" if len(untimed) == 2 else f"the run {untimed[0]} has not"
        return f"{without} one; flopprof run measures it"
    return f"one is of a {time['before']['of']}, the other of a {time['after']['of']}"


def _what_is_not_seen(time: dict[str, Any], limit: float) -> str:
    """Return what a rule that holds cannot promise: a pass says what it would not have seen."""
    if time["significance"] == noise.UNKNOWN:
        return "; fewer than two calls were timed, so the spread is not known"
    remark = f": {time['significance']}" if time["significance"] == noise.NOISE else ""
    visible_frac = time["visible_frac"]
    if math.isinf(visible_frac):
        remark += "; in these spreads no slowdown would be seen"
    elif visible_frac > limit:
        remark += f"; in these spreads one below {growth_text(visible_frac)} would not be seen"
    return remark


def _more_flops(comparison: dict[str, Any], limit: float, allow_unknown: bool) -> Rule:
    name = f"--fail-flops {_share(limit)}"
    before, after = comparison["totals"]["flops"]
    most_before, most_after = comparison["totals"]["flops_at_most"]
    growth = flops_growth(before, after)
    counted = f"{si(float(before), 'FLOPs')} → {si(float(after), 'FLOPs')}"
    fact = f"{name}: {counted}, {signed(growth)}{grown_modules(comparison['modules'])}"
    exceeds = after - before > limit * before
    is_exact = before == most_before and after == most_after
    surely_exceeds = after - most_before > limit * most_before  # whatever the unknown ones are
    surely_holds = most_after - before <= limit * before
    if surely_exceeds or (is_exact and exceeds):
        return Rule(name, growth, fact)
    if surely_holds or is_exact:
        return Rule(name, growth, "", fact)
    if exceeds:
        return Rule(name, growth, f"{fact}; some more are unknown")
    return _unknown(name, growth, f"{fact}; some are unknown", allow_unknown)


def flops_growth(before: float, after: float) -> float:
    """Return by which share FLOPs grew; infinite from nothing."""
    if before > 0:
        return float(after / before - 1)
    return math.inf if after > 0 else 0.0


def _unknown(name: str, value: float, fact: str, allowed: bool) -> Rule:
    """Return a rule on what is not known: broken unless that is allowed, and then it says so."""
    if allowed:
        return Rule(name, value, "", f"{fact} (allowed)")
    return Rule(name, value, f"{fact}; {_ALLOW}")


def grown_modules(modules: list[dict[str, Any]]) -> str:
    """Return "; grown: fc +1,280 FLOPs, …": those whose own FLOPs grew most; "" without any.

    Args:
        modules: As `diff.compared` lists them.
    """
    grown = []
    for module in modules:
        before, after = (0.0 if value is None else value for value in module["flops"])
        if after > before:
            grown.append((after - before, module))
    grown.sort(key=lambda pair: -pair[0])
    parts = []
    for amount, module in grown[:NAMED]:
        added = ", added" if module["change"] == "added" else ""
        parts.append(f"{_path(module['module_path'])} +{int(amount):,} FLOPs{added}")
    if len(grown) > NAMED:
        parts.append(f"and {len(grown) - NAMED} more")
    return f"; grown: {', '.join(parts)}" if parts else ""


def largest_modules(flops: dict[str, int], count: int) -> str:
    """Return "; largest: layer1 1,280 FLOPs, …": where there is nothing to compare with.

    Args:
        flops: Own FLOPs of each module, by its path.
        count: How many to name.
    """
    ordered = sorted(flops.items(), key=lambda pair: -pair[1])[:count]
    parts = [f"{_path(path)} {own:,} FLOPs" for path, own in ordered if own > 0]
    return f"; largest: {', '.join(parts)}" if parts else ""


def _path(path: str) -> str:
    return shorten_path(clean_text(path or "(model)"), _PATH_COLUMNS)


def signed(growth: float) -> str:
    """Return a growth as "+12.3 %", "−4.0 %" or "unchanged"; past the double as "× 2.50"."""
    if growth == 0:
        return "unchanged"
    if math.isinf(growth):
        return "from none"
    return growth_text(growth) if growth > 0 else f"−{share_text(-growth)}"


def growth_text(growth: float) -> str:
    """Return a growth as "+12.3 %", from the double on as "× 2.50"."""
    return f"+{share_text(growth)}" if growth < 1 else f"× {three_digits(1 + growth)}"


def share_text(share: float) -> str:
    """Return a share as a percentage that is no zero: 0.0000213 is "0.00213 %"."""
    return percent(share) if share >= 5e-4 else f"{three_digits(100 * share)} %"


def _share(limit: float) -> str:
    return f"{100 * limit:g}%"
