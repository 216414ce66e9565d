"""Who may call: bearer tokens with scopes, and callers on the same machine.

A replica's own ports listen on every interface whatever the host is set to, and HAProxy in front of them does not say who
called. So where HAProxy listens on loopback alone, whoever comes by loopback is on this machine and may call without a token.
Where it listens wider, everybody needs one. A call that says it was forwarded comes from somewhere else, whoever hands it on.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from millrace.learners.errors import ConfigError
from millrace.services.errors import AccessError, ScopeError
from millrace.streams.errors import StorageError

PREDICT = "predict"
LABEL = "label"
SCOPES = frozenset({PREDICT, LABEL})
BEARER = b"Bearer "
FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})  # headers by which a proxy says for whom it calls
LONGEST = 4096  # characters of an ``Authorization`` header that is looked at


@dataclass(frozen=True, slots=True)
class Access:
    """What callers must show. Tokens themselves are not kept."""

    scopes: Mapping[bytes, frozenset[str]] = field(default_factory=dict)  # sha256 of a token -> what it is for
    local_is_open: bool = True  # whether callers on this machine need none

    def check(self, authorization: bytes, local: bool, scope: str) -> None:
        """Let a caller pass who showed a header ``Authorization``, or none.

        Raises: AccessError without a token that is known, ScopeError with one for something else.
        """
        if local and self.local_is_open:
            return
        if not authorization[: len(BEARER)].lower() == BEARER.lower() or len(authorization) > LONGEST:
            raise AccessError("Show this endpoint's token: `Authorization: Bearer TOKEN`, on gRPC as metadata `authorization`.")
        scopes = self.scopes.get(sha256(authorization[len(BEARER) :].strip()).digest())
        if scopes is None:
            raise AccessError("This token is not one of this endpoint's. Its file is printed where the endpoint starts.")
        if scope not in scopes:
            raise ScopeError(f"This token is for {', '.join(sorted(scopes))} and not for {scope}; show one that is.")


def access(tokens: Mapping[str, frozenset[str]], local_is_open: bool) -> Access:
    """Of tokens and what each is for. Raises: ConfigError for one that is empty."""
    if not all(token.strip() for token in tokens):
        raise ConfigError("A token is empty, which everybody could show. Give another, or remove its file to have one made.")
    return Access({sha256(token.strip().encode()).digest(): scopes for token, scopes in tokens.items()}, local_is_open)


@lru_cache(1024)  # the same few callers ask again and again
def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own loopback, also where it is written as IPv4 within IPv6.

    >>> is_loopback("127.0.0.1"), is_loopback("::ffff:127.0.0.1"), is_loopback("::1"), is_loopback("10.0.0.9"), is_loopback("?")
    (True, True, True, False, False)
    """
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def own_token(path: Path) -> str:
    """The token in a file that only its owner can read, made where there is none.

    Raises: StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            new_path = path.with_suffix(".new")
            new_path.unlink(missing_ok=True)
            new_path.touch(mode=0o600, exist_ok=False)
            new_path.write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
            new_path.rename(path)
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise StorageError(f"The token's file {path} cannot be used: {error.strerror}. Set MILLRACE_TOKEN instead.") from error


def read_tokens(path: Path) -> dict[str, frozenset[str]]:
    """A file of tokens: a line each, scopes (``predict``, ``label``, ``predict,label``), space, token; ``#`` for comments.

    Raises: ConfigError naming the line, never the token.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: other users can read the tokens in it. Run chmod 600 on it.")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The tokens' file {path} cannot be read: {error}.") from error
    tokens: dict[str, frozenset[str]] = {}
    for token, scopes in _token_lines(path, lines):  # one may stand on several lines
        tokens[token] = tokens.get(token, frozenset()) | scopes
    if not tokens:
        raise ConfigError(f"{path}: has no token. Write lines such as `predict,label TOKEN`.")
    return tokens


def _token_lines(path: Path, lines: Iterable[str]) -> Iterable[tuple[str, frozenset[str]]]:
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        scopes = frozenset(fields[0].split(","))
        if len(fields) != 2 or not scopes <= SCOPES:
            raise ConfigError(f"{path}: line {number} must be scopes ({', '.join(sorted(SCOPES))}), a space, and a token.")
        yield fields[1], scopes
