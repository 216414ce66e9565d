"""The documents: every link opens, whatever the code cites is there, every page is reached; and each check can fail."""

from __future__ import annotations

import re
from pathlib import Path

import house_documents as house
import pytest
from house_rules import ROOMS, ROOT, modules

OUR_WORDS = ("tests/house_documents.py", "tests/test_docs.py")  # they speak of citations that do not open
SHOWN_TWICE = ("README.md", "docs/benchmarks.md")  # some of the figures of the second stand in the first
TO_BE_MADE = "docs/how-to/add-a-"  # pages that name files which their reader makes


def relative(path: Path) -> str:
    """A document by its path from the root."""
    return path.relative_to(ROOT).as_posix()


def test_every_link_opens() -> None:
    """Links inside the repository lead to a file, and to a heading of it where they name one."""
    documents = house.documents(ROOT)
    assert {relative(path) for path in documents} >= {*house.BESIDE, house.RULES, "docs/design/learners.md"}
    assert [broken for path in documents for broken in house.broken_links(ROOT, path)] == []


def test_every_page_is_reached_from_the_index() -> None:
    """No page stands where nobody who begins at docs/index.md finds it."""
    assert (ROOT / house.INDEX).is_file()
    assert house.unreachable(ROOT) == []


def test_what_the_code_cites_opens() -> None:
    """Documents, headings, numbered rules and files that comments and docstrings name are in the repository."""
    files = [module for module in modules(*ROOMS, "tests") if module.path not in OUR_WORDS]
    assert sum(house.RULES in module.source for module in files) >= 30  # so that this says something
    assert [broken for module in files for broken in house.broken_citations(ROOT, module.path, module.source)] == []


def test_files_that_documents_name_are_there() -> None:
    """A file that was moved or taken away is mended in every document that names it, and in what builds and settles things."""
    documents = [path for path in house.documents(ROOT) if not relative(path).startswith(TO_BE_MADE)]
    documents += [ROOT / "pyproject.toml", ROOT / "Makefile"]
    assert [missing for path in documents for missing in house.missing_files(ROOT, path)] == []


def examples_listed(index: str) -> list[str]:
    """The names of examples that the index lists."""
    listed = re.search(r"^4\. \[Examples\].*\n(?: .*\n)*", index, re.MULTILINE)
    return re.findall(r"`([\w.]+)`", listed[0]) if listed else []


def test_the_index_lists_every_example() -> None:
    """Each file of examples/, once, and none that is gone."""
    index = (ROOT / house.INDEX).read_text(encoding="utf-8")
    files = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_file())
    assert sorted(examples_listed(index)) == files
    assert sorted(examples_listed(index.replace("`notebook.py`", ""))) != files


def test_the_rules_are_numbered_without_a_gap() -> None:
    """Twenty rules, four kinds of tests, thirty points of style; each kind of test names the files that hold it."""
    numbered = house.numbers(ROOT)
    assert [sorted(numbered[kind]) for kind in ("rule", "test", "style")] == [[*range(1, most + 1)] for most in (20, 4, 30)]
    kinds = (ROOT / house.RULES).read_text(encoding="utf-8").partition("## How it is tested")[2].split("\n### Test ")[1:]
    assert all(house.TEST_FILE.findall(kind) for kind in kinds)


def test_the_changelog_keeps_its_form() -> None:
    """Added, Changed and Fixed under one unreleased version, and nothing that a merge has doubled."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    assert headings[:4] == ["[Unreleased]: 0.1.0", "Added", "Changed", "Fixed"]
    assert house.repeated(text.splitlines()) == []
    assert house.repeated(["x" * 41, "y" * 41, "x" * 41]) == ["x" * 41]


def test_the_benchmarks_have_their_marks() -> None:
    """The table of bench lines stands between two marks, once."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert [text.count(f"<!-- bench lines: {mark} -->") for mark in ("begin", "end")] == [1, 1]


