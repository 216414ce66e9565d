"""README, tutorial, how-to pages: every block of theirs runs, in order, in a folder that was empty."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from house_documents import count_of
from pages import KINDS, ROOT, Block, Reader, blocks, reading
from pipelines import lacks
from served_pipeline import served

from millrace.learners.table import LEARNERS

README, TUTORIAL = "README.md", "docs/tutorial.md"
LABELS, TOKENS = "docs/how-to/late-labels.md", "docs/how-to/tokens-and-ports.md"
BROKER, MLFLOW = "docs/how-to/kafka.md", "docs/how-to/mlflow.md"  # test_examples.py and test_mlflow.py play these two
ALONE = [  # pages that need neither an endpoint nor another server
    "docs/how-to/arrow-avro-cloudevents-images.md",
    "docs/how-to/choose-a-learner.md",
    "docs/how-to/drift.md",
    "docs/how-to/entities.md",
    "docs/how-to/error-memory.md",
    "docs/how-to/replay-and-rollback.md",
    "docs/how-to/retention-and-disk.md",
    "docs/how-to/shards.md",
]
LEARNER = "docs/how-to/add-a-learner.md"  # which changes the package: test_own_learner.py follows it
WORDS = ["add-a-format", "metrics", "values-and-types", "refused-records", "what-status-warns-of"]  # pages without a block
DRAFT = "docs/how-to/distil-a-draft.md"  # tests/services/llm plays it, on a real vLLM
UPDATE, KUBERNETES = "docs/how-to/update.md", "docs/how-to/kubernetes.md"
EXTRAS = "docs/how-to/extras.md"  # tests/learners/test_extras.py runs what the errors say of it
NOT_RUN = {
    README: 1,
    TUTORIAL: 2,
    LEARNER: 3,
    MLFLOW: 2,
    UPDATE: 1,
    KUBERNETES: 6,
    EXTRAS: 1,
}  # blocks left out, each with its reason beside it; no others are
GRPCURL = shutil.which("grpcurl", path=f"{ROOT / '.tools' / 'bin'}:{os.environ['PATH']}")
SERVED = pytest.mark.xdist_group("served")  # two cores serve one instance at a time
PAGES = [
    README,
    TUTORIAL,
    LABELS,
    TOKENS,
    BROKER,
    MLFLOW,
    LEARNER,
    UPDATE,
    KUBERNETES,
    EXTRAS,
    DRAFT,
    *(f"docs/how-to/{name}.md" for name in WORDS),
    *ALONE,
]


@contextmanager
def serving(folder: Path, file: str, words: Sequence[str]) -> Iterator[dict[str, str]]:
    """`millrace up` on ports of its own: what a page calls them -> where they are."""
    with served(folder, *words, file=file) as up:
        yield {"localhost:8000": f"127.0.0.1:{up.port}", "localhost:8001": f"127.0.0.1:{up.grpc_port}"}


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Somebody who has read the tutorial to its end, with its endpoint still up."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    if shutil.which("curl") is None:
        lacks("there is no curl")
    with reading(tmp_path_factory.mktemp("tutorial"), serve=serving) as reader:
        reader.read(blocks(TUTORIAL))
        yield reader


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """Where it is."""
    if GRPCURL is None:
        lacks("there is no grpcurl, and `make clients` makes it only where Go is")
    return GRPCURL


def block_with(page: str, word: str) -> Block:
    """The one block of a page that holds the word."""
    (wanted,) = [block for block in blocks(page) if word in block.text]
    return wanted


def test_every_page_is_played() -> None:
    """A page that is written, and stands in no list of this file, is found out."""
    written = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "how-to").glob("*.md")]
    assert sorted(PAGES) == sorted([README, TUTORIAL, *written])


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_left_out_by_accident(page: str) -> None:
    """As many as are counted here, each with a reason of several words; and every kind of block is one that is played."""
    all_blocks = blocks(page)
    reasons = [block.why for block in all_blocks if block.why is not None]
    assert len(reasons) == NOT_RUN.get(page, 0), f"{page}: {reasons}"
    assert all(len(why.split()) > 3 for why in reasons), reasons
    assert {block.kind for block in all_blocks} <= KINDS


def test_the_documents_count_what_there_is() -> None:
    """Blocks that are left out of the pages that the index speaks of, and kinds of learner; each count is a word."""
    index, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/index.md", README))
    left_out = sum(count for page, count in NOT_RUN.items() if page != README)
    assert count_of(index, "the tutorial and of the how-to pages but COUNT, each with its reason beside it") == left_out
    assert count_of(index, "| COUNT kinds, what each is for") == count_of(readme, "COUNT kinds of learner") == len(LEARNERS)
    assert count_of(index.replace("but fifteen", "but six"), "pages but COUNT, each") != left_out


def test_every_learner_stands_on_its_page() -> None:
    """Each kind of the table, once, in the first table of the page from which one chooses."""
    text = (ROOT / "docs" / "how-to" / "choose-a-learner.md").read_text(encoding="utf-8")
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    kinds = [name for line in table[0].splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    assert sorted(kinds) == sorted(LEARNERS)


def test_the_readers_rules_can_fail(tmp_path: Path) -> None:
    """A command that fails, a line that is not printed, a key that does not exist: each is said with its place."""
    for kind, text, sentence in (
        ("sh", "exit 3", "page.md:7: exit 3"),
        ("console", "$ echo one 2\none 3\ntwo", "shows\ntwo"),
        ("toml", "name = 1", "names no file"),
    ):
        with pytest.raises(AssertionError, match=re.escape(sentence)):
            Reader(tmp_path).play(Block("page.md", 7, kind, text))
    Reader(tmp_path).play(Block("page.md", 7, "console", "$ echo one 2\none 3\n"))


@pytest.mark.slow
@pytest.mark.parametrize("page", ALONE)
def test_a_page_holds(page: str, tmp_path: Path) -> None:
    """Block after block, in a folder of its own."""
    pytest.importorskip("sklearn", reason="scikit-learn, which brings the digits, is not installed")
    with reading(tmp_path) as reader:
        reader.read(blocks(page))


@pytest.mark.slow
@SERVED
def test_the_tutorial_holds(tutorial: Reader) -> None:
    """Ready, described, answered from the branch while it learns, and after the rollback from the version."""
    (text,) = [text for text in tutorial.printed if text.startswith('{"ready"')]
    ready, model, answer = (json.loads(line) for line in text.replace("}{", "}\n{").splitlines())
    assert ready == {"ready": True}
    assert model["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 64]}]
    assert answer["parameters"]["branch"] == "main"
    assert [output["name"] for output in answer["outputs"]] == ["scores", "label"]
    assert "'version': 'main." in tutorial.printed[-1]


@pytest.mark.slow
@SERVED
def test_the_tutorials_grpcurl_is_answered(grpcurl: str, tutorial: Reader) -> None:
    """The same over gRPC, found by reflection."""
    block = block_with(TUTORIAL, "grpcurl ")
    tutorial.play(block)
    answer = json.loads(tutorial.printed[-1])
    assert answer["model_name"] == "digits"
    assert {output["name"] for output in answer["outputs"]} == {"scores", "label"}


@pytest.mark.slow
@SERVED
def test_the_readme_holds(tutorial: Reader, tmp_path: Path) -> None:
    """Its pipeline is the tutorial's, whose endpoint is asked; its night call is played whole."""
    with reading(tmp_path, tutorial.addresses) as reader:
        reader.read(blocks(README))
    assert any(re.search(r"records +1442", text) for text in reader.printed)
    assert any('"branch":"main"' in text.replace(" ", "") for text in reader.printed)
    assert re.search(r"main +.*replay-1 +true", reader.printed[-1]), reader.printed[-1]


@pytest.mark.slow
@SERVED
@pytest.mark.parametrize("page", [LABELS, TOKENS])
def test_a_page_with_an_endpoint_of_its_own_holds(page: str, tmp_path: Path) -> None:
    """Block after block, with `millrace up` as the page gives it."""
    pytest.importorskip("ray", reason="serving needs Ray, the extra `serve`")
    if shutil.which("curl") is None:
        lacks("there is no curl")
    with reading(tmp_path, serve=serving) as reader:
        reader.read(blocks(page))


@pytest.mark.slow
@SERVED
def test_the_example_over_grpc_is_answered(clients: Path, tutorial: Reader) -> None:
    """`examples/client_grpc.py`, in the environment of other people's clients: two labels, and the state that says so."""
    tutorial.play(Block(__file__, 0, "sh", f"{clients} {ROOT / 'examples' / 'client_grpc.py'} localhost:8001"))
    assert re.fullmatch(r"\['\d', '\d'\] main\S+\n", tutorial.printed[-1]), tutorial.printed[-1]
