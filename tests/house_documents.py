"""What documents and code cite: links with their anchors, numbered rules, files; and which of them do not open."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

RULES = "docs/design/journal.md"  # whose numbers code cites as rule and test
STYLE = "CONTRIBUTING.md"  # whose numbers code cites as style
INDEX = "docs/index.md"  # from which every page is reached
BESIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")  # documents at the root

# Documents that are named and are not ours.
FOREIGN: Mapping[str, str] = {
    "inference_rest.md": "of the Open Inference Protocol",
    "specification/protocol/inference_rest.md": "of the Open Inference Protocol",
    "extension_binary_data.md": "of Triton",
    "table.md": "what a benchmark writes into a folder that its caller names",
}

# Documents say a count as a word; a word's place is its number.
NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
COUNTS = f"{NUMERALS} eighteen nineteen twenty twenty-one twenty-two".split()

FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?)\s*$", re.MULTILINE)
DOCUMENT = re.compile(r"(?<![\w/])((?:[\w.-]+/)*[\w.-]+\.md)(?:#([\w-]+))?")
NUMBERED = re.compile(r"\b(rule|test|style)s? (\d+(?:(?:, | and | to )\d+)*)")
FOLDERS = "learners|streams|services|tests|deploy|examples|docs"
FILE = re.compile(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w\.(?:py|toml|md|json|txt|proto))\b")
TEST_FILE = re.compile(r"(?<![\w/])(test_\w+\.py)\b")


def slug(heading: str) -> str:
    """The anchor that a heading gets.

    >>> slug("River's `models`, and DER++")
    'rivers-models-and-der'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a document's headings; the second of a name is told apart by a number, as on the repository's page."""
    made: dict[str, int] = {}
    slugs = set()
    for heading in HEADING.findall(FENCED.sub("", path.read_text(encoding="utf-8"))):
        name = slug(heading)
        made[name] = made.get(name, -1) + 1
        slugs.add(f"{name}-{made[name]}" if made[name] else name)
    return frozenset(slugs)


def documents(root: Path) -> list[Path]:
    """Every document of ours that is there."""
    return [path for name in BESIDE if (path := root / name).exists()] + sorted((root / "docs").rglob("*.md"))


def targets(root: Path, document: Path) -> Iterator[tuple[str, Path, str]]:
    """What a document links to inside the repository: the link as it stands, the file, the anchor."""
    text = CODE.sub("", FENCED.sub("", document.read_text(encoding="utf-8")))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        yield link, (document.parent / name).resolve() if name else document, anchor


def broken_links(root: Path, document: Path) -> Iterator[str]:
    """Links of a document that lead nowhere, or out of the repository."""
    for link, path, anchor in targets(root, document):
        place = f"{document.relative_to(root).as_posix()}: ({link})"
        if not path.exists() or not path.is_relative_to(root.resolve()):
            yield f"{place} opens no file of the repository"
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path)):
            yield f"{place}: {path.name} has no heading of that name; it has {', '.join(sorted(anchors(path))[:40])}"


def unreachable(root: Path) -> list[str]:
    """Pages of docs to which no way leads from the index."""
    pages = {path.resolve() for path in (root / "docs").rglob("*.md")}
    reached, ahead = set[Path](), [(root / INDEX).resolve()]
    while ahead:
        page = ahead.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        ahead += [path for _, path, _ in targets(root, page) if path.suffix == ".md"]
    return sorted(path.relative_to(root.resolve()).as_posix() for path in pages - reached)


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """Comments and docstrings of a Python file, each as one line, with the line it begins at.

    Comments that stand below each other are one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node)
            if told is not None:
                yield node.body[0].lineno, " ".join(told.split())
    gathered: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if gathered and token.start[0] != gathered[-1][0] + 1:
                yield _joined(gathered)
                gathered = []
            gathered.append((token.start[0], token.string.lstrip("#: ")))
    if gathered:
        yield _joined(gathered)


def _joined(comments: list[tuple[int, str]]) -> tuple[int, str]:
    return comments[0][0], " ".join(text for _, text in comments)