def test_the_readme_shows_figures_as_the_benchmarks_have_them() -> None:
    """Each row of its table stands there too, cell by cell; one with another figure is found."""
    readme, all_of_them = (house.benchmark_rows((ROOT / name).read_text(encoding="utf-8")) for name in SHOWN_TWICE)
    assert len(readme) >= 8
    assert [row for row in readme if row not in all_of_them] == []
    flattered = (*readme[-1][:-2], "9.99", readme[-1][-1])
    assert flattered not in all_of_them


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository in which everything opens."""
    pages = {
        "CONTRIBUTING.md": "# C\n\n## Style\n\n1. One.\n2. Two.\n",
        "docs/index.md": "[rules](design/journal.md#rule-1) and [style](../CONTRIBUTING.md#style)\n",
        "docs/design/journal.md": "# J\n\n## Rule 1\n\n## Rule 2\n\n### Test 1\n\n```text\n## Rule 3\n```\n",
        "streams/fold.py": '"""Nothing."""\n',
        "tests/streams/test_fold.py": '"""Nothing."""\n',
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_sound_tree_passes(tree: Path) -> None:
    """Whatever comes close to breaking a rule, and does not, is let through."""
    page = tree / "docs" / "index.md"
    more = "[out](https://example.org/x.md#y), `[code](gone.md)`, `streams/fold.py`, `test_fold.py`\n"
    page.write_text(page.read_text() + more)
    assert [*house.broken_links(tree, page), *house.missing_files(tree, page), *house.unreachable(tree)] == []
    source = '"""docs/design/journal.md, rules 1 and 2; docs/design/journal.md#test-1."""\n# as streams/fold.py,\n# style 2\n'
    assert list(house.broken_citations(tree, "a.py", source)) == []


@pytest.mark.parametrize(
    "link", ["gone.md", "design/gone.md#rule-1", "design/journal.md#rule-3", "#nothing", "../../out.md", "../streams/fold.py#x"]
)
def test_a_broken_link_is_caught(tree: Path, link: str) -> None:
    """To a file that is gone, to a heading that is none, out of the repository."""
    page = tree / "docs" / "index.md"
    page.write_text(f"# Here\n\n[a link]({link})\n", encoding="utf-8")
    assert len(list(house.broken_links(tree, page))) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Source: journal.md, rule 1."""',
        '"""Source: docs/design/gone.md."""',
        '"""Source: docs/design/journal.md#rule-3."""',
        '"""Source: docs/design/journal.md, rule 3."""',
        '"""Source: docs/design/journal.md, rules 1 to 3."""',
        '"""Source: docs/design/journal.md,\nrules 1 and 3."""',
        '"""docs/design/journal.md, test 2: something."""',
        "def f():\n    '''Small (style 3).'''",
        "x = 1  # as docs/design/journal.md, rules 1, 2 and 3",
        "# as in docs/design/journal.md,\n# rule 3\n",
        '"""See streams/gone.py."""',
    ],
)
def test_a_broken_citation_is_caught(tree: Path, source: str) -> None:
    """A document under no path of the repository, a heading, a number or a file that is not there."""
    (broken,) = house.broken_citations(tree, "streams/a.py", source)
    assert broken.startswith("streams/a.py:")


def test_a_page_that_nothing_links_to_is_caught(tree: Path) -> None:
    """And so are pages that only such a page links to."""
    (tree / "docs" / "lost.md").write_text("[more](also.md)\n", encoding="utf-8")
    (tree / "docs" / "also.md").write_text("More.\n", encoding="utf-8")
    assert house.unreachable(tree) == ["docs/also.md", "docs/lost.md"]
    (tree / house.INDEX).unlink()
    assert house.unreachable(tree) == ["docs/also.md", "docs/design/journal.md", "docs/lost.md"]


@pytest.mark.parametrize("name", ["streams/gone.py", "test_gone.py"])
def test_a_file_that_is_gone_is_caught(tree: Path, name: str) -> None:
    """A document that names it says so, with the file."""
    page = tree / "docs" / "index.md"
    page.write_text(f"`{name}`\n", encoding="utf-8")
    assert [name in missing for missing in house.missing_files(tree, page)] == [True]
