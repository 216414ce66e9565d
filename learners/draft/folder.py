"""A model's folder as Hugging Face lays it out: by what it is named, and what its config says. Nothing heavy is imported.

Source: docs/design/learners.md#draft.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import msgspec

from millrace.learners.errors import ConfigError

WEIGHTS = "model.safetensors"  # of a draft that we write, all in one file
NAMED_BY = ("config.json", "tokenizer.json")  # beside the weights, which are all files that end in .safetensors


@dataclass(frozen=True, slots=True)
class Model:
    """Of a tokenizer."""

    vocab: dict[str, int] | list[tuple[str, float]] = field(
        default_factory=dict
    )  # tokens with their numbers; or in their order, each with a score


@dataclass(frozen=True, slots=True)
class Added:
    """A token beside those of the model."""

    id: int
    content: str


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What tokenizer.json says of tokens."""

    model: Model
    added_tokens: list[Added] = field(default_factory=list)


def digest(path: Path) -> str:
    """The sha256 of a file, read whole. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def fingerprint(folder: Path, digest_of: Callable[[Path], str] = digest) -> str:
    """The sha256 of a folder: of its config, tokenizer and weights, each by name and sha256, which ``digest_of`` gives.

    Raises: ConfigError where it has no config or no weights, or cannot be read.
    """
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights or not (folder / NAMED_BY[0]).is_file():
        raise ConfigError(f"{folder} is no model's folder: it needs {NAMED_BY[0]} and weights in *.safetensors.")
    named = sha256()
    for name in [*(name for name in NAMED_BY if (folder / name).is_file()), *weights]:
        named.update(f"{name} {digest_of(folder / name)}\n".encode())
    return named.hexdigest()


def tokens_of(folder: Path) -> dict[str, int] | None:
    """Every token with its number, as tokenizer.json has them; None where there is no such file. Raises: ConfigError."""
    path = folder / NAMED_BY[1]
    try:
        tokenizer = msgspec.json.decode(path.read_bytes(), type=Tokenizer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    vocabulary = tokenizer.model.vocab
    named = vocabulary if isinstance(vocabulary, dict) else {token: at for at, (token, _) in enumerate(vocabulary)}
    return named | {token.content: token.id for token in tokenizer.added_tokens}


def config_of(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says. Raises: ConfigError."""
    path = folder / NAMED_BY[0]
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise ConfigError(f"{path} names no vocab_size, so it is no language model's config.")
    return config
