"""The transport to etcd: frames, errors in all shapes, and servers that are no etcd."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_rig import Fake, http

from discovery import Etcd, SourceError
from discovery.etcd.client import EtcdClient
from discovery.etcd.view import Probe, View
from discovery.etcd.wire import EtcdError, Frames, b64, etcd_error
from discovery.records import Records
from discovery.records.formats import reader

pytestmark = pytest.mark.usefixtures("nothing_leaks")

HEADER = {"cluster_id": "7", "revision": "10"}

json_objects = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()))


@given(
    st.lists(json_objects, max_size=6),
    st.lists(st.integers(0, 300)),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_frames_are_the_same_however_they_are_cut(
    objects: list[dict[str, Any]], cuts: list[int], ended: bool, newline: str
) -> None:
    data = newline.join(json.dumps(each, ensure_ascii=False) for each in objects).encode()
    data += newline.encode() if ended else b""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    frames, found = Frames(), []
    for begin, end in itertools.pairwise(edges):
        found += frames.feed(data[begin:end])
    assert found + frames.end() == objects
    assert frames.end() == []


@given(st.lists(st.binary()))
def test_no_bytes_in_a_stream_raise_anything_but_value_errors(chunks: list[bytes]) -> None:
    frames = Frames()
    try:
        for chunk in chunks:
            assert all(isinstance(each, dict) for each in frames.feed(chunk))
        frames.end()
    except ValueError:
        pass


def test_a_long_line_in_small_chunks_is_not_quadratic() -> None:
    frames = Frames()
    line = b'{"a":"' + b"x" * 20_000_000 + b'"}\n'
    found: list[dict[str, Any]] = []
    for begin in range(0, len(line), 100):
        found += frames.feed(line[begin : begin + 100])
    assert len(found[0]["a"]) == 20_000_000


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ({"error": "etcdserver: permission denied", "code": 7, "message": "..."}, 7, "may not do this"),
        (
            {"code": 7, "message": "etcdserver: permission denied"},
            7,
            "denied (the user may not do this)",
        ),
        (
            {"error": {"grpc_code": 14, "http_code": 503, "message": "no leader"}},
            14,
            "no leader (the member is cut",
        ),
        ({"error": {"code": 14, "message": "no leader"}}, 14, "no leader (the member is cut"),
        ({"code": 3, "message": "etcdserver: user name is empty"}, 3, "authentication is switched on"),
        ({"code": 16, "message": "etcdserver: invalid auth token"}, 16, "token is not or no longer valid"),
        ({"error": "strange"}, None, "strange"),
        ({"code": "x"}, None, "unknown error"),
        ({}, None, "unknown error"),
    ],
)
def test_errors_of_all_gateways(answer: dict[str, Any], code: int | None, words: str) -> None:
    error = etcd_error("etcd at http://h:1", answer)
    assert error.code == code
    assert str(error).startswith("etcd at http://h:1: ")
    assert words in str(error)


async def test_the_kept_connection_of_a_restarted_member_is_tried_once_more() -> None:
    seen = 0

    async def answer(_: str) -> bytes | None:
        nonlocal seen
        seen += 1
        return None if seen in (2, 4, 5) else http('{"header":{}}')

    async with Fake(answer) as server, EtcdClient([server.address]) as client:
        for expected in (1, 3):
            assert await client.call("/kv/range", {}) == {"header": {}}
            assert seen == expected
        with pytest.raises(SourceError, match="closed the connection without an answer"):
            await client.call("/kv/range", {})
        assert seen == 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http("404 page not found", status="404 Not Found"), "404: '404 page not found' (is there an etcd 3.4"),
        (http("<html>", status="200 OK"), "the answer is not etcd's: '<html>'"),
        (http("[]"), "the answer is not etcd's: '[]'"),
        (http("{}"), "there is no etcd: its answer has no header"),
        (http('{"header":{"revision":"x"}}'), "no header"),
        (http("", status="302 Found", headers="Location: http://127.0.0.1:1/\r\n"), "HTTP status 302"),
        (http('{"code":14,"message":"etcdserver: no leader"}', status="503 Service Unavailable"), "no leader"),
        (b"SSH-2.0-OpenSSH\r\n", "400"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "no answer within 0.2 s"),
        (None, "closed the connection without an answer"),
    ],
)
async def test_what_is_no_etcd_is_told(answer: bytes | None, words: str) -> None:
    async def say(_: str) -> bytes | None:
        return answer

    async with Fake(say) as server:
        with pytest.raises(SourceError) as caught:
            await anext(Etcd("a", hosts=[server.address], timeout=0.2).watch())
    assert words in str(caught.value)
    assert server.address in str(caught.value)


LIST = http(json.dumps({"header": HEADER}))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {"result": {"header": HEADER, "created": True, "canceled": True, "cancel_reason": "denied"}},
            "canceled the watch: denied",
        ),
        (
            {"result": {"header": HEADER, "canceled": True, "compact_revision": "9"}},
            "up to revision 9 was compacted",
        ),
        ({"result": {"header": {"cluster_id": "8"}, "created": True}}, "another etcd cluster now: 8, not 7"),
        ({"error": {"grpc_code": 14, "message": "no leader"}}, "no leader"),
        ("nonsense", "not etcd's"),
        ("", "ended the stream"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", ""])
async def test_every_end_of_a_watch_is_an_error(answer: Any, words: str, newline: str) -> None:
    text = (answer if isinstance(answer, str) else json.dumps(answer)) + newline

    async def say(head: str) -> bytes:
        # Without a length: the stream ends with the connection.
        stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = f"{len(text.encode()):x}\r\n{text}\r\n".encode() if text else b""
        return stream + chunk + b"0\r\n\r\n" if "/v3/watch" in head else LIST

    async with Fake(say) as server:
        source = Etcd("a", hosts=[server.address])
        sets = source.watch()
        assert list(await anext(sets)) == []
        with pytest.raises(SourceError, match=words):
            await anext(sets)
        assert all(
            "\r\nGrpc-Metadata-hasleader: true\r\n" in head for head in server.requests if "/v3/watch" in head
        )


@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Internal Server Error"])
async def test_a_refused_watch_is_an_error(status: str) -> None:
    async def say(head: str) -> bytes:
        return http('{"code":16,"message":"invalid auth token"}', status=status) if "/v3/watch" in head else LIST

    async with Fake(say) as server:
        sets = Etcd("a", hosts=[server.address]).watch()
        await anext(sets)
        with pytest.raises(EtcdError, match="no longer valid"):
            await anext(sets)


async def test_a_watch_that_is_not_opened_is_an_error() -> None:
    async def say(head: str) -> bytes:
        return await asyncio.Event().wait() and b"" if "/v3/watch" in head else LIST

    async with Fake(say) as server:
        sets = Etcd("a", hosts=[server.address], timeout=0.2).watch()
        await anext(sets)
        with pytest.raises(SourceError, match=r"no answer within 0.2 s"):
            await anext(sets)


@pytest.mark.parametrize(
    "answer",
    [
        '{"header":{"cluster_id":"1","revision":"1"},"kvs":[{"key":"YQ=="}]}',
        '{"header":{"cluster_id":"1","revision":"1"},"kvs":[{"key":"Y","mod_revision":"1"}]}',
        '{"header":{"cluster_id":"1","revision":"1"},"kvs":[null]}',
        '{"header":[]}',
        "[" * 100_000,
    ],
)
async def test_a_member_whose_list_makes_no_sense_is_passed_over(answer: str) -> None:
    async def lie(_: str) -> bytes:
        return http(answer)

    async def say(_: str) -> bytes:
        return LIST

    async with Fake(lie) as one, Fake(say) as two:
        sets = Etcd("a", hosts=[one.address, two.address]).watch()
        assert await anext(sets) == ()
        await sets.aclose()


@pytest.mark.parametrize("event", ['{"type":"PUT"}', '{"kv":{"key":"YQ==","mod_revision":"x"}}', "7"])
async def test_after_an_event_that_makes_no_sense_it_is_the_next_members_turn(event: str) -> None:
    async def lie(head: str) -> bytes:
        return http(f'{{"result":{{"events":[{event}]}}}}\n') if "/v3/watch" in head else LIST

    async with Fake(lie) as one, Fake(lie) as two:
        source = Etcd("a", hosts=[one.address, two.address])
        for server in (one, two):
            sets = source.watch()
            await anext(sets)
            with pytest.raises(SourceError, match=f"{server.address}: an answer makes no sense"):
                await anext(sets)


async def test_after_a_failed_stream_it_is_the_next_members_turn() -> None:
    async def say(head: str) -> bytes:
        return http("", status="500 x") if "/v3/watch" in head else LIST

    async with Fake(say) as one, Fake(say) as two:
        source = Etcd("a", hosts=[one.address, two.address])
        for expected in ((1, 0), (1, 1), (2, 1)):
            sets = source.watch()
            await anext(sets)
            watches = [sum("/v3/watch" in head for head in server.requests) for server in (one, two)]
            lists = [len(server.requests) - n for server, n in zip((one, two), watches, strict=True)]
            # Each list that found nothing is followed by one look for a forgotten slash, the first time only.
            assert [lists[0] - (expected != (1, 0)), lists[1]] == list(expected)
            with pytest.raises(SourceError):
                await anext(sets)


def view(*keys: int, revision: int = 10) -> View:
    made = View("http://h:1", Records(reader()), "7", revision)
    for number in keys:
        made.keys[b"a/%d" % number] = number
    return made


def event(revision: int, key: int, kind: str = "PUT") -> dict[str, Any]:
    pair = {"key": b64(b"a/%d" % key), "mod_revision": str(revision), "value": b64(b"10.0.0.1:80")}
    return {"type": kind, "kv": pair} if kind != "PUT" else {"kv": pair}


def probe(count: int, *, revision: int = 20, cluster: str = "7", upto: int = 0, **changed: int) -> Probe:
    """`a3=15` means that key a/3 was written at revision 15."""
    keys = {f"a/{name[1:]}".encode(): at for name, at in changed.items()}
    return Probe(cluster=cluster, revision=revision, count=count, changed=keys, upto=upto or revision)


def test_a_probe_that_fits() -> None:
    assert view(1, 2).agrees(probe(2))
    assert view(1, 2).agrees(probe(2, a1=1))
    assert view().agrees(probe(0))


def test_a_probe_asks_for_what_was_written_since_the_last_that_fitted() -> None:
    seen = view(1, 2)
    assert Probe.request(seen.confirmed)["min_mod_revision"] == "11"
    assert seen.agrees(probe(2, revision=20))
    assert seen.confirmed == 20
    assert not seen.agrees(probe(3, revision=30))
    assert seen.confirmed == 20
    seen.apply(event(25, 3))
    assert seen.agrees(probe(3, revision=30, a3=25))
    assert seen.confirmed == 30
    # An answer that is cut off shows no more than it has.
    for key in (4, 5):
        seen.apply(event(30 + key, key))
    assert seen.agrees(probe(5, revision=40, upto=34, a4=34))
    assert seen.confirmed == 34


def test_another_cluster_or_an_older_revision_is_an_error_at_once() -> None:
    with pytest.raises(SourceError, match="another etcd cluster"):
        view(1).agrees(probe(1, cluster="8"))
    with pytest.raises(SourceError, match="went back from revision 10 to 9"):
        view(1).agrees(probe(1, revision=9))


@pytest.fixture(
    params=[probe(3), probe(1), probe(2, a1=15), probe(2, a1=14, a2=2), probe(2, a7=15)],
    ids=["a key more", "a key less", "a newer value", "an update behind others", "another key"],
)
def doubted(request: pytest.FixtureRequest) -> View:
    made = view(1, 2)
    assert not made.agrees(request.param)
    return made


def test_a_doubt_that_stays_without_any_event_is_a_loss(doubted: View) -> None:
    with pytest.raises(SourceError, match="were lost"):
        doubted.agrees(probe(3, a1=15))


def test_a_doubt_is_over_when_the_probe_fits(doubted: View) -> None:
    assert doubted.agrees(probe(2))
    assert not doubted.agrees(probe(3))


def test_an_event_in_between_gives_a_doubt_more_time(doubted: View) -> None:
    doubted.apply(event(15, 3))
    assert not doubted.agrees(probe(9, a3=16))
    doubted.apply(event(16, 3))
    assert not doubted.agrees(probe(9, a3=17))
    with pytest.raises(SourceError, match="were lost"):
        doubted.agrees(probe(9, a3=17))


def test_under_load_a_doubt_is_decided_by_the_first_event_beyond_the_probe(doubted: View) -> None:
    """Events never pause, and each is later than the probe: what was missing then will not come any more."""
    with pytest.raises(SourceError, match="were lost"):
        doubted.apply(event(21, 3))


def test_events_up_to_the_probe_settle_it() -> None:
    late = view(1, 2)
    assert not late.agrees(probe(2, a3=19))
    late.apply(event(18, 1, "DELETE"))
    late.apply(event(19, 3))
    late.apply(event(21, 4))
    assert late.agrees(probe(3, revision=21, a3=19, a4=21))
