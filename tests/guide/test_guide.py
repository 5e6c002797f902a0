"""What the guide shows is what happens: its Python runs, its commands print what it says."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest

from flopprof.cli import main, make_parser
from flopprof.guide import FOLDER, page, pages_that_mention, title, topics

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.compile(r"```(python|console|sh)\n(.*?)```", re.DOTALL)
GENERATED = ("api", "cli", "formulas", "json", "tables")
WRITTEN = [topic for topic in topics() if topic not in GENERATED]


def examples(topic: str) -> list[tuple[str, str]]:
    """Return a page's examples in their order: language and text."""
    return BLOCKS.findall(page(topic))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a console block, each with the lines that it is said to print."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    split = [part.splitlines() for part in parts]
    return [(lines[0], lines[1:]) for lines in split]


@pytest.mark.slow
@pytest.mark.parametrize("topic", [topic for topic in WRITTEN if examples(topic)])
def test_the_examples_of_a_page_work_one_after_the_other(topic, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written: dict[str, object] = {"__name__": "__guide__"}

    for language, text in examples(topic):
        if language == "python":
            exec(compile(text, f"guide/{topic}.md", "exec", dont_inherit=True), written)
        for command, shown in commands(text) if language == "console" else ():
            capsys.readouterr()
            program, *arguments = shlex.split(command)
            assert program == "flopprof"

            assert main(arguments) == 0, command

            printed = capsys.readouterr().out.splitlines()
            for line in shown:
                if "…" not in line:  # a line with timings, or lines left out
                    assert line in printed


@pytest.mark.parametrize("topic", WRITTEN)
def test_commands_that_are_not_run_here_are_known_to_the_parser(topic):
    for language, text in examples(topic):
        for line in text.splitlines() if language == "sh" else ():
            command = line.partition(" #")[0].replace("\\", "")
            if command.startswith("flopprof "):
                arguments = shlex.split(command)[1:]

                make_parser(arguments[0]).parse_args(arguments)  # raises what the user would see


@pytest.mark.parametrize("topic", ["README", *topics()])
def test_links_lead_somewhere(topic):
    for target in re.findall(r"\]\(([^)]+)\)", page(topic)):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = FOLDER / file if file else FOLDER / f"{topic}.md"
        assert linked.is_file(), f"{topic} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_every_page_is_in_the_index_once():
    listed = re.findall(r"^- \[([\w-]+)\]\(([\w-]+)\.md\)", page(), re.MULTILINE)

    assert sorted(topic for topic, _ in listed) == topics()
    assert all(topic == file for topic, file in listed)


def test_every_option_of_the_parser_is_in_the_reference():
    text = page("cli")
    parser = make_parser()
    for name, sub in parser.subcommands.items():
        section = text.partition(f"## flopprof {name}\n")[2].partition("\n## ")[0]
        for action in sub._actions:
            for option in action.option_strings:
                assert f"`{option}" in section, f"{name} {option}"


def test_a_page_is_printed_as_it_is_where_nobody_reads_it(capsys):
    assert main(["guide", "verdicts"]) == 0

    assert capsys.readouterr().out == page("verdicts")


def test_the_list_of_pages_is_printed_without_a_topic(capsys):
    assert main(["guide"]) == 0

    assert "- [tutorial](tutorial.md)" in capsys.readouterr().out


def test_a_page_can_be_had_as_json(capsys):
    assert main(["guide", "ceilings", "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["topic"] == "ceilings"
    assert {"topic": "ceilings", "title": title("ceilings")} in answer["topics"]


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ("tutorail", "flopprof guide tutorial"),
        ("datasheet", "it is spoken of in:"),
        ("zzzz", "flopprof guide, for the list of pages"),
        ("../README", "flopprof guide"),
    ],
)
def test_a_page_that_is_not_there_says_which_is_near(asked, remedy, capsys):
    assert main(["guide", asked]) == 2

    assert remedy in capsys.readouterr().err


def test_words_are_looked_for_whatever_their_case():
    assert "ceilings" in pages_that_mention("TF32")


def test_pages_are_paged_and_drawn_in_a_terminal(monkeypatch, capsys):
    import sys

    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with contextlib.suppress(AttributeError):
        assert main(["guide", "verdicts", "--no-pager"]) == 0

    assert "Verdicts, and what each asks of you" in capsys.readouterr().out
