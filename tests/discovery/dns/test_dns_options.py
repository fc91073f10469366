"""What Dns takes for an option, and what not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from discovery import Dns


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dns("web"), "no port"),
        (lambda: Dns("web", 0), "from 1 to 65535"),
        (lambda: Dns("web", port=True), "from 1 to 65535"),
        (lambda: Dns("_x", 80, kind="srv"), "SRV records have the port"),
        (lambda: Dns("web", 80, kind="mx"), "address, srv"),  # type: ignore[arg-type]
        (lambda: Dns("web", 80, family="4"), "any, ipv4, ipv6"),  # type: ignore[arg-type]
        (lambda: Dns("10.0.0.1", 80), "static://10.0.0.1:80"),
        (lambda: Dns("::1", 80), r"static://\[::1\]:80"),
        (lambda: Dns("", 80), "no DNS name"),
        (lambda: Dns("a..b", 80), "no DNS name"),
        (lambda: Dns("a b", 80), "no DNS name"),
        (lambda: Dns("x" * 64, 80), "no DNS name"),
        (lambda: Dns("web", 80, nameservers=["dns.test:53"]), "must be an IP address"),
        (lambda: Dns("web", 80, nameservers=["1.1.1.1:x"]), "host:port"),
        (lambda: Dns("web", 80, min_ttl=0), "min_ttl"),
        (lambda: Dns("web", 80, max_ttl=0.5), "max_ttl must be at least min_ttl"),
        (lambda: Dns("web", 80, timeout=float("nan")), "timeout"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], Dns], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_defaults_of_servers() -> None:
    assert Dns("web", 80, nameservers="1.1.1.1").nameservers == ("1.1.1.1:53",)
    assert Dns("web", 80, nameservers=["[::1]", "1.1.1.1:5353", "[::1]:53"]).nameservers == (
        "[::1]:53",
        "1.1.1.1:5353",
    )
    assert Dns("web", 80, nameservers=["1.1.1.1"], tls=True).nameservers == ("1.1.1.1:853",)
