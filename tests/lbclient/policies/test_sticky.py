"""`Sticky`: what is in its cookie, and which node a request with one gets."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Mapping
from http.cookies import SimpleCookie
from typing import Any, cast

import pytest
from aiohttp import ClientRequest, ClientResponse
from hashing_rig import keys, node, nodes
from yarl import URL

from lbclient import Maglev, PowerOfTwo, RingHash, RoundRobin, Sticky, header
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.route import Route
from lbclient.routing import Portion, Routing, SlowStart


def call(session: str | None, excluded: Collection[Node] = (), key: str | None = None) -> Call:
    """A request with this cookie."""
    call = Call(key, session=session)
    call.excluded = excluded
    return call


class Answer:
    """As much of a response as the policy looks at."""

    def __init__(self, status: int = 200, *set_cookies: str) -> None:
        self.status = status
        self._raw_cookie_headers: tuple[str, ...] | None = set_cookies or None
        self.cookies = SimpleCookie()


def answered(policy: Sticky, by: Node, value: str | None = None, status: int = 200) -> str | None:
    """The value of the cookie that is set with the answer of this node; None if none is."""
    answer = Answer(status)
    policy.answered(by, cast("ClientResponse", answer), call(value))
    (morsel,) = answer.cookies.values() or (None,)
    return morsel.value if morsel is not None else None


async def key_of(policy: Sticky, headers: Mapping[str, str]) -> str | None:
    return None if policy.key is None else policy.key(ClientRequest("GET", URL("http://users/"), headers=headers))


async def session_of(policy: Sticky, headers: Mapping[str, str]) -> str | None:
    return policy.session(ClientRequest("GET", URL("http://users/"), headers=headers))


def token(policy: Sticky, of: Node) -> str:
    value = answered(policy, of)
    assert value is not None
    return value


def test_the_cookie_names_the_node_and_is_set_once() -> None:
    policy, among = Sticky(), nodes(1, 1, 1)
    first = policy.pick(among, call(None))
    value = token(policy, first)
    assert {policy.pick(among, call(value)) for _ in range(50)} == {first}
    assert answered(policy, first, value) is None


def test_each_node_has_a_cookie_of_its_own_that_does_not_tell_its_address() -> None:
    policy, among = Sticky(), nodes(*[1] * 20)
    values = {token(policy, each) for each in among}
    assert len(values) == 20
    assert {len(value) for value in values} == {32}
    assert not any(set(value) - set("0123456789abcdef") for value in values)


def test_all_instances_of_an_application_know_the_cookie_and_others_do_not() -> None:
    one = node(1)
    values = {secret: token(Sticky(secret=secret), one) for secret in ("", "a", "b", b"bytes", "long" * 99)}
    assert len(set(values.values())) == len(values)
    assert all(token(Sticky(secret=secret), one) == value for secret, value in values.items())
    assert token(Sticky(secret=b"a"), one) == values["a"]


def test_a_cookie_with_anything_else_in_it_means_the_same_as_none() -> None:
    """An address, a node of another service, garbage: only the current nodes are looked among."""
    among = nodes(1, 1, 1)
    elsewhere = token(Sticky(), node(99))
    for value in (among[0].address, elsewhere, "10.0.0.99:80", "", "x" * 4000, "é"):
        policy = Sticky(rng=random.Random(1))
        assert {policy.pick(among, call(value)) for _ in range(60)} == set(among)


def test_when_its_node_left_or_is_excluded_the_inner_policy_chooses() -> None:
    policy, among = Sticky(policy=RoundRobin), nodes(1, 1, 1, 1)
    value = token(policy, among[0])
    assert {policy.pick(among[1:], call(value)) for _ in range(6)} == set(among[1:])
    assert {policy.pick(among, call(value, among[:1])) for _ in range(6)} == set(among[1:])
    assert policy.pick(among, call(value)) is among[0]
    assert answered(policy, among[2], value) == token(policy, among[2])


def test_a_server_that_came_back_at_the_same_address_has_its_sessions_again() -> None:
    policy, among = Sticky(), nodes(1, 1, 1)
    value = token(policy, among[1])
    policy.pick(among[:1], call(value))
    again = nodes(1, 1, 1)
    assert policy.pick(again, call(value)) is again[1]


class Halves(Routing):
    """Two portions that get half of the requests each, and one that only helps out."""

    def split(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        usable = tuple(node for node in nodes if node.ejected_at is None)
        return Portion("a", usable[:3], 0.5), Portion("b", usable[3:6], 0.5), Portion("c", usable[6:], 0.0)


def begun(balancer: Balancer, value: str | None, *tried: Node, now: float = 0.0, key: str | None = None) -> Node:
    request = Call(key, now, value)
    request.tried = tried
    found = balancer.pick(request)
    assert found is not None
    return found


def test_a_session_stays_with_its_node_in_whatever_portion_that_is() -> None:
    balancer = Balancer("users", Sticky, routing=Halves())
    balancer.update([each.endpoint for each in nodes(*[1] * 8)], 0.0)
    for each in balancer.nodes.values():
        value = token(Sticky(), each)
        assert {begun(balancer, value) for _ in range(20)} == {each}
        assert each not in {begun(balancer, value, each) for _ in range(20)}


@pytest.mark.parametrize("key", [None, "user-1"])
def test_a_cookie_that_names_no_node_does_not_choose_the_portion(key: str | None) -> None:
    """Or all sessions of a node that left would move to the same one, and whoever forges a cookie could choose."""
    balancer = Balancer("users", Sticky, routing=Halves(), rng=random.Random(1))
    balancer.update([each.endpoint for each in nodes(*[1] * 8)], 0.0)
    groups = [
        Counter(cast("Route", begun(balancer, value, key=key).group).name for _ in range(200))
        for value in (token(Sticky(), node(99)), None)
    ]
    if key is None:
        assert all(80 < group["a"] < 120 and group.total() == group["a"] + group["b"] for group in groups)
    else:
        assert len(groups[0]) == 1
        assert groups[0] == groups[1]


def test_a_key_chooses_the_portion_whatever_bytes_it_was_decoded_from() -> None:
    balancer = Balancer("users", Sticky, routing=Halves())
    balancer.update([each.endpoint for each in nodes(*[1] * 8)], 0.0)
    begun_at = {key: begun(balancer, None, key=key).group for key in (f"\udc80{n}" for n in range(40))}
    assert len(set(begun_at.values())) == 2
    assert all(begun(balancer, None, key=key).group is group for key, group in begun_at.items())


def test_a_session_waits_neither_for_a_slow_start_nor_is_a_probe_while_others_can_be() -> None:
    balancer = Balancer("users", Sticky, slow_start=SlowStart(window=60))
    endpoints = [each.endpoint for each in nodes(*[1] * 6)]
    balancer.update(endpoints[:5], 0.0)
    balancer.update(endpoints, 1.0)
    new = balancer.nodes[endpoints[5].address]
    assert {begun(balancer, token(Sticky(), new), now=2.0) for _ in range(40)} == {new}
    failing, well = list(balancer.nodes.values())[:2]
    for _ in range(3):
        attempt = Attempt(failing, "test", lambda: None)
        attempt.land()
        balancer.observe(attempt, Outcome.CONNECT, 3.0)
    assert failing.ejected_until is not None
    assert begun(balancer, token(Sticky(), well), now=40.0) is well
    assert begun(balancer, None, now=40.0) is failing
    assert begun(balancer, token(Sticky(), well), now=60.0) is failing, "nobody else came for long"
    Attempt(failing, "test", lambda: None)
    assert begun(balancer, token(Sticky(), well), now=60.0) is well


def test_a_session_leaves_a_node_that_is_full() -> None:
    balancer = Balancer("users", Sticky, limit_per_node=1)
    balancer.update([each.endpoint for each in nodes(1, 1, 1)], 0.0)
    full = next(iter(balancer.nodes.values()))
    full.in_flight = 1
    assert full not in {begun(balancer, token(Sticky(), full)) for _ in range(20)}
    full.in_flight = 0


def test_an_answer_that_tells_of_a_failure_begins_no_session_and_ends_none() -> None:
    policy, one = Sticky(max_age=60), node(1)
    assert answered(policy, one, status=500) is None
    assert answered(policy, one, status=503) is None
    assert answered(policy, one, status=404) is not None
    assert answered(policy, one, token(policy, one), status=500) is not None


def test_attributes() -> None:
    """The session cookie of one origin, out of reach for scripts; the rest by choice."""
    answer = Answer()
    Sticky("affinity").answered(node(1), cast("ClientResponse", answer), call(None))
    morsel = answer.cookies["affinity"]
    set_ = {name: value for name, value in morsel.items() if value}
    assert set_ == {"path": "/", "httponly": True, "samesite": "Lax"}
    assert answer._raw_cookie_headers == (f"affinity={morsel.value}; HttpOnly; Path=/; SameSite=Lax",)
    answer = Answer()
    Sticky(secure=True, max_age=60).answered(node(1), cast("ClientResponse", answer), call(None))
    (text,) = answer._raw_cookie_headers or ()
    assert text.endswith("; HttpOnly; Max-Age=60; Path=/; SameSite=Lax; Secure")


def test_the_servers_own_cookies_stay() -> None:
    """Those with the same name and different paths as well, of which a mapping holds only one."""
    answer = Answer(200, "a=1; Path=/x", "a=2; Path=/y")
    Sticky().answered(node(1), cast("ClientResponse", answer), call(None))
    assert answer._raw_cookie_headers is not None
    assert answer._raw_cookie_headers[:2] == ("a=1; Path=/x", "a=2; Path=/y")
    assert len(answer._raw_cookie_headers) == 3


def test_with_a_max_age_each_answer_renews_the_cookie() -> None:
    policy, one = Sticky(max_age=60), node(1)
    assert answered(policy, one, token(policy, one)) == token(policy, one)


async def test_the_inner_policy_has_its_own_key_beside_the_cookie_and_sees_the_answers() -> None:
    class Inner(RingHash):
        def __init__(self) -> None:
            super().__init__(header("X-User"))
            self.seen: list[Node] = []

        def answered(self, by: Node, _response: ClientResponse, _call: Any) -> None:
            self.seen.append(by)

    inner = Inner()
    policy = Sticky(policy=inner)
    assert await key_of(policy, {"X-User": "42"}) == "42"
    assert await key_of(policy, {"X-User": "42", "Cookie": "lb_node=7"}) == "42"
    assert await session_of(policy, {"X-User": "42", "Cookie": "lb_node=7"}) == "7"
    assert await key_of(policy, {}) is await session_of(policy, {}) is None
    assert await key_of(Sticky(), {"Cookie": "lb_node=7"}) is None
    among = nodes(1, 1, 1)
    assert policy.pick(among, call(None, key="42")) is RingHash().pick(among, call(None, key="42"))
    answered(policy, among[0])
    assert inner.seen == [among[0]]


def test_the_sessions_of_a_node_that_left_go_where_their_keys_do() -> None:
    """Not all to the same node, as by the hash of the cookie that they have in common."""
    policy, among = Sticky(policy=RingHash(header("X-User"))), nodes(1, 1, 1, 1)
    value = token(policy, node(99))
    homes = {key: policy.pick(among, call(value, key=key)) for key in keys(300)}
    assert set(homes.values()) == set(among)
    assert homes == {key: RingHash().pick(among, call(None, key=key)) for key in homes}


def test_the_cookie_comes_before_the_key() -> None:
    policy, among = Sticky(policy=RingHash), nodes(1, 1, 1, 1)
    assert {policy.pick(among, call(token(policy, among[2]), key=key)) for key in keys(50)} == {among[2]}


@pytest.mark.parametrize("policy", [RoundRobin, RoundRobin(), PowerOfTwo, None])
def test_the_inner_policy_is_one_or_what_makes_one(policy: Any) -> None:
    among = nodes(1, 1)
    assert {Sticky(policy=policy).pick(among, call(None)) for _ in range(40)} <= set(among)


@pytest.mark.parametrize("policy", [dict, lambda: RoundRobin, "ring_hash", 42])
def test_an_inner_policy_that_is_none_is_refused(policy: Any) -> None:
    with pytest.raises(TypeError, match="policy must be a policy or a function that makes one, not "):
        Sticky(policy=policy)


@pytest.mark.parametrize("secret", [None, 42, ["a"]])
def test_a_secret_that_is_no_text_is_refused(secret: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"secret must be a string or bytes, not {secret!r}")):
        Sticky(secret=secret)


def test_a_secret_may_come_from_an_environment_of_any_bytes() -> None:
    assert token(Sticky(secret="\udc80"), node(1)) != token(Sticky(secret="\udc81"), node(1))


@pytest.mark.parametrize("make", [Sticky, RingHash, Maglev, lambda rng: Sticky(policy=RoundRobin, rng=rng)])
def test_a_source_of_randomness_that_is_none_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="rng must be of type Random, not 42"):
        make(rng=42)


@pytest.mark.parametrize("name", ["", "a b", "a;b", "path", "é"])
def test_what_cannot_be_the_name_of_a_cookie_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cookie takes the name of a cookie, not "):
        Sticky(name)


@pytest.mark.parametrize("age", [0, -1, 1.5, True, "60"])
def test_a_wrong_age_is_refused(age: Any) -> None:
    with pytest.raises(ValueError, match=f"max_age must be a whole number of seconds above 0, not {age!r}"):
        Sticky(max_age=age)
