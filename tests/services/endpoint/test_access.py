"""Who may call: tokens, their scopes, their files, and callers on the same machine, on both protocols."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from grpc_calls import FakeCall, answering, call
from pipelines import TIMEOUT_S, lacks
from served_bundles import ask, endpoint_of, numbers_bundle
from strangers import STRANGER, as_stranger

from millrace.learners.errors import ConfigError
from millrace.services.endpoint.endpoint import Endpoint
from millrace.services.endpoint.http import HttpApp
from millrace.services.errors import AccessError, ScopeError
from millrace.services.protocol.access import LABEL, PREDICT, SCOPES, Access, access, own_token, read_tenants, read_tokens
from millrace.services.serving.up import Listening
from millrace.streams.errors import StorageError

BUNDLE = numbers_bundle()
ELSEWHERE = "comes from another address"
TOKENS = {"full": SCOPES, "asks": frozenset({PREDICT}), "tells": frozenset({LABEL})}


def guarded(local_is_open: bool) -> Endpoint:
    """An endpoint with a token for each use."""
    plain = endpoint_of(BUNDLE)
    return Endpoint(plain.name, plain.schema, plain.held, access(TOKENS, local_is_open))


def http(endpoint: Endpoint, client: str, token: str = "", **headers: str) -> int:
    """The status of a metadata request."""
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    return ask(HttpApp(endpoint), "GET", "/v2", headers=shown | headers, client=client).status


def grpc(endpoint: Endpoint, client: str, token: str = "", name: str = "ServerMetadata", **metadata: str) -> str:
    """The status of a call."""
    shown = {"authorization": f"Bearer {token}"} if token else {}
    return call(endpoint, name, b"", FakeCall(client, tuple((shown | metadata).items())))[0].code


@pytest.mark.parametrize("local_is_open", [True, False])
def test_another_machine_is_answered_only_with_a_token_for_what_it_asks(local_is_open: bool) -> None:
    """401 and UNAUTHENTICATED without one that is known, 403 and PERMISSION_DENIED with one for something else."""
    here = guarded(local_is_open)
    shown = {"": (401, "UNAUTHENTICATED"), "guess": (401, "UNAUTHENTICATED"), "tells": (403, "PERMISSION_DENIED")}
    shown |= {"asks": (200, "OK"), "full": (200, "OK")}
    for token, (status, code) in shown.items():
        assert http(here, "10.0.0.9", token) == status
        assert grpc(here, "ipv4:10.0.0.9:5", token) == grpc(here, "ipv6:%5Bfd00::9%5D:5", token) == code
    assert grpc(here, "ipv4:10.0.0.9:5", "asks", "Label") == "PERMISSION_DENIED"
    assert grpc(here, "ipv4:10.0.0.9:5", "tells", "Label") == "UNIMPLEMENTED"


def test_this_machine_needs_a_token_only_where_its_callers_cannot_be_told_from_others() -> None:
    """A call that was forwarded comes from elsewhere, though a proxy on this machine hands it on."""
    for open_here, status, code in ((True, 200, "OK"), (False, 401, "UNAUTHENTICATED")):
        here = guarded(open_here)
        assert [http(here, client) for client in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1")] == [status] * 4
        peers = ("ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5", "ipv6:[::ffff:127.0.0.1]:5", "unix:/tmp/x")
        assert [grpc(here, peer) for peer in peers] == [code] * 4
    here = guarded(True)
    assert http(here, "127.0.0.1", **{"X-Forwarded-For": "127.0.0.1"}) == 401
    assert http(here, "127.0.0.1", "asks", **{"X-Forwarded-For": "127.0.0.1"}) == 200
    assert grpc(here, "ipv4:127.0.0.1:5", **{"x-forwarded-for": "127.0.0.1"}) == "UNAUTHENTICATED"
    assert [grpc(here, peer) for peer in ("", "ipv4:", "ipv4:localhost:5", "?", "ipv4:127.0.0.1.9:5")] == [
        "UNAUTHENTICATED"
    ] * 5


@pytest.mark.parametrize(
    "shown", [b"", b"full", b"Basic full", b"Bearer", b"Bearer ", b"Bearer full2", b"Bearer " + b"x" * 9999]
)
def test_what_is_not_quite_a_token_is_none(shown: bytes) -> None:
    """Neither a part, nor more, nor another kind; case and spaces of the kind do not matter."""
    with pytest.raises(AccessError):
        access(TOKENS, False).check(shown, ELSEWHERE, PREDICT)
    access(TOKENS, False).check(b"bearer  full ", ELSEWHERE, PREDICT)
    with pytest.raises(ScopeError):
        access(TOKENS, False).check(b"Bearer asks", ELSEWHERE, LABEL)
    assert "full" not in repr(access(TOKENS, False))


def test_without_any_token_only_this_machine_is_answered() -> None:
    """The default of an endpoint."""
    Access().check(b"", "", PREDICT)
    with pytest.raises(AccessError):
        Access().check(b"Bearer ", ELSEWHERE, PREDICT)


def test_a_token_of_our_own_is_kept_where_only_its_owner_reads_it(tmp_path: Path) -> None:
    """Made once, then the same again; where it cannot be kept, the way out is said."""
    path = tmp_path / "digits" / "token"
    token = own_token(path)
    assert len(token) > 40 and own_token(path) == token and path.stat().st_mode & 0o777 == 0o600
    assert own_token(tmp_path / "other" / "token") != token
    with pytest.raises(StorageError, match="MILLRACE_TOKEN"):
        own_token(path / "token")


def test_a_file_of_tokens_says_what_each_is_for(tmp_path: Path) -> None:
    """Its mistakes are named by line and never shown."""
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text("# who\npredict asks\n\nlabel tells\npredict,label full\n")
    assert read_tokens(path) == TOKENS
    for text, words in (
        ("", "has no token"),
        ("predict\n", "line 1"),
        ("\nadmin s3cret\n", "line 2"),
        ("label a b c\n", "line 1"),
        ("label a b/c\n", "line 1: a tenant's name"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            read_tokens(path)
        assert "s3cret" not in str(caught.value)


def test_a_line_may_name_the_tenant_whose_token_it_is(tmp_path: Path) -> None:
    """Whoever shows it is that tenant's; a token without a name, one that is not known and none at all are nobody's."""
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text("predict first acme\npredict second b.c-d_9\nlabel second\npredict third\n")
    allowed = access(read_tokens(path), local_is_open=False, tenants=read_tenants(path))
    shown = {"first": "acme", "second": "b.c-d_9", "third": "", "none of ours": ""}
    assert {token: allowed.tenant_of(b"Bearer " + token.encode()) for token in shown} == shown
    assert allowed.tenant_of(b"") == "" and allowed.tenant_of(b"bearer first ") == "acme"
    allowed.check(b"Bearer second", "x", LABEL)
    path.write_text("predict first acme\nlabel first other\n")
    with pytest.raises(ConfigError, match="one token is that of acme and of other") as caught:
        read_tenants(path)
    assert "first" not in str(caught.value)


GROUP, OTHER = 20002, 30003  # a group that the reader is in beside its own, and one that it is not in
FINE = "fine"
READ = "import sys, pathlib\nfrom millrace.services.protocol.access import read_tokens\nfor path in sys.argv[1:]:\n" + (
    "    try: print(len(read_tokens(pathlib.Path(path))) and 'fine')\n    except Exception as error: print(error)"
)
MODES = [  # owner, group, mode, what a reader of user 10001 says
    (STRANGER, STRANGER, 0o600, FINE),
    (STRANGER, STRANGER, 0o400, FINE),
    (0, GROUP, 0o440, FINE),  # a Secret under fsGroup
    (0, GROUP, 0o640, FINE),
    (0, STRANGER, 0o440, FINE),
    (STRANGER, GROUP, 0o640, FINE),
    (STRANGER, STRANGER, 0o440, FINE),
    (0, OTHER, 0o440, f"group {OTHER} may read the tokens in it and is none of ours. Run chmod 600 on it."),
    (STRANGER, OTHER, 0o640, f"group {OTHER} may read the tokens in it and is none of ours. Run chmod 600 on it."),
    (0, 0, 0o640, "group 0 may read the tokens in it and is none of ours. Run chmod 600 on it."),
    (OTHER, GROUP, 0o440, f"user {OTHER} owns it and lets a group read it. Run chown on it, or chmod 600."),
    (0, GROUP, 0o460, f"all of group {GROUP} may change the tokens in it (mode 0460). Run chmod 600 on it, or 640."),
    (
        STRANGER,
        STRANGER,
        0o660,
        f"all of group {STRANGER} may change the tokens in it (mode 0660). Run chmod 600 on it, or 640.",
    ),
    (0, GROUP, 0o444, "other users may read the tokens in it (mode 0444). Run chmod 600 on it, or 640."),
    (STRANGER, GROUP, 0o642, "other users may change the tokens in it (mode 0642). Run chmod 600 on it, or 640."),
    (STRANGER, STRANGER, 0o604, "other users may read the tokens in it (mode 0604). Run chmod 600 on it, or 640."),
]


def test_a_group_of_ours_may_read_the_tokens_where_root_or_we_own_them_and_nobody_else(tmp_path: Path) -> None:
    """Every mode and owner, read by user 10001, who is in two groups; what is refused is one sentence."""
    paths = [tmp_path / f"{at}" for at, _ in enumerate(MODES)]
    command = as_stranger([sys.executable, "-c", READ, *map(str, paths)], GROUP)
    for path, (owner, group, mode, _) in zip(paths, MODES, strict=True):
        path.write_text("predict asks\n")
        os.chown(path, owner, group)
        path.chmod(mode)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    wanted = [said if said == FINE else f"{path}: {said}" for path, (*_, said) in zip(paths, MODES, strict=True)]
    assert done.stdout.splitlines() == wanted, done.stderr


def test_our_own_group_may_read_the_tokens_and_others_may_not(tmp_path: Path) -> None:
    """By whoever runs the tests, root or not."""
    path = tmp_path / "tokens"
    path.write_text("predict asks\n")
    os.chown(path, -1, os.getegid())
    for mode in (0o600, 0o640, 0o440):
        path.chmod(mode)
        assert read_tokens(path) == {"asks": frozenset({PREDICT})}
    for mode in (0o644, 0o660):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_tokens(path)


def test_who_needs_a_token_follows_from_host_and_from_what_was_given(tmp_path: Path) -> None:
    """Callers here are let in without one only on loopback, and only where nobody chose a token."""
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("predict asks\n")
    own = tmp_path / "token"
    assert Listening(token="t").access(own).local_is_open is Listening(tokens=tokens).access(own).local_is_open is False
    assert not own.exists()
    assert Listening().access(own).local_is_open and Listening(host="::1").access(own).local_is_open
    outside = Listening(host="0.0.0.0").access(own)
    assert not outside.local_is_open
    outside.check(f"Bearer {own.read_text().strip()}".encode(), "", LABEL)
    both = Listening(token="t", tokens=tokens).access(own)
    both.check(b"Bearer t", ELSEWHERE, LABEL)
    both.check(b"Bearer asks", ELSEWHERE, PREDICT)


OUTSIDER = """
import asyncio, grpc, sys
from grpc_calls import Client
async def ask(shown):
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        try:
            await Client(channel)("ServerMetadata", b"", metadata=(("authorization", shown),), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"
print(*[asyncio.run(ask(shown)) for shown in ("", "Bearer tells", "Bearer asks")])
"""


def ip(*words: str) -> None:
    """Change the network, or skip where this process may not."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lacks(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def outside():
    """A network namespace that reaches this one at 10.231.77.1, as another machine would."""
    if not Path("/usr/sbin/ip").exists() and not Path("/sbin/ip").exists():
        lacks("there is no `ip` here to make another network with")
    name = "millrace-test"
    ip("netns", "add", name)
    try:
        ip("link", "add", "mr-here", "type", "veth", "peer", "name", "mr-there", "netns", name)
        ip("addr", "add", "10.231.77.1/30", "dev", "mr-here")
        ip("link", "set", "mr-here", "up")
        ip("-n", name, "addr", "add", "10.231.77.2/30", "dev", "mr-there")
        ip("-n", name, "link", "set", "mr-there", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", "mr-here"], capture_output=True, check=False)


@pytest.mark.slow
def test_over_a_network_the_token_is_asked_for(outside: str) -> None:
    """From a network namespace of its own, over a real server."""

    async def talk() -> str:
        async with answering(guarded(True), "10.231.77.1") as client:
            process = await asyncio.create_subprocess_exec(
                *["ip", "netns", "exec", outside, sys.executable, "-c", OUTSIDER, client.target],
                env={"PYTHONPATH": str(Path(__file__).parents[1] / "support"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate()
            return out.decode()

    assert asyncio.run(talk()).split() == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]


def test_a_token_may_stand_on_several_lines_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    """Its scopes add up; what everybody could show is no token."""
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text("predict one\nlabel one\n")
    assert read_tokens(path) == {"one": SCOPES}
    with pytest.raises(ConfigError, match="empty"):
        access({" ": SCOPES}, local_is_open=False)
