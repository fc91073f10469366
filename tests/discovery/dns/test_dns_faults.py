"""What no real DNS server would say, from a fake one: garbage, other people's answers, errors, half answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from patience import Stopwatch

from discovery import Dns, SourceError

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Reply = Callable[[dns.message.Message], list[bytes]]


class Fake(asyncio.DatagramProtocol):
    """A DNS server over UDP.

    Attributes:
        address: where it listens, `ip:port`.
        queries: how many it got.
    """

    def __init__(self, reply: Reply) -> None:
        self.address = ""
        self.queries = 0
        self._reply = reply

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.address = "{}:{}".format(*transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.queries += 1
        for reply in self._reply(dns.message.from_wire(data)):
            self._transport.sendto(reply, addr)


@asynccontextmanager
async def fake(reply: Reply) -> AsyncIterator[Fake]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Fake(reply), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


def good(query: dns.message.Message) -> bytes:
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text(query.question[0].name, 5, "IN", "A", "10.0.0.1"))
    return bytes(response.to_wire())


def failed(code: dns.rcode.Rcode) -> Reply:
    def reply(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(code)
        return [response.to_wire()]

    return reply


def foreign(query: dns.message.Message) -> bytes:
    query.id ^= 1
    return good(query)


def another_question(query: dns.message.Message) -> bytes:
    other = dns.message.make_query("other.test", "A", id=query.id)
    return good(other)


def shortened(query: dns.message.Message) -> list[bytes]:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return [response.to_wire()]


# Who does answer is not to be missed on a busy machine; half of it is one server's share.
LONG = 30


async def ask(*servers: Fake, timeout: float = LONG) -> list[str]:  # noqa: ASYNC109 - the source's
    source = Dns("web.test", 80, family="ipv4", nameservers=[s.address for s in servers], timeout=timeout)
    async with aclosing(source.watch()) as sets:
        return [endpoint.host for endpoint in await anext(sets)]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda _: [b""], "no answer"),
        (lambda _: [b"garbage"], "no answer"),
        (lambda query: [good(query)[:-3]], "no answer"),
        (lambda query: [foreign(query)], "no answer"),
        (lambda query: [another_question(query)], "no answer"),
        (lambda query: [query.to_wire()], "no answer"),
        (lambda _: [], "no answer"),
        (failed(dns.rcode.SERVFAIL), "it answered SERVFAIL"),
        (failed(dns.rcode.REFUSED), "it answered REFUSED"),
        (failed(dns.rcode.FORMERR), "it answered FORMERR"),
        (shortened, ".*too long for UDP; .* over TCP: Connection refused"),  # nobody listens on TCP
    ],
)
async def test_what_is_no_answer_is_an_error(reply: Reply, words: str) -> None:
    async with fake(reply) as server:
        with (
            Stopwatch() as watch,
            pytest.raises(SourceError, match=rf"^DNS: A of web\.test: {server.address}: ({words})"),
        ):
            await ask(server, timeout=0.2 if words == "no answer" else LONG)
        assert watch.seconds < 1


@pytest.mark.parametrize("before", [b"garbage", b"", None])
async def test_the_answer_behind_rubbish_counts(before: bytes | None) -> None:
    """Who can send datagrams, but does not see the questions, must not be able to disturb."""
    async with fake(lambda query: [foreign(query) if before is None else before, good(query)]) as server:
        # The wrong id was made in place: the query must be whole again.
        if before is None:
            server._reply = lambda query: [foreign(dns.message.from_wire(query.to_wire())), good(query)]
        assert await ask(server) == ["10.0.0.1"]


async def test_a_failing_server_is_passed_over_at_once() -> None:
    async with fake(failed(dns.rcode.SERVFAIL)) as bad, fake(lambda query: [good(query)]) as well:
        with Stopwatch() as watch:
            assert await ask(bad, well) == ["10.0.0.1"]
        assert watch.seconds < 0.5
        assert bad.queries == well.queries == 1


async def test_a_lost_datagram_is_sent_again() -> None:
    answers = iter([[], None, None])

    def reply(query: dns.message.Message) -> list[bytes]:
        return [good(query)] if next(answers) is None else []

    async with fake(reply) as server:
        assert await ask(server, timeout=3) == ["10.0.0.1"]
        assert server.queries == 2


async def test_all_servers_are_named_with_what_they_did() -> None:
    async with fake(failed(dns.rcode.SERVFAIL)) as one, fake(lambda _: []) as two:
        with pytest.raises(SourceError) as caught:
            await ask(one, two, timeout=1.5)
    assert f"{one.address}: it answered SERVFAIL" in str(caught.value)
    assert f"{two.address}: no answer" in str(caught.value)


async def test_tcp_at_once_asks_nothing_over_udp() -> None:
    async with fake(lambda query: [good(query)]) as server:
        source = Dns("web.test", 80, nameservers=[server.address], tcp=True)
        async with aclosing(source.watch()) as sets:
            with pytest.raises(SourceError, match="over TCP: Connection refused"):
                await anext(sets)
        assert server.queries == 0


def _closes(_: bytes) -> bytes:
    return b""


def _garbage(_: bytes) -> bytes:
    return b"\x00\x07garbage"


def _half(query: bytes) -> bytes:
    return b"\x00\xff" + query


def _foreign(query: bytes) -> bytes:
    wire = foreign(dns.message.from_wire(query[2:]))
    return len(wire).to_bytes(2, "big") + wire


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (_closes, "it closed the connection"),
        (_half, "it closed the connection"),
        (_garbage, "ShortHeader"),
        (_foreign, "BadResponse"),
        (None, "no answer"),
    ],
)
async def test_what_is_no_answer_over_tcp(reply: Callable[[bytes], bytes] | None, words: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(2)
        query += await reader.readexactly(int.from_bytes(query, "big"))
        if reply is None:
            await reader.read()
        else:
            writer.write(reply(query))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        where = "{}:{}".format(*server.sockets[0].getsockname())
        source = Dns("web.test", 80, family="ipv4", nameservers=[where], tcp=True, timeout=LONG if reply else 0.3)
        async with aclosing(source.watch()) as sets:
            with pytest.raises(SourceError, match=f"{where} over TCP: {words}"):
                await anext(sets)


async def test_aliases_without_end_are_an_error() -> None:
    def reply(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        name = query.question[0].name
        response.answer.append(dns.rrset.from_text(name, 5, "IN", "CNAME", name.to_text()))
        return [response.to_wire()]

    async with fake(reply) as server:
        with pytest.raises(SourceError, match=r"^DNS: A of web\.test: "):
            await ask(server)
