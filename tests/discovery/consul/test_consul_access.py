"""Consul with ACLs and mutual TLS, and what the environment says about it."""

from __future__ import annotations

import asyncio
import gc
import shutil
import ssl
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
import trustme
from patience import patience
from registry_rig import Fake, Proxy, http, sees, stale, until

from discovery import TLS, Consul, SourceError, Watcher, open_source
from discovery.consul import environment
from lbclient.sandbox import ConsulServer, ServerTLS

pytestmark = pytest.mark.usefixtures("nothing_leaks")

NAME = "consul.test"
READ = 'node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }'
NOTHING = 'key_prefix "" { policy = "read" }'
UNKNOWN = "22222222-2222-2222-2222-222222222222"
VARIABLES = [
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_HTTP_TOKEN_FILE",
    "CONSUL_HTTP_AUTH",
    "CONSUL_HTTP_SSL",
    "CONSUL_HTTP_SSL_VERIFY",
    "CONSUL_CACERT",
    "CONSUL_CAPATH",
    "CONSUL_CLIENT_CERT",
    "CONSUL_CLIENT_KEY",
    "CONSUL_TLS_SERVER_NAME",
    "CONSUL_NAMESPACE",
]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    environment._warn.cache_clear()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca`, `server`, `client-key` and `client-cert`; `other`, a wrong authority, and its `stranger`."""
    folder = tmp_path_factory.mktemp("consul")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other.pem"))
    authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    client, stranger = authority.issue_cert("client"), other.issue_cert("client")
    client.private_key_pem.write_to_path(str(folder / "client-key.pem"))
    client.cert_chain_pems[0].write_to_path(str(folder / "client-cert.pem"))
    stranger.private_key_and_cert_chain_pem.write_to_path(str(folder / "stranger.pem"))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(files: Path) -> AsyncIterator[ConsulServer]:
    ca, pem = files / "ca.pem", files / "server.pem"
    https = ServerTLS(ca=ca, cert=pem, key=pem, client_ca=ca)
    async with await ConsulServer.start(acl=True, https=https) as server:
        yield server


def mutual(files: Path) -> dict[str, Any]:
    names = {"ca": "ca.pem", "cert": "client-cert.pem", "key": "client-key.pem"}
    return {**{option: str(files / name) for option, name in names.items()}, "server_name": NAME}


async def refusal(source: Consul) -> SourceError:
    """What the source says instead of a set."""
    sets = source.watch()
    with pytest.raises(SourceError) as caught:
        await anext(sets)
    return caught.value


async def test_mutual_tls_and_a_token_as_arguments_and_as_a_url(
    guarded: ConsulServer, files: Path, unique: str
) -> None:
    await guarded.register(unique, "10.0.0.1", 80)
    token = await guarded.create_token(READ)
    address = guarded.https_address
    url = f"consuls://{address}/{unique}?{urlencode({'token': token, **mutual(files)})}"
    for source in (Consul(unique, address=address, token=token, tls=TLS(**mutual(files))), open_source(url)):
        assert repr(source) == f"consuls://{address}/{unique}"
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca": "other.pem"}, "TLS certificate is not accepted: .*verify failed"),
        ({"ca": None}, "TLS certificate is not accepted"),
        ({"server_name": None}, "TLS certificate is not accepted: .*127.0.0.1"),
        ({"server_name": "other.test"}, "TLS certificate is not accepted: .*other.test"),
        ({"cert": None, "key": None}, "certificate"),
        ({"cert": "stranger.pem", "key": None}, "certificate"),
    ],
)
async def test_wrong_certificates_are_told(
    guarded: ConsulServer, files: Path, change: dict[str, str | None], words: str
) -> None:
    options = {**mutual(files)}
    for name, value in change.items():
        options[name] = str(files / value) if value and value.endswith(".pem") else value
    error = await refusal(Consul("web", address=guarded.https_address, token=guarded.token, tls=TLS(**options)))
    assert error.retry_after == 0
    with pytest.raises(SourceError, match=words):
        raise error


async def test_certificates_that_are_renewed_are_used(guarded: ConsulServer, files: Path, tmp_path: Path) -> None:
    own = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    for name, path in own.items():
        await asyncio.to_thread(shutil.copy, mutual(files)[name], path)
    await asyncio.to_thread(shutil.copy, files / "other.pem", own["ca"])
    tls = TLS(**own, server_name=NAME)  # type: ignore[arg-type]
    options: dict[str, Any] = {"address": guarded.https_address, "token": guarded.token, "tls": tls}
    # A client that goes on with the session that it has does not keep the others from theirs.
    async with (
        Consul("web", **options).client(),
        Watcher(Consul("web", **options)) as early,
        Watcher(Consul("api", **options)) as late,
    ):
        for watcher in (early, late):
            await until(watcher, lambda snapshot: "not accepted" in snapshot.reason)
        await asyncio.to_thread(shutil.copy, files / "ca.pem", own["ca"])
        for watcher in (early, late):
            await until(watcher, sees())


async def test_tokens(guarded: ConsulServer, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    await guarded.register(unique, "10.0.0.1", 80)
    address = guarded.address
    async with Watcher(Consul(unique, address=address, token="")) as watcher:
        await until(watcher, sees())  # as Consul says it
    unknown = Consul(unique, address=address, token=UNKNOWN)
    error = await refusal(unknown)
    assert (error.retry_after, "403" in str(error), "ACL not found" in str(error)) == (5.0, True, True)
    async with Watcher(unknown) as watcher:
        await until(watcher, lambda snapshot: "403" in snapshot.reason)
        for text in (repr(unknown), repr(unknown.client()), repr(watcher), caplog.text, str(error)):
            assert UNKNOWN[:8] not in text
        assert UNKNOWN[:8] not in "".join(traceback.format_exception(error))
        assert UNKNOWN[:8] not in repr(vars(unknown))


async def test_a_token_that_is_revoked_and_replaced_while_watching(guarded: ConsulServer, unique: str) -> None:
    await guarded.register(unique, "10.0.0.1", 80)
    tokens = [await guarded.create_token(READ) for _ in range(2)]
    source = Consul(unique, address=guarded.address, token=lambda: tokens[0], probe_interval=0.2)
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await guarded.revoke_token(tokens[0])
        away = await until(watcher, stale, 3)
        assert "ACL not found" in away.reason
        assert len(away.endpoints) == 1
    tokens.pop(0)
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1"))


async def test_rights_that_are_granted_and_taken_show_after_a_wait(guarded: ConsulServer, unique: str) -> None:
    """They change no index: nothing ends the wait before its time."""
    await guarded.register(unique, "10.0.0.1", 80)
    token = await guarded.create_token(NOTHING)
    async with Watcher(Consul(unique, address=guarded.address, token=token, wait=0.5)) as watcher:
        await until(watcher, sees())
        await guarded.change_token(token, READ)
        await until(watcher, sees("10.0.0.1"), 4)
        await guarded.change_token(token, NOTHING)
        await until(watcher, sees(), 4)


async def test_a_token_from_a_file_and_from_a_callable(guarded: ConsulServer, unique: str, tmp_path: Path) -> None:
    await guarded.register(unique, "10.0.0.1", 80)
    file = tmp_path / "token"
    file.write_text(f"{UNKNOWN}\n")
    source = Consul(unique, address=guarded.address, token_file=file)
    assert "403" in str(await refusal(source))
    file.write_text(f"{guarded.token}\n")
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1"))
    file.unlink()
    assert "token cannot be read" in str(await refusal(source))

    def fail() -> str:
        raise RuntimeError(UNKNOWN)

    for token, words in ((fail, "the callable raised RuntimeError"), (lambda: "a\nb", "printable ASCII")):
        error = await refusal(Consul(unique, address=guarded.address, token=token))
        assert words in str(error)
        assert UNKNOWN not in str(error)
        assert error.retry_after > 0


async def test_nothing_of_a_bad_token_is_in_the_error_or_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(UNKNOWN)
    by_file = Consul("web", address="127.0.0.1:1", token_file=file)
    file.write_bytes(UNKNOWN.encode() + b"\xff")

    def fail() -> str:
        raise RuntimeError(UNKNOWN)

    for source, words in (
        (by_file, "printable ASCII"),
        (Consul("web", address="127.0.0.1:1", token=fail), "the callable raised RuntimeError"),
    ):
        error = await refusal(source)
        assert words in str(error)
        assert UNKNOWN not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("options", "words", "retry_after"),
    [
        ({"dc": "nowhere"}, "500: 'No path to datacenter'", 0.0),
        ({"ns": "team"}, "Namespaces are a Consul Enterprise feature", 5.0),
        ({"filter": "(("}, "boolean expression evaluator", 5.0),
        ({"filter": 'Nothing == "a"'}, "not valid", 5.0),
        ({"filter": "a) or (b"}, "boolean expression evaluator", 5.0),
    ],
)
async def test_what_consul_does_not_understand_is_told_in_its_own_words(
    guarded: ConsulServer, options: dict[str, str], words: str, retry_after: float
) -> None:
    error = await refusal(Consul("web", address=guarded.address, token=guarded.token, **options))  # type: ignore[arg-type]
    assert words in str(error)
    assert error.retry_after == retry_after


async def test_filter_and_near(guarded: ConsulServer, unique: str) -> None:
    for number in (1, 2, 3):
        await guarded.register(
            unique, f"10.0.0.{number}", 80, tags=["a"] * (number > 1), meta={"version": f"{number}"}
        )
    async with Proxy(guarded.address) as way:
        options: dict[str, Any] = {"address": way.address, "token": guarded.token, "probe_interval": 0.1}
        expression = 'Service.Meta.version == "1" or Service.Meta.version == "2"'
        async with (
            Watcher(Consul(unique, filter=expression, **options)) as chosen,
            Watcher(Consul(unique, filter=expression, tag="a", near="_agent", **options)) as fewer,
        ):
            await until(chosen, sees("10.0.0.1", "10.0.0.2"))
            await until(fewer, sees("10.0.0.2"))
            probes = way.sent.count(b"Service.ID")
            await way.saw(b"Service.ID", probes + 6)
            assert (chosen.snapshot.state, fewer.snapshot.state) == ("live", "live")
            await guarded.register(unique, "10.0.0.4", 80, tags=["a"], meta={"version": "2"}, wait=False)
            await until(chosen, sees("10.0.0.1", "10.0.0.2", "10.0.0.4"))
            await until(fewer, sees("10.0.0.2", "10.0.0.4"))
            # Each request has one filter, the user's or ours.
            for line in bytes(way.sent).split(b"\r\n"):
                assert line.count(b"filter=") == line.startswith(b"GET ")
            assert b"near=_agent" in way.sent


async def test_maintenance_of_an_instance_and_of_the_node(guarded: ConsulServer, unique: str) -> None:
    for number in (1, 2):
        await guarded.register(unique, f"10.0.0.{number}", 80, id=f"{unique}-{number}")
    source = Consul(unique, address=guarded.address, token=guarded.token, passing=False)
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        await guarded.maintenance(f"{unique}-1")
        await until(watcher, sees("10.0.0.2"))
        await guarded.maintenance(None)
        await until(watcher, sees())
        await guarded.maintenance(None, enable=False)
        await until(watcher, sees("10.0.0.2"))


async def test_a_restored_backup(guarded: ConsulServer, unique: str) -> None:
    await guarded.register(unique, "10.0.0.1", 80, id=f"{unique}-1")
    backup = await guarded.snapshot()
    source = Consul(unique, address=guarded.address, token=guarded.token, probe_interval=0.5)
    async with Watcher(source, on_empty="accept") as watcher:
        for number in range(2, 6):
            await guarded.register(unique, f"10.0.0.{number}", 80, id=f"{unique}-{number}")
        await until(watcher, lambda snapshot: len(snapshot.endpoints) == 5)
        await guarded.deregister(f"{unique}-1")
        await until(watcher, lambda snapshot: len(snapshot.endpoints) == 4)
        await guarded.restore(backup)
        async with patience(20):
            while True:  # the agent puts right what it has itself, in its own time
                there = sorted(each["Service"]["Address"] for each in await guarded.services(unique))
                if there == [endpoint.host for endpoint in watcher.snapshot.endpoints] and "10.0.0.1" in there:
                    break
                await asyncio.sleep(0.05)
        await guarded.register(unique, "10.0.0.9", 80, wait=False)
        await until(watcher, lambda snapshot: snapshot.endpoints[-1].host == "10.0.0.9", 3)


async def test_the_environment_says_what_the_program_does_not(
    guarded: ConsulServer, files: Path, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await guarded.register(unique, "10.0.0.1", 80)
    options = mutual(files)
    monkeypatch.setenv("CONSUL_HTTP_ADDR", f"https://{guarded.https_address}")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", guarded.token)
    monkeypatch.setenv("CONSUL_CACERT", options["ca"])
    monkeypatch.setenv("CONSUL_CLIENT_CERT", options["cert"])
    monkeypatch.setenv("CONSUL_CLIENT_KEY", options["key"])
    monkeypatch.setenv("CONSUL_TLS_SERVER_NAME", NAME)
    for source in (Consul(unique), open_source(f"consul:///{unique}"), open_source(f"consuls:///{unique}")):
        assert repr(source) == f"consuls://{guarded.https_address}/{unique}"
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))


def shown(**options: Any) -> tuple[str, bool, str, str]:
    """Address, TLS or not, namespace and token of a source with these options."""
    found = environment.access(**options)
    return found.address, found.tls is not None, found.namespace, found.token()


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {}, ("127.0.0.1:8500", False, "", "")),
        ({"ADDR": "h"}, {}, ("h:8500", False, "", "")),
        ({"ADDR": "http://h"}, {}, ("h:80", False, "", "")),
        ({"ADDR": "https://h/"}, {}, ("h:443", True, "", "")),
        ({"ADDR": "http://h:1", "SSL": "true"}, {}, ("h:1", True, "", "")),
        ({"ADDR": "https://h:1", "SSL": "0"}, {}, ("h:1", True, "", "")),
        ({"ADDR": "https://h:1"}, {"tls": False}, ("h:1", False, "", "")),
        ({"ADDR": "https://h:1", "TOKEN": "t"}, {"address": "g"}, ("g:8500", False, "", "t")),
        ({"ADDR": "nonsense:x", "SSL": "nonsense"}, {"address": "g", "tls": False}, ("g:8500", False, "", "")),
        ({"SSL": "T", "TOKEN": "t"}, {"address": "g:1"}, ("g:1", True, "", "t")),
        ({"SSL": "1"}, {"address": "g:1", "tls": False}, ("g:1", False, "", "")),
        ({"TOKEN": "t"}, {"token": "u"}, ("127.0.0.1:8500", False, "", "u")),
        ({"TOKEN": "t"}, {"token": ""}, ("127.0.0.1:8500", False, "", "")),
        ({"NAMESPACE": "n"}, {}, ("127.0.0.1:8500", False, "n", "")),
        ({"NAMESPACE": "n"}, {"ns": "m"}, ("127.0.0.1:8500", False, "m", "")),
        ({"NAMESPACE": "n"}, {"ns": ""}, ("127.0.0.1:8500", False, "", "")),
    ],
)
def test_arguments_win(
    variables: dict[str, str], options: dict[str, Any], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"CONSUL_{'' if name == 'NAMESPACE' else 'HTTP_'}{name}", value)
    assert shown(**options) == expected


def test_a_token_file_of_the_environment_comes_before_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "plain")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    assert shown()[3] == "from-file"
    assert shown(token="mine")[3] == "mine"


def test_files_of_the_environment_fill_what_a_tls_leaves_open(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_CACERT", str(files / "ca.pem"))
    monkeypatch.setenv("CONSUL_CLIENT_CERT", str(files / "client-cert.pem"))
    monkeypatch.setenv("CONSUL_CLIENT_KEY", str(files / "client-key.pem"))
    monkeypatch.setenv("CONSUL_TLS_SERVER_NAME", NAME)
    whole = TLS(**mutual(files))
    assert environment.access(tls=True).tls == whole
    assert environment.access(tls=TLS(server_name="mine")).tls == TLS(**{**mutual(files), "server_name": "mine"})
    # A key belongs to its certificate.
    own = environment.access(tls=TLS(cert=files / "stranger.pem")).tls
    assert own == TLS(ca=whole.ca, cert=files / "stranger.pem", server_name=NAME)
    context = TLS(context=whole.load())
    assert environment.access(tls=context).tls is context
    assert environment.access(tls=False).tls is None


@pytest.mark.parametrize(
    ("variable", "value", "tls", "words"),
    [
        ("CONSUL_HTTP_ADDR", "unix:///var/run/consul.sock", None, "CONSUL_HTTP_ADDR: only http and https"),
        ("CONSUL_HTTP_ADDR", "http://h:1/path", None, "CONSUL_HTTP_ADDR: "),
        ("CONSUL_HTTP_ADDR", "h:x", None, "CONSUL_HTTP_ADDR: .*'h:x'"),
        ("CONSUL_HTTP_ADDR", "user:s3cret@h", None, "CONSUL_HTTP_ADDR: user and password"),
        ("CONSUL_HTTP_SSL", "perhaps", None, "CONSUL_HTTP_SSL must be true or false, not 'perhaps'"),
        ("CONSUL_HTTP_SSL_VERIFY", "perhaps", True, "CONSUL_HTTP_SSL_VERIFY must be"),
        ("CONSUL_CACERT", "/no/such/file", True, "'/no/such/file'.*given by CONSUL_CACERT"),
        ("CONSUL_CLIENT_KEY", "/no/such/file", True, "needs a cert .given by CONSUL_CLIENT_KEY"),
        ("CONSUL_HTTP_TOKEN_FILE", "/no/such/file", None, "token file cannot be read"),
        ("CONSUL_HTTP_TOKEN", "s3cret\n", None, "token must"),
    ],
)
def test_nonsense_in_the_environment_is_told_at_once(
    variable: str, value: str, tls: bool | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words) as caught:
        Consul("web", tls=tls)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_verification_stays_on(
    guarded: ConsulServer, files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (
        ("CONSUL_HTTP_SSL_VERIFY", "false"),
        ("CONSUL_CAPATH", "/x"),
        ("CONSUL_HTTP_AUTH", "u:s3cret"),
    ):
        monkeypatch.setenv(name, value)
    Consul("web", tls=False)
    assert [line.split()[0] for line in caplog.messages] == ["CONSUL_HTTP_AUTH"]
    tls = TLS(cert=files / "client-cert.pem", key=files / "client-key.pem", server_name=NAME)
    for _ in range(3):
        source = Consul("web", address=guarded.https_address, tls=tls)
    expected = ["CONSUL_HTTP_AUTH", "CONSUL_HTTP_SSL_VERIFY=false", "CONSUL_CAPATH"]
    assert [line.split()[0] for line in caplog.messages] == expected
    assert "s3cret" not in caplog.text
    assert "not accepted" in str(await refusal(source))


async def test_the_namespace_is_part_of_every_request() -> None:
    async def say(head: str) -> bytes:
        if "index=" in head:
            await asyncio.Event().wait()
        return http("[]", headers="X-Consul-Index: 5\r\n")

    async with Fake(say) as fake:
        source = Consul("web", address=fake.address, ns="team", probe_interval=0.1)
        assert repr(source) == f"consul://{fake.address}/web?ns=team"
        async with Watcher(source), source.client() as client:
            await fake.asked(lambda: len(fake.requests) >= 3)
            await client.put("/v1/agent/service/register", {"Name": "web"})
    assert all("ns=team" in head.split()[1] for head in fake.requests)


def test_a_token_is_given_in_one_way_and_tls_is_what_it_may_be() -> None:
    with pytest.raises(ValueError, match="either a token or a token_file"):
        Consul("web", token="s3cret", token_file="/x")
    with pytest.raises(TypeError, match="token must be a string or a callable, not of bytes") as caught:
        Consul("web", token=b"s3cret")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    with pytest.raises(TypeError, match="tls must be"):
        Consul("web", tls="yes")  # type: ignore[arg-type]


async def test_hundreds_of_sources_are_made_at_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls, loaded = TLS(ca=files / "ca.pem"), []
    monkeypatch.setattr(ssl, "create_default_context", lambda **options: loaded.append(options))
    gc.collect()  # or it might come in between
    began_at = time.thread_time()
    for number in range(200):
        Consul(f"web-{number}", address="192.0.2.1:1", tls=tls)
    # Loading certificates takes 10 ms and more, each time.
    assert loaded == []
    assert time.thread_time() - began_at < 0.3
