"""URLs to sources, without any server."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from discovery import TLS, Consul, Endpoint, Etcd, Source, Static, open_source, service_name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("etcd://10.0.0.1/services/users", "etcd://10.0.0.1:2379/services/users/"),
        ("etcd://10.0.0.1:1,b,[::1],10.0.0.1:1//users/", "etcd://10.0.0.1:1,b:2379,[::1]:2379//users/"),
        ("ETCD://HOST/a%3Fb/", "etcd://host:2379/a%3Fb/"),
        ("etcds://host/users/?records=address&timeout=1&probe_interval=0.5", "etcds://host:2379/users/"),
        ("etcds://host/users/?server_name=etcd.example", "etcds://host:2379/users/"),
        ("etcd://user:pass@10.0.0.1,b:1/users/", "etcd://10.0.0.1:2379,b:1/users/"),
        ("etcds://us%40er:p%2F%3A%3F:@b@host/a%40b/", "etcds://host:2379/a%40b/"),
        ("consul://10.0.0.1/web", "consul://10.0.0.1:8500/web"),
        ("consul://[::1]:1/web/?tag=a&dc=b&tag=c", "consul://[::1]:1/web?tag=a&tag=c&dc=b"),
        ("consul://h/web?passing=1&wait=10&probe_interval=1&timeout=1", "consul://h:8500/web"),
        ("consul://h/web?passing=FALSE", "consul://h:8500/web?passing=0"),
        (
            "consul://h/web?ns=a&near=_agent&filter=A+%3D%3D+1",
            "consul://h:8500/web?near=_agent&ns=a&filter=A+%3D%3D+1",
        ),
        ("consul:///web", "consul://127.0.0.1:8500/web"),
        ("consuls:///web", "consuls://127.0.0.1:8500/web"),
        ("consuls://h:8501/web?token=s3cret&server_name=x", "consuls://h:8501/web"),
        ("dns://Users.Example:80", "dns://users.example:80"),
        ("dns:///users:80", "dns://users:80"),
        ("dns://users.:80?family=ipv4&min_ttl=2&max_ttl=5&timeout=1&search=0", "dns://users.:80?family=ipv4"),
        (
            "dns://u:80?nameserver=1.1.1.1&nameserver=[::1]:5",
            "dns://u:80?nameserver=1.1.1.1:53&nameserver=[::1]:5",
        ),
        ("dns://1.1.1.1,[::1]/u:80?tls=1", "dns://u:80?nameserver=1.1.1.1:853&nameserver=[::1]:853&tls=1"),
        ("srv://_http._tcp.users?tcp=1", "srv://_http._tcp.users?tcp=1"),
        ("srv://1.1.1.1/users.service.consul", "srv://users.service.consul?nameserver=1.1.1.1:53"),
        ("file:///etc/a%20b%3F.json?interval=0.5", "file:///etc/a%20b%3F.json"),
        ("file://localhost/etc/users?format=yaml", "file:///etc/users?format=yaml"),
        ("static://10.0.0.1:80,[::1]:81,10.0.0.1:80", "Static(10.0.0.1:80, [::1]:81)"),
        ("static://10.0.0.1:80/", "Static(10.0.0.1:80)"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    source = open_source(url)
    assert isinstance(source, Source)
    assert repr(source) == shown
    if "://" in shown:
        assert repr(open_source(shown)) == shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("zk://host/users", ["'zk'", "static, etcd, etcds, consul, consuls, dns, srv, file"]),
        ("127.0.0.1:2379/users", ["etcd://127.0.0.1:2379/services/users/"]),
        ("etcd://host:2379", ["prefix is missing", "etcd://127.0.0.1:2379/services/users/"]),
        ("etcd://host:2379/", ["prefix is missing"]),
        ("etcd:///users/", ["host is missing"]),
        ("etcd://host:x/users/", ["'host:x'"]),
        ("etcd://::1/users/", ["brackets"]),
        ("etcd://host/users/?tag=a", ["unknown option 'tag'", "records, schemes, probe_interval, timeout"]),
        ("etcd://host/users/?records=yaml", ["auto, address, etcd", "'yaml'"]),
        ("etcd://host/users/?timeout=fast", ["timeout", "'fast'"]),
        ("etcd://host/users/?timeout=0", ["timeout", "above 0"]),
        ("etcd://host/users/?timeout=nan", ["timeout", "nan"]),
        ("etcd://host/users/?timeout=1&timeout=2", ["timeout is given twice"]),
        ("etcd://host/%ff/", ["utf-8"]),
        ("etcd://user@host/users/", ["before the @", "user:password"]),
        ("etcd://:s3cret@host/users/", ["before the @", "user:password"]),
        ("etcd://user:@host/users/", ["before the @", "user:password"]),
        ("etcd://%ff:s3cret@host/users/", ["UTF-8"]),
        ("etcd://host/us@ers/", ["%40"]),
        ("etcd://host/users/?ca=/a.pem", ["option ca", "etcds://"]),
        ("consul://host/users?server_name=a", ["option server_name", "consuls://"]),
        ("etcds://host/users/?ca=", ["option ca is empty"]),
        ("etcds://host/users/?ca=/nowhere/ca.pem", ["'/nowhere/ca.pem'"]),
        ("etcds://host/users/?key=/nowhere/key.pem", ["'/nowhere/key.pem'", "needs a cert"]),
        ("etcds://host/users/?ca=/a&ca=/b", ["ca is given twice"]),
        ("static://10.0.0.1:80?ca=/a.pem", ["unknown option 'ca'"]),
        ("consul://host:8500", ["service is missing", "consul://127.0.0.1:8500/users"]),
        ("consul:///", ["service is missing"]),
        ("consul://host/web?ca=x&key=y", ["option ca is for TLS only: consuls://"]),
        ("consuls://host/web?ca=/no/such", ["'/no/such'"]),
        ("consuls://host/web?key=/no/such", ["needs a cert"]),
        ("consul://host/web?filter=", ["filter", "empty"]),
        ("consul://host/web?near=", ["near", "empty"]),
        ("consul://host/web?token=a&token_file=b", ["either a token or a token_file"]),
        ("consul://host/web?token_file=/no/such", ["token file cannot be read"]),
        ("consul://h1,h2/web", ["'h1,h2'"]),
        ("consul://host/a/b", ["slash", "'a/b'"]),
        ("consul://host/..", ["'..'"]),
        ("consul://host/a%2F..%2Fkv", ["slash"]),
        ("consul://host/a%0ab", ["control"]),
        ("consul://host/web?passing=maybe", ["passing", "1, true, 0, false", "'maybe'"]),
        ("consul://host/web?wait=601", ["wait", "600"]),
        ("consul://host/web?tag=", ["tag", "empty"]),
        ("static://10.0.0.1:80?x=1", ["unknown option 'x'", "there are none"]),
        ("static://10.0.0.1:80/users", ["nothing", "static://10.0.0.1:8080"]),
        ("static://", ["at least one"]),
        ("dns://users", ["host:port, got 'users'", "dns://users.example:8080"]),
        ("dns://", ["the name is missing"]),
        ("dns://10.0.0.1:80", ["static://10.0.0.1:80"]),
        ("dns://1.1.1.1/users", ["host:port, got 'users'"]),
        ("dns://ns.test/users:80", ["nameserver must be an IP address", "'ns.test'"]),
        ("dns://1.1.1.1/users:80?nameserver=1.1.1.1", ["not in both"]),
        ("dns://users:80?family=v4", ["any, ipv4, ipv6", "'v4'"]),
        ("dns://users:80?tls=maybe", ["tls must be one of 1, true, 0, false"]),
        (
            "dns://users:80?prefix=1",
            ["'prefix'", "nameserver, family, search, min_ttl, max_ttl, timeout, tcp, tls"],
        ),
        ("srv://_http._tcp.users:80", ["'_http._tcp.users:80'"]),
        ("srv://", ["the name is missing", "srv://_http._tcp.users.example"]),
        ("file://etc/users.yaml", ["must be absolute", "three slashes", "file:///etc/endpoints/users.yaml"]),
        ("file://users.yaml", ["must be absolute"]),
        ("file:///", ["names no file"]),
        ("file:///a.yaml?format=toml", ["json, yaml", "'toml'"]),
        ("file:///a.yaml?interval=0", ["interval", "above 0"]),
    ],
)
def test_mistakes_are_explained(url: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each with its words
        open_source(url)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://user:s3cret@host:x/users/",
        "etcd://user:s3cret@host/",
        "etcd://user:s3cret@host/users/?timeout=x",
        "etcd://:s3cret@host/users/",
        "etcd://%ff:s3cret@host/users/",
        "etcds://user:s3cret@host/users/?ca=/nowhere",
        "etcd://user:s3cret@host/users/?ca=/nowhere",
        "etcd://s3cret@host/users/",
        "etcd://user:s3cret/x@host:1/users/",
        "etcd://user:1/s3cret@host:1/users/",
        "etcd://user:1?s3cret@host:1/users/",
        "etcd://user:s3cret/1?timeout=s3cret@host:1/users/",
        "etcd://user:s3cret?x@host/users/",
        "etcd://user:x?s3cret@host/users/",
        "consul://user:s3cret@host/web",
        "consul://user:s3cret/x@host/web",
        "consul://host/web?token=s3cret&tokne=s3cret",
        "consul://host/web?token=s3cret%0a",
        "consul://host/web?token=s3cret&wait=x",
        "consul://host:x/web?token=s3cret",
        "consul://host/web?token=s3cret&token=s3cret",
        "static://user:s3cret@host:80",
        "user:s3cret@host",
    ],
)
def test_no_secret_is_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what matters is what is not there
        open_source(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_credentials_in_arguments_are_refused_without_being_repeated() -> None:
    for construct in (
        lambda: Etcd("a", hosts=["user:s3cret@host"]),
        lambda: Consul("a", address="user:s3cret@host"),
    ):
        with pytest.raises(ValueError, match="do not belong into an address") as caught:
            construct()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("construct", "words"),
    [
        (lambda: Etcd(""), "services/users/"),
        (lambda: Etcd("a", hosts=()), "at least one host"),
        (lambda: Etcd("a", hosts=["http://h:1"]), "without a scheme"),
        (lambda: Etcd("a", probe_interval=float("inf")), "probe_interval"),
        (lambda: Etcd("a", records="x"), "auto, address, etcd"),
        (lambda: Etcd("a", user="user"), "both user and password"),
        (lambda: Etcd("a", password="s3cret"), "both user and password"),
        (lambda: Etcd("a", user="", password="s3cret"), "needs a name"),
        (lambda: Etcd("a", user="user", password=""), "'user' needs a password"),
        (lambda: Consul(""), "name of a service"),
        (lambda: Consul("a", wait=-1), "wait"),
        (lambda: Consul("a", tag=["b", ""]), "empty"),
        (lambda: Consul("a", dc=""), "empty"),
        (lambda: Consul("a", token="s3cret\r\nHost: x"), "token must"),
    ],
)
def test_wrong_arguments_are_refused(construct: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        construct()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("etcd://h:2379/services/users/", "users"),
        ("etcd://h/users", "users"),
        ("etcd://h//services/User_Accounts/", "user-accounts"),
        ("etcd://h/a%2Fb/", "b"),
        ("etcd://h/user.rpc/", "user.rpc"),
        ("etcd://h/api/v1.2/", "service-v1-2"),
        ("etcd://h/42/", "service-42"),
        ("etcd://h/-..-/", "service"),
        ("consul://h/Web?tag=a/b", "web"),
        ("consul://h/größe", "gr-e"),
        ("static://10.0.0.1:80", "service"),
        ("dns://Users.example:80?family=ipv4", "users.example"),
        ("dns:///users.:80", "users"),
        ("dns://1.1.1.1:53/users.svc:80", "users.svc"),
        ("srv://_http._tcp.users.example", "users.example"),
        ("srv://1.1.1.1/_http._tcp.users", "users"),
        ("file:///etc/endpoints/Users.yaml", "users"),
        ("file:///etc/users.v2.json?interval=1", "users.v2"),
        ("file:///etc/.yaml", "yaml"),
        ("nonsense", "service"),
    ],
)
def test_service_names(url: str, name: str) -> None:
    assert service_name(url) == name


@given(st.text())
def test_every_service_name_is_a_host_name(text: str) -> None:
    name = service_name(f"etcd://host/{text}")
    assert Endpoint(host=name, port=1).host == name


def test_users_and_passwords_are_decoded() -> None:
    source = open_source("etcd://us%40er:p%2F%3A%3F:%C3%A9%25@host/users/")
    assert isinstance(source, Etcd)
    authentication = source.client()._authentication
    assert authentication is not None
    assert (authentication.user, authentication._password) == ("us@er", "p/:?:é%")
    for shown in (repr(source), repr(authentication), str(vars(source)), repr(source.client())):
        assert "p/:?:é%" not in shown


def tls_of(source: object) -> TLS | None:
    assert isinstance(source, Etcd | Consul)
    return source._tls if isinstance(source, Etcd) else source._access.tls


@pytest.mark.parametrize("scheme", ["etcds", "consuls"])
def test_tls_options(scheme: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("client")
    issued.private_key_pem.write_to_path(tmp_path / "client.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    options = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    query = "&".join(f"{name}={tmp_path / file}" for name, file in options.items())
    source = open_source(f"{scheme}://h/users?{query}&server_name=etcd.example")
    expected = {name: str(tmp_path / file) for name, file in options.items()}
    assert isinstance(source, Etcd | Consul)
    assert tls_of(source) == TLS(**expected, server_name="etcd.example")
    for scheme_of_text in (scheme, scheme.upper()):
        assert tls_of(open_source(f"{scheme_of_text}://h/users")) == TLS()
        assert tls_of(open_source(f"{scheme_of_text[:-1]}://h/users")) is None


def test_a_type_that_makes_no_sense_is_refused() -> None:
    for options in ({"user": 1, "password": "s3cret"}, {"user": "user", "password": b"s3cret"}):
        with pytest.raises(TypeError, match="must be a string") as caught:
            Etcd("a", **options)  # type: ignore[arg-type]
        assert "s3cret" not in str(caught.value)


def test_static_is_what_it_says() -> None:
    source = open_source("static://10.0.0.1:80")
    assert isinstance(source, Static)
    assert source.endpoints == (Endpoint(host="10.0.0.1", port=80),)


def python(code: str) -> str:
    """What a fresh interpreter prints that takes warnings for errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_discovery_imports_no_registry_package() -> None:
    assert (
        python("import discovery, sys; print({'etcd3', 'consul', 'requests', 'dns', 'yaml'} & sys.modules.keys())")
        == "set()"
    )


@pytest.mark.parametrize("construct", ["Etcd('users')", "Consul('users')", "Dns('users', 80)", "File('/a.yaml')"])
def test_importing_a_registry_package_warns_of_nothing(construct: str) -> None:
    assert python(f"from discovery import Consul, Dns, Etcd, File; {construct}") == ""


@pytest.mark.parametrize(
    ("package", "construct"),
    [
        ("etcd3", "Etcd('users')"),
        ("etcd3", "open_source('etcd://h/users/')"),
        ("consul", "Consul('users')"),
        ("consul", "open_source('consul://h/users')"),
        ("dns", "Dns('users', 80)"),
        ("dns", "open_source('srv://_http._tcp.users')"),
        ("yaml", "File('users.yaml')"),
        ("yaml", "open_source('file:///users.yml')"),
        ("yaml", "File('users', format='yaml')"),
    ],
)
def test_a_missing_extra_is_told_at_once(package: str, construct: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from discovery import *
open_source("static://h:80")
File("users.json")
try:
    {construct}
except ImportError as error:
    print(error)
"""
    extra = "etcd" if package == "etcd3" else package
    assert f"support is not installed: pip install 'lbclient[{extra}]'" in python(code)
