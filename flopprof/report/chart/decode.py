"""Draw the FLOPs of a decoded token over its context: what there is at once, and what grows."""

import math
from typing import TYPE_CHECKING

from flopprof.report.chart import _settings
from flopprof.report.chart.sheet import COLOURS, LIGHT
from flopprof.units import duration, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flopprof.provenance import Generation

INCHES = (6.6, 3.3)
_FONT = "DejaVu Sans Mono"  # those of a page, for which there must be room
_SMALL = 7.5  # points of type
_GROUND, _INK, _MUTED, _GRID = LIGHT[:4]


def growth_of(facts: "Generation") -> tuple[list[int], list[float], list[float]]:
    """Return contexts; a token's matmul FLOPs at the first, for each; and what each has beyond it.

    What grows with the context is attention to the cache: everything else is of one token.
    """
    contexts = [at.context for at in facts.by_context]
    flops = [at.matmul_flops for at in facts.by_context]
    at_first = [flops[0] for _ in flops]
    beyond = [value - flops[0] for value in flops]
    return contexts, at_first, beyond


def draw_decode(facts: "Generation") -> "Figure":
    """Return the figure: a token's matmul FLOPs over how many tokens the cache holds before it.

    Times are not drawn over the context: steps are timed after one prompt alone. Their median is
    in the title.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained", facecolor=_GROUND)
    FigureCanvasAgg(figure)
    with _settings():
        matplotlib.rcParams["font.family"] = _FONT
        _draw(figure.subplots(), facts)
    return figure


def _draw(axes: "Axes", facts: "Generation") -> None:
    contexts, at_first, beyond = growth_of(facts)
    axes.set_title(_title(facts), fontsize=_SMALL + 1, color=_INK, loc="left")
    if not all(math.isfinite(flops) for flops in (*at_first, *beyond)):
        axes.text(0.5, 0.5, "FLOPs are not known", ha="center", transform=axes.transAxes)
        return
    axes.stackplot(
        contexts,
        at_first,
        beyond,
        colors=(COLOURS["matmul"], COLOURS["attention"]),
        labels=(f"all of it at context {contexts[0]}", "grows with the cache: attention"),
    )
    ends = [first + more for first, more in zip(at_first, beyond, strict=True)]
    axes.plot(contexts, ends, color=_INK, linewidth=0.8, marker="o", markersize=3.5, clip_on=False)
    axes.annotate(
        si(ends[-1], "FLOPs"), (contexts[-1], ends[-1]), (0, 4), textcoords="offset points",
        ha="right", fontsize=_SMALL, color=_INK,
    )  # fmt: skip
    _dress(axes, max(ends), contexts[-1])


def _title(facts: "Generation") -> str:
    title = "One decoded token by its context"
    if facts.step_us is None:
        return title
    return (
        f"{title}\n{duration(facts.step_us.median)} per token after a prompt of "
        f"{facts.prompt_len} (median of {facts.timed_steps} steps)"
    )


def _dress(axes: "Axes", highest: float, longest: int) -> None:
    """Give the panel its scales from zero, its names and its colours."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor(_GROUND)
    axes.set_ylim(0, 1.35 * highest)  # above the areas is the legend's room
    axes.set_xlim(0, longest)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value, "")))
    axes.set_xlabel("tokens in the cache", fontsize=_SMALL, color=_INK)
    axes.set_ylabel("matmul FLOPs per token", fontsize=_SMALL, color=_INK)
    axes.tick_params(labelsize=_SMALL, colors=_MUTED, labelfontfamily=_FONT)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    axes.legend(
        loc="upper left", ncols=2, fontsize=_SMALL, labelcolor=_INK, facecolor=_GROUND,
        edgecolor=_GRID,
    )  # fmt: skip