def broken_citations(root: Path, path: str, source: str) -> Iterator[str]:
    """What comments and docstrings of a Python file name and what does not open: documents, anchors, numbers, files."""
    for line, words in words_of(source):
        place = f"{path}:{line}"
        for name, anchor in DOCUMENT.findall(words):
            if name in FOREIGN:
                continue
            if not (root / name).is_file():
                yield f"{place} cites {name}, which is not in the repository; cite a path from its root"
            elif anchor and anchor not in anchors(root / name):
                yield f"{place} cites {name}#{anchor}, and that has no heading of that name"
        yield from _missing_files(root, place, words)
        yield from _missing_numbers(root, place, words)


def _missing_files(root: Path, place: str, words: str) -> Iterator[str]:
    for name in FILE.findall(words):
        if not name.endswith(".md") and not (root / name).is_file():
            yield f"{place} names {name}, which is not in the repository"


def _missing_numbers(root: Path, place: str, words: str) -> Iterator[str]:
    numbered = numbers(root)
    for kind, cited in NUMBERED.findall(words):
        for number in numbers_of(cited):
            if number not in numbered[kind]:
                yield f"{place} cites {kind} {number}, and {STYLE if kind == 'style' else RULES} has none of that number"


def numbers_of(cited: str) -> list[int]:
    """The numbers of a citation.

    >>> numbers_of("2, 9 and 18"), numbers_of("2 to 4")
    ([2, 9, 18], [2, 3, 4])
    """
    listed: list[int] = []
    for word, number in re.findall(r"(^|, | and | to )(\d+)", cited):
        listed += range(listed[-1] + 1, int(number) + 1) if word == " to " else [int(number)]
    return listed


@cache
def numbers(root: Path) -> Mapping[str, frozenset[int]]:
    """The numbers that can be cited: rules and kinds of tests of the journal, points of style."""
    rules = FENCED.sub("", (root / RULES).read_text(encoding="utf-8"))
    style = (root / STYLE).read_text(encoding="utf-8").partition("\n## Style\n")[2]
    return {
        "rule": frozenset(map(int, re.findall(r"^## Rule (\d+)$", rules, re.MULTILINE))),
        "test": frozenset(map(int, re.findall(r"^### Test (\d+)$", rules, re.MULTILINE))),
        "style": frozenset(map(int, re.findall(r"^(\d+)\. ", style, re.MULTILINE))),
    }


def missing_files(root: Path, document: Path) -> Iterator[str]:
    """Files that a document names and that are not there; a test by its name alone stands anywhere below tests."""
    text, place = document.read_text(encoding="utf-8"), document.relative_to(root).as_posix()
    for name in sorted({*FILE.findall(text)}):
        if not (root / name).is_file():
            yield f"{place} names {name}, which is not in the repository"
    for name in sorted({*TEST_FILE.findall(text)}):
        if not any((root / "tests").rglob(name)):
            yield f"{place} names {name}, and no test has that name"


def count_of(text: str, sentence: str) -> int:
    """The count that a document says, in the place of COUNT in a part of a sentence of it, wherever lines end.

    >>> count_of("of ten invariants under nineteen\\nfaults", "under COUNT faults")
    19
    """
    match = re.search(re.escape(sentence).replace("COUNT", r"([\w-]+)"), " ".join(text.split()))
    assert match is not None, f"the document no longer says: {sentence}"
    return COUNTS.index(match[1])


def benchmark_rows(text: str) -> list[tuple[str, ...]]:
    """The rows of a document's table of benchmarks, each with the command that stands in it or above it.

    >>> benchmark_rows("| command | case | ratio |\\n|---|---|---|\\n| `make a` | b | 2 |\\n| | c | 3 |\\n")
    [('`make a`', 'b', '2'), ('`make a`', 'c', '3')]
    """
    table = re.search(r"^\| command \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows: list[tuple[str, ...]] = []
    for line in table[1].splitlines() if table else ():
        command, *cells = (cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))
        rows.append((command or rows[-1][0], *cells))
    return rows


def repeated(lines: Iterable[str]) -> list[str]:
    """Lines of some length that stand twice, as a merge may leave them."""
    seen, doubled = set[str](), []
    for line in lines:
        if len(line) > 40 and line in seen:
            doubled.append(line)
        seen.add(line)
    return doubled
