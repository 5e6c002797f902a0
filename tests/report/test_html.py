"""The HTML report: what is in the file, and what a real browser does with it."""

import json
import math
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from flopprof.report.chart.draw import draw
from flopprof.report.folder import save_run
from flopprof.report.rows import kernel_sums, module_sums
from flopprof.run import Run
from flopprof.tables import KERNELS
from tests.builders import make_run

SMALL = Path(__file__).parents[1] / "runs" / "small.flopprof"
EVIL = "<script>document.title='owned'</script>"
ENDING = "</script><img src=x onerror=\"document.title='owned'\">"


def site(number, path, *, flops, time_us, op="aten::linear", verdict="agrees", **more):
    return {
        "site_id": number,
        "op": op,
        "module_path": path,
        "phase": "forward",
        "input_shapes": "4x5, 6x5, 6",
        "dtype": "float32",
        "calls": 1,
        "kind": "matmul",
        "flops": flops,
        "flops_at_most": flops,
        "matmul_flops": flops,
        "vector_flops": 0.0,
        "min_bytes": 592.0,
        "time_us": time_us,
        "time_share_frac": time_us / 100,
        "intensity_flops_per_byte": flops / 592,
        "achieved_flops_per_s": flops / time_us * 1e6 if time_us else math.nan,
        "verdict": verdict,
    } | more


