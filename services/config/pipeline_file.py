"""A pipeline file as TOML has it, before anything says what its values mean."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from millrace.learners.errors import ConfigError
from millrace.streams.schema import leaves


def read_toml(path: Path) -> dict[str, Any]:
    """What the file says. Raises: ConfigError where it is not there, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no pipeline file {path}. Name one, or write one after the README's example.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def refuse_large(raw: dict[str, Any], path: Path) -> None:
    """TOML's whole numbers have 64 bits, Python's have no end; hashes and journals could not write those down."""
    for key, value in leaves(raw).items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{path}: {key} = {value}: a whole number must fit into 64 bits.")
