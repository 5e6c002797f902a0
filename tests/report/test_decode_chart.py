"""The chart of a decoded token by its context, in a run's folder and on its page."""

import math

import msgspec
import numpy as np

from flopprof.provenance import AtContext, Generation, Spread
from flopprof.report.chart.decode import draw_decode, growth_of
from flopprof.report.folder import save_run
from flopprof.report.html import html_report
from tests.builders import make_run

FACTS = Generation(
    prompt_len=64,
    new_tokens=8,
    batch=1,
    step_us=Spread(median=1500.0),
    timed_steps=21,
    by_context=(
        AtContext(context=1, matmul_flops=1000.0),
        AtContext(context=64, matmul_flops=1630.0),
        AtContext(context=72, matmul_flops=1710.0),
    ),
)


def a_generation(facts=FACTS):
    run = make_run()
    return run.replaced(provenance=msgspec.structs.replace(run.provenance, generate=facts))


def test_what_grows_stands_on_what_there_is_at_the_first_context():
    contexts, at_first, beyond = growth_of(FACTS)

    # Ten FLOPs for each token more: 63 × 10 at 64, 71 × 10 at 72.
    assert contexts == [1, 64, 72]
    assert at_first == [1000, 1000, 1000]
    assert beyond == [0, 630, 710]


def test_the_points_are_the_counts_and_the_title_says_the_time():
    axes = draw_decode(FACTS).axes[0]

    line = axes.lines[0]
    assert list(np.asarray(line.get_xdata())) == [1, 64, 72]
    assert list(np.asarray(line.get_ydata())) == [1000, 1630, 1710]
    assert "1.50 ms per token after a prompt of 64 (median of 21 steps)" in axes.get_title("left")


def test_without_times_the_title_names_none():
    axes = draw_decode(msgspec.structs.replace(FACTS, step_us=None)).axes[0]

    assert axes.get_title("left") == "One decoded token by its context"


def test_unknown_flops_are_said_and_not_drawn():
    unknown = (AtContext(context=1, matmul_flops=math.nan), *FACTS.by_context[1:])
    axes = draw_decode(msgspec.structs.replace(FACTS, by_context=unknown)).axes[0]

    assert not axes.lines
    assert "not known" in axes.texts[0].get_text()


def test_the_folder_and_the_page_have_it_for_a_generation_alone(tmp_path):
    folder = tmp_path / "llama.flopprof"
    saved = save_run(a_generation, folder, sources=(), force=False, progress=lambda _stage: None)
    other = save_run(
        make_run, tmp_path / "other.flopprof", sources=(), force=False,
        progress=lambda _stage: None,
    )  # fmt: skip

    assert (saved.folder / "decode_by_context.png").read_bytes()[1:4] == b"PNG"
    assert not (other.folder / "decode_by_context.png").exists()
    page = html_report(a_generation())
    assert '<section id="decode">' in page
    assert "tokens in the cache" in page
    assert '<section id="decode">' not in html_report(make_run())