def browse(page: str, folder: Path, width: int, script: str) -> tuple[object, list[str]]:
    """Open `page` in a frame of `width` pixels; return what `script` does, and console messages.

    `script` is the body of a function of the frame's `window` and `document`.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium was found: apt-get install chromium")
    around = folder / "around.html"
    around.write_text(
        f'<iframe id="f" width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'
        '<pre id="out"></pre><script>document.getElementById("f").onload = event => {'
        "const frame = event.target.contentWindow;"
        "document.getElementById('out').textContent = JSON.stringify("
        f"((window, document) => {{ {script} }})(frame, frame.document)) }};</script>",
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    options += ["--window-size=1400,1000", "--dump-dom", around.as_uri()]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), console


def test_the_page_asks_the_network_for_nothing():
    page = Run.load(SMALL).report("html")

    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page)
    assert not re.findall(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_names_from_a_file_are_text_wherever_they_stand():
    run = make_run(
        [site(0, EVIL, flops=480.0, time_us=60.0), site(1, ENDING, flops=480.0, time_us=40.0)],
        model=EVIL,
        input=ENDING,
    )

    page = run.report("html")

    assert EVIL not in page
    assert ENDING not in page
    assert page.count("<script") == 2  # the data and the page's own code
    assert page.count("</script>") == 2
    assert EVIL not in run._repr_html_()


def test_a_mark_on_the_chart_tells_its_site():
    page = Run.load(SMALL).report("html")

    titles = re.findall(r'<g id="(point-1|run)"><title>(.*?)</title>', page, re.DOTALL)

    # The convolution: 44.9 % of the time; 3.60 MFLOPs (2·16·27·64² + 16·64² biases) in 433 µs.
    tooltips = dict(titles)
    assert tooltips["point-1"].startswith("stem.0 · conv2d\n44.9 % of time, 1 calls, 3.60 MFLOPs\n")
    assert "8.32 GFLOP/s, 7.9 % of its roof" in tooltips["point-1"]
    assert tooltips["run"].startswith("whole run (wall time)")


def test_colours_follow_the_page():
    svg = Run.load(SMALL).report("html").partition("<svg")[2].partition("</svg>")[0]

    assert "var(--c1, #111111)" in svg
    assert not re.findall(r"[:\"] ?#111111", svg)


def test_a_count_without_times_has_a_report_without_a_chart():
    row = site(0, "fc", flops=480.0, time_us=1.0)
    for name in ("time_us", "time_share_frac", "achieved_flops_per_s"):
        del row[name]

    run = make_run([row])

    assert "No chart: the run has no times." in run.report("html")
    assert run._repr_png_() is None
    assert "<img" not in run._repr_html_()


def test_a_notebook_shows_the_summary_and_the_chart():
    run = Run.load(SMALL)

    assert (run._repr_png_() or b"").startswith(b"\x89PNG")
    assert "at least 3.87 MFLOPs, at most 15.4 MFLOPs" in run._repr_html_()
    assert 'src="data:image/png;base64,iVBORw0KGgo' in run._repr_html_()


def test_modules_and_kernels_are_added_up():
    rows = [
        site(0, "net.a", flops=100.0, time_us=50.0),
        site(1, "net.b.c", flops=900.0, time_us=30.0),
        site(2, "net", flops=float("nan"), time_us=20.0),
        site(3, "network", flops=7.0, time_us=0.0),  # not inside net
    ]
    launched = [("gemm", "compute", 10.0), ("copy", "memcpy", 10.0), ("gemm", "compute", 30.0)]
    kernels = [
        {"kernel": name, "kind": kind, "duration_us": us, "start_us": 0.0}
        for name, kind, us in launched
    ]
    run = make_run(rows).replaced(kernels=KERNELS.from_rows(kernels))

    modules = module_sums(run).set_index("module_path")

    net = modules.loc["net"]
    assert (net["self_flops"], net["flops"], net["unknown_sites"]) == (0, 1000, 1)
    assert (net["self_time_us"], net["time_us"], net["time_share_frac"]) == (20, 100, 1)
    assert net["achieved_flops_per_s"] == 1000 / 100e-6
    assert math.isnan(modules.loc["network", "achieved_flops_per_s"])
    assert kernel_sums(run).to_dict("records") == [
        {"kernel": "gemm", "kind": "compute", "calls": 2, "time_us": 40, "time_share_frac": 0.8},
        {"kernel": "copy", "kind": "memcpy", "calls": 1, "time_us": 10, "time_share_frac": 0.2},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_in_a_browser(tmp_path, width):
    long = "encoder." + "block_with_a_long_name." * 8 + "proj"
    rows = [site(0, long, flops=480.0, time_us=60.0, input_shapes="8x3x224x224, " * 12)]
    rows += [
        site(1, EVIL, flops=480.0, time_us=30.0, verdict="unknown", reason="why not " * 40),
        site(2, ENDING, flops=480.0, time_us=10.0, op="a_namespace::" + "x" * 200),
    ]
    page = make_run(rows, model=ENDING).report("html")

    found, console = browse(
        page,
        tmp_path,
        width,
        """
        for (const row of document.querySelectorAll("#sites tr.open")) row.click();
        const page = document.documentElement;
        const wide = [...document.querySelectorAll("body *")].filter(node => !node.closest("svg"));
        return {
          inner: window.innerWidth, title: document.title,
          over: page.scrollWidth - page.clientWidth,
          outside: wide.filter(
            node => node.getBoundingClientRect().right > page.clientWidth + 1).length,
          details: document.querySelectorAll(".details").length,
          broken: [...document.querySelectorAll("td.number span")]
            .filter(span => span.getClientRects().length > 1).map(span => span.textContent),
          hidden: wide.filter(node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth
            && !["INPUT", "SELECT"].includes(node.tagName)).map(node => node.outerHTML),
        };
        """,
    )

    assert found == {
        "inner": width,
        "title": ENDING + " · flopprof",  # as text: nothing ran
        "over": 0,
        "outside": 0,
        "details": 3,
        "broken": [],  # 22.↵0 ms
        "hidden": [],
    }
    assert console == []


@pytest.mark.slow
def test_tables_sort_filter_and_fold_in_a_browser(tmp_path):
    rows = [
        site(0, "net.a", flops=100.0, time_us=50.0),
        site(1, "net.b.c", flops=900.0, time_us=30.0),
        site(2, "net.b.d", flops=500.0, time_us=15.0, op="aten::conv2d"),
        site(3, "net", flops=float("nan"), time_us=5.0, op="x::y", verdict="extension"),
    ]
    found, console = browse(
        make_run(rows).report("html"),
        tmp_path,
        1280,
        """
        const firsts = id => [...document.querySelectorAll(`#${id} tbody tr td:first-child span`)]
          .map(cell => cell.textContent);
        const head = name => document.querySelector(`#sites th[data-name="${name}"] button`);
        const type = (id, text) => {
          const field = document.querySelector(`#${id} input`);
          field.value = text;
          field.dispatchEvent(new window.Event("input"));
        };
        const seen = {byTime: firsts("sites")};
        head("flops").click();
        seen.byFlops = firsts("sites");
        head("flops").click();
        seen.ascending = firsts("sites");
        seen.aria = head("flops").parentNode.getAttribute("aria-sort");
        head("module_path").click();
        seen.byName = firsts("sites");
        type("sites", "LINEAR b");
        seen.filtered = firsts("sites");
        seen.count = document.querySelector("#sites .count").textContent;
        type("sites", "nothing like it");
        seen.none = firsts("sites");
        seen.folded = firsts("modules");
        document.querySelector("#modules tbody .twist").click();
        seen.open = firsts("modules");
        type("modules", "d");
        seen.found = firsts("modules");
        seen.misses = firsts("misses");
        return seen;
        """,
    )

    assert found == {
        "byTime": ["net.a", "net.b.c", "net.b.d", "net"],
        "byFlops": ["net.b.c", "net.b.d", "net.a", "net"],  # what is unknown comes last
        "ascending": ["net.a", "net.b.d", "net.b.c", "net"],
        "aria": "ascending",
        "byName": ["net", "net.a", "net.b.c", "net.b.d"],
        "filtered": ["net.b.c"],
        "count": "1 of 4 rows",
        "none": [],
        # net is open at first; its children by time: a 50 µs, b.c 30 µs, b.d 15 µs.
        "folded": ["net", "a", "b.c", "b.d"],
        "open": ["net"],
        "found": ["net", "b.d"],
        "misses": ["x::y"],
    }
    assert console == []


@pytest.mark.slow
def test_five_thousand_sites_open_and_sort_in_a_browser(tmp_path):
    rows = [
        site(n, f"layers.{n % 500}.part{n // 500}", flops=float(n + 1), time_us=1.0 + n)
        for n in range(5000)
    ]
    found, console = browse(
        make_run(rows).report("html"),
        tmp_path,
        1280,
        """
        document.querySelector('#sites th[data-name="flops"] button').click();
        return [document.querySelector("#sites tbody tr").cells.length,
          document.querySelectorAll("#sites tbody tr").length,
          document.querySelector("#sites tbody td").textContent,
          document.querySelector("#sites .more").textContent];
        """,
    )

    # The last has most FLOPs: n = 4999 is layers.499.part9. 5,000 rows less 100 shown remain.
    assert found == [10, 100, "layers.499.part9", "Show 1000 more"]
    assert console == []


@pytest.mark.slow
def test_a_real_run_opens_without_a_console_message(tmp_path):
    found, console = browse(
        Run.load(SMALL).report("html"),
        tmp_path,
        390,
        'return document.querySelectorAll("#sites tbody tr").length;',
    )

    assert found == 9  # sites of the recorded run
    assert console == []


def test_a_saved_run_is_laid_out_once_for_its_picture_and_its_page(tmp_path, monkeypatch):
    sheets = []

    def counting(*args, **options):
        sheets.append(args)
        return draw(*args, **options)

    monkeypatch.setattr("flopprof.report.chart.draw", counting)

    saved = save_run(
        make_run, tmp_path / "net.flopprof", sources=[], force=False, progress=lambda _: None
    )

    assert len(sheets) == 1
    assert (saved.folder / "roofline.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (saved.folder / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_tables_are_copied_as_csv_and_rows_opened_by_keys_in_a_browser(tmp_path):
    rows = [
        site(0, "net.a", flops=100.0, time_us=50.0),
        site(1, '=cmd("x"), b', flops=float("nan"), time_us=30.0),
    ]
    seen, console = browse(
        make_run(rows).report("html"),
        tmp_path,
        390,
        """
        let copied = "";
        const fake = {writeText: text => { copied = text; return Promise.resolve(); }};
        Object.defineProperty(window.navigator, "clipboard", {value: fake});
        document.querySelector("#sites .copy").click();
        const lines = copied.split("\\n").map(line => line.split(","));
        const first = document.querySelector("#sites tr.open");
        const press = key => first.dispatchEvent(
          new window.KeyboardEvent("keydown", {key, bubbles: true}));
        press(" ");
        const opened = document.querySelectorAll(".details").length;
        press("Enter");
        press("ArrowDown");
        return {
          head: lines[0].slice(0, 4), first: lines[1].slice(0, 3), second: copied.split("\\n")[2],
          opened, closed: document.querySelectorAll(".details").length,
          second_has_focus: document.activeElement === document.querySelectorAll("tr.open")[1],
          buttons: document.querySelectorAll("section .copy").length,
          panel: document.querySelector("#panel svg").getBoundingClientRect().width > 300,
          wraps: [...document.querySelectorAll("#sites td:nth-child(2) span")].map(
            cell => cell.getClientRects().length),
        };
        """,
    )

    found: Any = seen
    assert found["head"] == ["site_id", "op", "module_path", "module_type"]
    assert found["first"] == ["0", "aten::linear", "net.a"]
    # A quote doubled, the whole quoted, and what a spreadsheet would calculate made a text.
    assert found["second"].startswith('1,aten::linear,"\'=cmd(""x""), b",')
    assert (found["opened"], found["closed"]) == (1, 0)
    assert found["second_has_focus"]
    assert found["buttons"] == 2  # sites and modules: nothing was missed
    assert found["panel"]
    assert found["wraps"] == [1, 1]  # an op's name is on one line
    assert console == []


def test_the_small_chart_has_every_numbered_point_and_stays_in_its_frame():
    page = Run.load(SMALL).report("html")

    small = page.partition('<svg class="panel"')[2].partition("</svg>")[0]
    numbers = re.findall(r'font-weight="bold">(\d+|★)<', small)
    places = re.findall(r'<(?:text|circle)[^>]*? c?x="([\d.-]+)" c?y="([\d.-]+)"', small)

    listed = re.findall(r'<li value="(\d+)">', page)
    assert sorted(numbers) == sorted([*listed, "★"])
    assert len(places) > len(listed)
    assert all(0 <= float(x) <= 360 and 0 <= float(y) <= 300 for x, y in places)
