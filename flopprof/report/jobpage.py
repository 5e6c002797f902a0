"""A job's section of the page: the heat map rank × step, and the table of collectives."""

from html import escape
from statistics import median

from flopprof.jobfacts import Step
from flopprof.provenance import TraceProvenance
from flopprof.report.job import Collective, Job, job, step_times, steps_of
from flopprof.run import Run
from flopprof.units import UNKNOWN, clean_text, duration, percent, si

MOST_RANKS = 64  # rows of the map that are read on one page
MOST_STEPS = 40
MOST_COLLECTIVES = 100
MOST_GROUPS = 64
MOST_MODULES = 40
MOST_SPANS = 8  # of numbers that follow each other
_FULL_FRAC = 0.25  # over or under the median: the strongest colour
_RED = "213, 62, 40"
_BLUE = "50, 110, 200"
_STRONGEST = 0.6  # of opacity: text on it can be read on a light page and on a dark one
_HEADER = (
    "collective",
    "group",
    "ranks",
    "size",
    "calls",
    "time",
    "median",
    "algorithm",
    "bus",
    "bus, shortest call",
    "link",
    "of its peak",
)


def job_section(run: Run) -> str:
    """Return the section as HTML that needs no script; "" where there is no job."""
    facts = job(run)
    if facts is None:
        return ""
    is_traced = isinstance(run.provenance, TraceProvenance)
    parts = [
        _whole(facts),
        _heat_map(facts, steps_of(run.provenance)) if is_traced else "",
        _ranks(facts),
        _modules(facts),
        _groups(facts),
        _collectives(facts),
    ]
    return f'<section id="job"><h2>Job</h2>{"".join(parts)}</section>'


def _heat_map(facts: Job, steps: tuple[Step, ...]) -> str:
    """Return a table of steps' times, coloured by how far each is from the median of all."""
    by_step = step_times(steps)
    if not by_step:
        return "<p>The traces hold no profiler steps: prof.step() makes them.</p>"
    middle_us = median(step.median_us for step in facts.steps)
    names = list(by_step)[:MOST_STEPS]
    ranks = [rank.rank for rank in facts.ranks]
    if len(ranks) > MOST_RANKS:
        slowest = sorted(facts.ranks, key=lambda rank: -rank.median_step_us)
        ranks = sorted(rank.rank for rank in slowest[:MOST_RANKS])
    rows = []
    for rank in ranks:
        cells = [f"<th>rank {rank}</th>"]
        cells += [_cell(by_step[name].get(rank), middle_us) for name in names]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    header = "".join(f"<th>{_text(name)}</th>" for name in names)
    note = "Time of each profiler step by rank; red is longer than the steps' median, "
    note += f"{duration(middle_us)}, blue is shorter, full at {percent(_FULL_FRAC)}."
    if len(ranks) < len(facts.ranks):
        note += f" The {len(ranks)} slowest of {len(facts.ranks)} ranks."
    if len(names) < len(by_step):
        note += f" The first {len(names)} of {len(by_step)} steps."
    body = f"<thead><tr><th>step</th>{header}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<p>{note}</p><div class="heat"><table>{body}</table></div>'


def _cell(step: Step | None, middle_us: float) -> str:
    if step is None:
        return f"<td>{UNKNOWN}</td>"
    over_frac = step.duration_us / middle_us - 1 if middle_us > 0 else 0.0
    strength = min(abs(over_frac) / _FULL_FRAC, 1.0) * _STRONGEST
    colour = _RED if over_frac > 0 else _BLUE
    style = f"background: rgba({colour}, {strength:.2f})"
    return f'<td style="{style}">{duration(step.duration_us)}</td>'


def _ranks(facts: Job) -> str:
    header = (
        "rank",
        "bare call",
        "median step",
        "own compute",
        "collectives",
        "exposed",
        "exposed share",
        "FLOP/s",
        "apart from the others",
    )
    rows = []
    for rank in facts.ranks[:MOST_RANKS]:
        marks = []
        if rank.rank in facts.straggler_ranks:
            marks.append("compute")
        if rank.rank in facts.odd_rate_ranks:
            marks.append("FLOP/s")
        cells = [
            str(rank.rank),
            duration(rank.wall_us),
            duration(rank.median_step_us),
            duration(rank.compute_us),
            duration(rank.communication_us),
            duration(rank.exposed_communication_us),
            percent(rank.exposed_frac),
            si(rank.achieved_flops_per_s, "FLOP/s"),
            ", ".join(marks) or "no",
        ]
        rows.append(cells)
    note = "Exposed is communication with no compute of the same rank beside it."
    if len(facts.ranks) > MOST_RANKS:
        note += f" The first {MOST_RANKS} of {len(facts.ranks)} ranks: see --json."
    return f"<h2>Ranks</h2><p>{note}</p>{_table(header, rows)}"


