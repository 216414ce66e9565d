"""`examples/`: what is a page's block runs with that page; the rest runs here. Nothing in that folder is only looked at."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_topics import forgotten
from either_log import KAFKA
from pages import ROOT, Block, blocks, reading

EXAMPLES = ROOT / "examples"
SHOWN = {  # example -> the pages that show it as it stands, and are played by test_pages.py or below
    "digits.toml": ["README.md", "docs/tutorial.md"],
    "client_http.py": ["docs/tutorial.md"],
    "spam.toml": ["docs/how-to/late-labels.md"],
    "images.toml": ["docs/how-to/arrow-avro-cloudevents-images.md"],
    "kafka.toml": ["docs/how-to/kafka.md"],
    "llm/llm.toml": ["docs/how-to/distil-a-draft.md"],  # which tests/services/llm plays on a real vLLM
    "llm/ask.py": ["docs/how-to/distil-a-draft.md"],
}


def test_every_example_is_run() -> None:
    """Each is shown by a page that is played, or a test names its path, without which it could not run it."""
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    paths = "\n".join(re.sub(r"[\"' ]", "", text) for text in tests)
    for name in (path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.*")):
        assert name in SHOWN or re.search(rf"examples/{re.escape(name)}", paths, re.IGNORECASE), name
    assert all((EXAMPLES / name).is_file() for name in SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_is_what_its_pages_show(name: str) -> None:
    """Byte for byte, so that whoever copies either has the same."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for page in SHOWN[name]:
        assert text in [block.text for block in blocks(page)], page


@pytest.fixture
def clicks(broker, tmp_path: Path) -> Iterator[Path]:
    """A folder whose pipeline is on the broker, which knows nothing of it afterwards."""
    with forgotten(broker, tmp_path, "clicks"):
        yield tmp_path


@pytest.mark.parametrize("page", [pytest.param("docs/how-to/kafka.md", marks=KAFKA)])
def test_the_page_of_kafka_holds_and_the_producer_is_learned_from(page: str, broker, clicks: Path) -> None:
    """The page's blocks; then Arrow batches of a producer that has nothing of ours, each row learned once."""
    with reading(clicks, {"localhost:9092": broker.bootstrap}) as reader:
        reader.read(blocks(page))
        script = f"{sys.executable} {EXAMPLES / 'arrow_producer.py'} localhost:9092\nmillrace run clicks.toml\n"
        for text in (script, "millrace status clicks.toml"):
            reader.play(Block(__file__, 0, "sh", text))
    assert "3 messages of 500 rows" in reader.printed[-2]
    assert re.search(r"^learned +1700$", reader.printed[-1], re.MULTILINE), reader.printed[-1]
    assert re.search(r"^rejected +0$", reader.printed[-1], re.MULTILINE)
