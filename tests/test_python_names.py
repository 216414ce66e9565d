"""docs/reference/python.md names what the code does, and every public name has an example."""

from __future__ import annotations

import doctest
import re

import python_names

from millrace.services import api


def test_every_public_name_has_an_example_that_runs() -> None:
    """Errors too, which it catches; and so has each method of the pipeline."""
    finder = doctest.DocTestFinder(recurse=True)
    for name in api.__all__:
        assert any(test.examples for test in finder.find(getattr(api, name), name)), f"{name} has no example"
    plain = {"name", "folder"}
    for name, member in python_names.members(api.Pipeline):
        assert name in plain or ">>> " in (member.__doc__ or ""), f"Pipeline.{name} has no example"


def test_the_list_is_sorted_and_holds_every_name_that_is_documented() -> None:
    """A name that a user reads about can be imported, and `import *` gives no other."""
    assert sorted(api.__all__) == api.__all__
    used = set(re.findall(r"^from millrace\.services\.api import (.*)$", python_names.PAGE.read_text(encoding="utf-8"), re.M))
    assert {name.strip() for line in used for name in line.split(",")} <= set(api.__all__)


def test_the_page_s_program_runs(tmp_path, monkeypatch, capsys) -> None:
    """The first block prints what its comment says."""
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", python_names.PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    exec(compile(block, "python.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"#\s+(\(.*\))$", block, re.M)[1]