def _collectives(facts: Job) -> str:
    if not facts.collectives:
        return ""
    note = (
        "By kind, group and size, on all ranks. A time has the wait for the last rank to come; "
        "the shortest call, which has least of it, is held against the link of one node, one way."
    )
    if len(facts.collectives) > MOST_COLLECTIVES:
        note += f" The first {MOST_COLLECTIVES} of {len(facts.collectives)}: see --json."
    rows = [_row(row) for row in facts.collectives[:MOST_COLLECTIVES]]
    return f"<h2>Collectives</h2><p>{note}</p>{_table(_HEADER, rows)}"


def _row(row: Collective) -> list[str]:
    return [
        row.collective or UNKNOWN,
        row.process_group or UNKNOWN,
        UNKNOWN if row.group_size is None else str(row.group_size),
        si(row.message_bytes, "B"),
        str(row.calls),
        duration(row.time_us),
        duration(row.median_us),
        si(row.algorithm_bytes_per_s, "B/s"),
        si(row.bus_bytes_per_s, "B/s"),
        si(row.shortest_bus_bytes_per_s, "B/s"),
        _link(row),
        percent(row.shortest_bus_frac),
    ]


def _link(row: Collective) -> str:
    return f"{row.link}, {si(row.link_bytes_per_s, 'B/s')}" if row.link else UNKNOWN


def _groups(facts: Job) -> str:
    """Return the table of process groups; "" where the traces list none."""
    if not facts.groups:
        return ""
    rows = [
        [
            group.name,
            group.description or UNKNOWN,
            group.parallel or UNKNOWN,
            UNKNOWN if group.size is None else str(group.size),
            numbers_text(group.ranks),
            _yes_or_no(group.one_node),
            duration(group.time_us),
        ]
        for group in facts.groups[:MOST_GROUPS]
    ]
    note = "As the traces list them. Time is that of collectives in groups of this name."
    if len(facts.groups) > MOST_GROUPS:
        note += f" The first {MOST_GROUPS} of {len(facts.groups)}: see --json."
    header = ("group", "description", "parallel", "size", "ranks", "on one node", "time")
    return f"<h2>Process groups</h2><p>{note}</p>{_table(header, rows)}"


def _yes_or_no(answer: bool | None) -> str:
    if answer is None:
        return UNKNOWN
    return "yes" if answer else "no"


def _modules(facts: Job) -> str:
    """Return the table of modules whose time differs by rank; "" where there is one or none."""
    rows = [
        [
            row.module_path or "(no module)",
            str(row.ranks),
            duration(row.mean_us),
            duration(row.longest_us),
            str(row.longest_rank),
            percent(row.imbalance_frac),
        ]
        for row in facts.modules[:MOST_MODULES]
        if row.longest_us > row.mean_us
    ]
    if not rows:
        return ""
    note = "A module's own time, without the modules inside it; those first that cost most."
    header = ("module", "on ranks", "mean", "longest", "of rank", "over the mean")
    return f"<h2>Balance of modules</h2><p>{note}</p>{_table(header, rows)}"


def _whole(facts: Job) -> str:
    """Return a line on the job as a whole."""
    text = f"{len(facts.ranks)} ranks; MFU {percent(facts.mfu_frac)}"
    if facts.missing_ranks:
        text += f"; no trace of ranks {numbers_text(facts.missing_ranks)}"
    return f"<p>{_text(text)}.</p>"


def numbers_text(numbers: tuple[int, ...]) -> str:
    """Return numbers as people write them: "0 to 7, 12"; a dash for none, the first of many."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    if not spans:
        return UNKNOWN
    texts = []
    for first, last in spans[:MOST_SPANS]:
        texts.append(str(first) if first == last else f"{first} to {last}")
    if len(spans) > MOST_SPANS:
        texts.append("…")
    return ", ".join(texts)


def _table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    heads = "".join(f"<th>{_text(name)}</th>" for name in header)
    lines = []
    for row in rows:
        pairs = zip(header, row, strict=True)
        cells = [f'<td data-label="{_text(name)}">{_text(text)}</td>' for name, text in pairs]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _text(text: str) -> str:
    """Return what a file may have chosen as text of a page."""
    return escape(clean_text(text))
