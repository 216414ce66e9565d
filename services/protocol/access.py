"""Who may call: bearer tokens with scopes, and callers on the same machine.

Where an endpoint listens on loopback alone, a caller on this machine may call without a token. Where it listens wider,
everybody needs one. Who is taken for a caller on this machine stands in callers.py.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE

from millrace.learners.errors import ConfigError
from millrace.services.errors import AccessError, ScopeError
from millrace.streams.errors import StorageError

PREDICT = "predict"
LABEL = "label"
SCOPES = frozenset({PREDICT, LABEL})
BEARER = b"Bearer "
SHOW = "Show this endpoint's token: `Authorization: Bearer TOKEN`, on gRPC as metadata `authorization`."
NOT_LOCAL = " Only a call from this machine needs none, and this one {}."
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a tenant's name
LONGEST = 4096  # characters of an ``Authorization`` header that is looked at


@dataclass(frozen=True, slots=True)
class Access:
    """What callers must show. Tokens themselves are not kept."""

    scopes: Mapping[bytes, frozenset[str]] = field(default_factory=dict)  # sha256 of a token -> what it is for
    local_is_open: bool = True  # whether callers on this machine need none
    tenants: Mapping[bytes, str] = field(default_factory=dict)  # sha256 of a token -> whose it is, where its line says so

    def check(self, authorization: bytes, remote: str, *scopes: str) -> None:
        """Let a caller pass who showed a header ``Authorization``, or none, and who wants to do one of ``scopes``.

        ``remote`` says why the caller is not taken for one on this machine (``remote_because``); it is empty for one who is.
        Raises: AccessError without a token that is known, ScopeError with one for something else.
        """
        if self.local_is_open and not remote:
            return
        if not authorization[: len(BEARER)].lower() == BEARER.lower() or len(authorization) > LONGEST:
            raise AccessError(SHOW + (NOT_LOCAL.format(remote) if self.local_is_open else ""))
        allowed = self.scopes.get(_named(authorization))
        if allowed is None:
            raise AccessError("This token is not one of this endpoint's. Its file is printed where the endpoint starts.")
        if allowed.isdisjoint(scopes):
            raise ScopeError(
                f"This token is for {', '.join(sorted(allowed))} and not for {' or '.join(scopes)}; show one that is."
            )

    def tenant_of(self, authorization: bytes) -> str:
        """Whose token a caller shows; empty: nobody's, or it shows none.

        >>> access({"secret": SCOPES}, local_is_open=True, tenants={"secret": "acme"}).tenant_of(b"Bearer secret")
        'acme'
        """
        return self.tenants.get(_named(authorization), "")


def _named(authorization: bytes) -> bytes:
    """By what a header's token is known here."""
    return sha256(authorization[len(BEARER) :].strip()).digest()


def access(tokens: Mapping[str, frozenset[str]], local_is_open: bool, tenants: Mapping[str, str] | None = None) -> Access:
    """Of tokens, what each is for, and whose some are. Raises: ConfigError for one that is empty."""
    if not all(token.strip() for token in tokens):
        raise ConfigError("A token is empty, which everybody could show. Give another, or remove its file to have one made.")
    named = {token: sha256(token.strip().encode()).digest() for token in (*tokens, *(tenants or {}))}
    of_tenants = {named[token]: tenant for token, tenant in (tenants or {}).items()}
    return Access({named[token]: scopes for token, scopes in tokens.items()}, local_is_open, of_tenants)


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

    After another space a line may name the tenant whose token it is (``read_tenants``).
    Raises: ConfigError naming the line, never the token.
    """
    tokens: dict[str, frozenset[str]] = {}
    for token, scopes, _ in _token_lines(path):  # one may stand on several lines
        tokens[token] = tokens.get(token, frozenset()) | scopes
    if not tokens:
        raise ConfigError(f"{path}: has no token. Write lines such as `predict,label TOKEN`.")
    return tokens


def read_tenants(path: Path) -> dict[str, str]:
    """Of the same file, whose each token is that names a tenant. Raises: as ``read_tokens``; where one token names two."""
    tenants: dict[str, str] = {}
    for token, _, tenant in _token_lines(path):
        if tenant and tenants.setdefault(token, tenant) != tenant:
            raise ConfigError(f"{path}: one token is that of {tenants[token]} and of {tenant}. Give each tenant its own.")
    return tenants


def _lines(path: Path) -> list[str]:
    """Raises: ConfigError where it cannot be read, or others may."""
    try:
        with path.open(encoding="utf-8") as file:
            lines, status = file.read().splitlines(), os.fstat(file.fileno())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"The tokens' file {path} cannot be read: {why}. Name another (--tokens), or let this user read it."
        ) from error
    _refuse_readable(path, status)
    return lines


def _refuse_readable(path: Path, status: os.stat_result) -> None:
    """A group of this process may read it where root or this user gives it to them, as Kubernetes mounts a Secret.

    Raises: ConfigError where others may read it, or change it.
    """
    mode = S_IMODE(status.st_mode)
    if mode & 0o037:
        whom = "other users" if mode & 0o007 else f"all of group {status.st_gid}"
        may = "change" if mode & 0o022 else "read"
        raise ConfigError(f"{path}: {whom} may {may} the tokens in it (mode {mode:04o}). Run chmod 600 on it, or 640.")
    if mode & 0o040 and status.st_gid not in {os.getegid(), *os.getgroups()}:
        raise ConfigError(f"{path}: group {status.st_gid} may read the tokens in it and is none of ours. Run chmod 600 on it.")
    if mode & 0o040 and status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(f"{path}: user {status.st_uid} owns it and lets a group read it. Run chown on it, or chmod 600.")


def _token_lines(path: Path) -> Iterable[tuple[str, frozenset[str], str]]:
    """Token, scopes, and tenant or nothing."""
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        scopes = frozenset(fields[0].split(","))
        if len(fields) not in (2, 3) or not scopes <= SCOPES:
            raise ConfigError(f"{path}: line {number} must be scopes ({', '.join(sorted(SCOPES))}), a space, and a token.")
        tenant = "".join(fields[2:])
        if tenant and not TENANT.fullmatch(tenant):
            raise ConfigError(f"{path}: line {number}: a tenant's name must be 1 to 64 of the characters A-Z a-z 0-9 . _ -.")
        yield fields[1], scopes, tenant
