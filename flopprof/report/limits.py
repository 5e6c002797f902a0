"""Hold a run against limits, as `flopprof check` does: one rule each, and JUnit XML of them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from flopprof.errors import UsageError
from flopprof.judge.verdicts import VERDICTS
from flopprof.report.memory import memory
from flopprof.report.noise import timed_of
from flopprof.run import Run
from flopprof.units import UNKNOWN, clean_text, duration, percent, si


class Rule(NamedTuple):
    """One limit, its value in the run, and how that breaks it: '' where it holds.

    `note` is what is to be said of a rule that holds: what it does not promise.
    """

    name: str
    value: float
    broken: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run must keep to; None where there is no limit.

    Attributes:
        min_coverage_frac: Least share of time whose FLOPs are known.
        max_unknown_frac: Largest share of time whose FLOPs are not.
        max_gflops: Most FLOPs, in 10⁹; those that are unknown count with their bound.
        max_ms: Longest median time of a call, or of a profiler step.
        min_mfu_frac: Least model FLOPs utilisation.
        max_memory_bytes: Most memory of a call at one time.
        allow_unknown: Whether what is not known passes, other than coverage.
        no_verdicts: Verdicts that no site may have.
    """

    min_coverage_frac: float | None = None
    max_unknown_frac: float | None = None
    max_gflops: float | None = None
    max_ms: float | None = None
    min_mfu_frac: float | None = None
    max_memory_bytes: float | None = None
    allow_unknown: bool = False
    no_verdicts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UsageError` where a limit is none."""
        fractions = {
            "--min-coverage": self.min_coverage_frac,
            "--max-unknown-frac": self.max_unknown_frac,
            "--min-mfu": self.min_mfu_frac,
        }
        for option, value in fractions.items():
            if value is not None and not 0 <= value <= 1:
                remedy = "give a fraction between 0 and 1: 0.95"
                raise UsageError(f"{option} is {value}", remedy=remedy)
        for option, value in {"--max-gflops": self.max_gflops, "--max-ms": self.max_ms}.items():
            if value is not None and not value >= 0:
                raise UsageError(f"{option} is {value}", remedy="give 0 or more")
        for verdict in self.no_verdicts:
            if verdict not in VERDICTS:
                remedy = "known: " + ", ".join(VERDICTS)
                raise UsageError(f"there is no verdict {verdict!r}", remedy=remedy)


def share_of(option: str, text: str | None) -> float | None:
    """Return the fraction that "5%", "0.05" or "0" says; None for None.

    Raises:
        UsageError: It says none, a negative one, or more than 1 without "%", such as 5.
    """
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    is_percent = number != text.strip()
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf or (value > 1 and not is_percent):
        remedy = f"give a share: {option} 5%, which is 0.05"
        raise UsageError(f"{option} is {clean_text(text)}", remedy=remedy)
    return value / 100 if is_percent else value


def judge_limits(run: Run, limits: Limits) -> list[Rule]:
    """Return the rules that there are limits for, each judged: what is not known holds no rule.

    Raises:
        UsageError: There is no limit.
    """
    rules = _coverage_rules(run, limits)
    if limits.max_gflops is not None:
        name = f"--max-gflops {limits.max_gflops:g}"
        rules.append(Rule(name, float(run.totals.flops) / 1e9, _too_much(name, run, limits)))
    rules += _measured_rules(run, limits)
    for verdict in dict.fromkeys(limits.no_verdicts):
        rules.append(_verdict_rule(run, verdict))
    if not rules:
        raise UsageError("no rule was given", remedy="flopprof check --help lists them")
    return rules


def _coverage_rules(run: Run, limits: Limits) -> list[Rule]:
    rules = []
    covered = run.totals.coverage_frac
    whole = "time"
    if math.isnan(covered):  # a pure count
        covered = run.totals.coverage_calls_frac
        whole = "calls"
    unknown = 1 - covered
    if limits.min_coverage_frac is not None:
        name = f"--min-coverage {limits.min_coverage_frac:g}"
        holds = covered >= limits.min_coverage_frac
        fact = f"{name}: FLOPs are known for {percent(covered)} of the {whole}"
        rules.append(Rule(name, covered, "" if holds else fact))
    if limits.max_unknown_frac is not None:
        name = f"--max-unknown-frac {limits.max_unknown_frac:g}"
        holds = unknown <= limits.max_unknown_frac
        fact = f"{name}: FLOPs are unknown for {percent(unknown)} of the {whole}"
        rules.append(Rule(name, unknown, "" if holds else fact))
    return rules


def _measured_rules(run: Run, limits: Limits) -> list[Rule]:
    """Return the rules on what was measured: time, utilisation, memory."""
    rules = []
    if limits.max_ms is not None:
        timed = timed_of(run)
        is_time_of_call = timed.of in ("call", "step")
        value = timed.median_us / 1e3 if is_time_of_call else math.nan
        name = f"--max-ms {limits.max_ms:g}"
        statement = f"a {timed.of or 'call'} takes {duration(value * 1e3)}"
        unknown = "the time of a call is not known: flopprof run measures it"
        rules.append(_measured(name, value, value <= limits.max_ms, (statement, unknown)))
    if limits.min_mfu_frac is not None:
        value = run.figures.mfu_frac
        name = f"--min-mfu {limits.min_mfu_frac:g}"
        statement = f"MFU is {percent(value)}"
        unknown = "MFU is not known: it needs a time and a ceiling (flopprof ceilings)"
        rules.append(_measured(name, value, value >= limits.min_mfu_frac, (statement, unknown)))
    if limits.max_memory_bytes is not None:
        value = peak_memory_bytes(run)
        name = f"--max-memory {si(limits.max_memory_bytes, 'B')}"
        statement = f"a call needs {si(value, 'B')} at its peak"
        unknown = "the peak of memory is not known: flopprof run and count tell it"
        rules.append(_measured(name, value, value <= limits.max_memory_bytes, (statement, unknown)))
    if not limits.allow_unknown:
        return rules
    return [_allowed(rule) if math.isnan(rule.value) else rule for rule in rules]


def _measured(name: str, value: float, holds: bool, words: tuple[str, str]) -> Rule:
    """Return a rule on a figure; `words` say what it is, and that it is not known."""
    statement, unknown = words
    if math.isnan(value):
        return Rule(name, value, f"{name}: {unknown}; --allow-unknown lets that pass")
    return Rule(name, value, "" if holds else f"{name}: {statement}")


def _allowed(rule: Rule) -> Rule:
    """Return a rule that what is not known has broken as one that holds, and says so."""
    return Rule(rule.name, rule.value, "", rule.broken.partition("; --allow-unknown")[0])


def peak_memory_bytes(run: Run) -> float:
    """Return the most memory that a call needs at one time; NaN where it is not known."""
    needed = memory(run)
    return math.nan if needed is None else needed.peak_bytes


def _too_much(name: str, run: Run, limits: Limits) -> str:
    """Return how the run's FLOPs break the limit: by what was counted, or by what may be more."""
    limit_flops = (limits.max_gflops or 0.0) * 1e9
    least = float(run.totals.flops)
    most = float(run.totals.flops_at_most)
    if not least <= limit_flops:
        return f"{name}: the run does at least {si(least, 'FLOPs')}"
    if limits.allow_unknown or most <= limit_flops:
        return ""
    bound = "their number has no bound" if math.isnan(most) else f"at most {si(most, 'FLOPs')}"
    return (
        f"{name}: {si(least, 'FLOPs')} were counted and some are unknown ({bound}); "
        "--allow-unknown lets them pass"
    )


def _verdict_rule(run: Run, verdict: str) -> Rule:
    """Return the rule that no site has this verdict."""
    name = f"--no-verdict {verdict}"
    sites = run.sites[run.sites["verdict"] == verdict]
    if not len(sites):
        return Rule(name, 0.0, "")
    first = sites.iloc[0]
    place = f"{first['op']} in {first['module_path'] or 'the model'}"
    share = percent(sites["time_share_frac"].sum(min_count=1))
    reason = " ".join(first["reason"].split())
    fact = f"{name}: {len(sites)} sites ({share} of the time), such as {place}: {reason}"
    return Rule(name, float(len(sites)), clean_text(fact))


def notes_on(rules: list[Rule]) -> str:
    """Return what rules that hold do not promise, to be said behind them."""
    return "".join(f"; {rule.note}" for rule in rules if rule.note and not rule.broken)


def note_on_unknown(run: Run, limits: Limits) -> str:
    """Return what a limit on the FLOPs cannot promise, where some are unknown."""
    totals = run.totals
    if limits.max_gflops is None or totals.flops_at_most == totals.flops:
        return ""
    most = si(totals.flops_at_most, "FLOPs").replace(UNKNOWN, "unknown")
    return f"; counted {si(float(totals.flops), 'FLOPs')}, with what is unknown at most {most}"


def junit(name: str, rules: list[Rule]) -> str:
    """Return the rules as a JUnit test suite in XML: one test case each, of the run `name`."""
    from xml.etree import ElementTree as Xml

    failures = len([rule for rule in rules if rule.broken])
    counts = {"tests": str(len(rules)), "failures": str(failures), "errors": "0"}
    suite = Xml.Element("testsuite", {"name": "flopprof check", **counts})
    for rule in rules:
        case = Xml.SubElement(suite, "testcase", classname=clean_text(name), name=rule.name)
        if rule.broken:
            Xml.SubElement(case, "failure", message=rule.broken, type="rule").text = rule.broken
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
