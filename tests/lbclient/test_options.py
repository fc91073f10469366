"""A wrong option is refused at construction, by an error that names the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from discovery import Memory, Static
from lbclient import BalancedSession, BalancingMiddleware, Ejection, PowerOfTwo, Retry, RoundRobin, in_flight
from lbclient.call import Call
from lbclient.node import Node

USERS = {"users": Static(["127.0.0.1:1"])}
BAD_NUMBERS = ("3", None, True, float("nan"), [], -1)


@pytest.mark.parametrize("value", [*BAD_NUMBERS, 0, 2.5, float("inf")])
async def test_max_attempts_is_a_whole_number_from_1(value: Any) -> None:
    with pytest.raises(ValueError, match=r"attempts must be .*1 or more") as caught:
        BalancedSession(USERS, retry=Retry(attempts=value))
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("methods", "GET", "methods must be a collection of HTTP methods, .*, not 'GET'"),
        ("methods", 3, "methods must be a collection of HTTP methods, .*, not 3"),
        ("methods", ["GET", "P T"], "methods must be a collection of HTTP methods, .*; 'P T' is none"),
        ("methods", [b"GET"], "b'GET' is none"),
        ("statuses", 503, "statuses must be a collection of statuses from 400 to 599, not 503"),
        ("statuses", "503", "statuses must be .*, not '503'"),
        ("statuses", {503, 200}, "statuses must be a collection of statuses from 400 to 599; 200 is none"),
        ("statuses", ["503"], "'503' is none"),
        ("statuses", [True], "True is none"),
        (
            "exceptions",
            OSError,
            "exceptions must be a collection of subclasses of Exception, not <class 'OSError'>",
        ),
        ("exceptions", (OSError, BaseException), "<class 'BaseException'> is none"),
        ("exceptions", (OSError("x"),), r"OSError\('x'\) is none"),
        ("backoff", -1, "backoff must be 0 or more, not -1"),
        ("backoff", "1", "backoff must be 0 or more, not '1'"),
        ("backoff", 1.0, "backoff must be at most backoff_cap, 0.25, not 1.0"),
        ("backoff_cap", float("nan"), "backoff_cap must be 0 or more, not nan"),
        ("backoff_cap", float("inf"), "backoff_cap must be finite, not inf"),
        ("retry_after", -1, "retry_after must be 0 or more, not -1"),
        ("retry_after", None, "retry_after must be 0 or more, not None"),
        ("idempotency_key", "", "idempotency_key must be the name of a header, not ''"),
        ("idempotency_key", "X Key", "idempotency_key must be the name of a header, not 'X Key'"),
        ("idempotency_key", True, "idempotency_key must be the name of a header, not True"),
        ("budget", 0.2, "budget must be of type Budget, not 0.2"),
        ("budget", None, "budget must be of type Budget, not None"),
    ],
)
async def test_a_rule_for_retries_is_checked(option: str, value: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        Retry(**{option: value})


async def test_rules_for_retries_may_be_written_in_several_ways() -> None:
    retry = Retry(
        methods=["get", "Post"], statuses=range(500, 600), exceptions=[OSError], retry_after=float("inf")
    )
    assert retry.methods == {"GET", "POST"}
    assert 599 in retry.statuses
    assert retry.exceptions == (OSError,)
    assert Retry() == Retry()


async def judge(_: object) -> None:
    """It would have to be awaited."""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("retry", 3, "retry must be of type Retry, not 3"),
        ("retry", {"attempts": 3}, "retry has 'attempts', which is no service; there are users"),
        ("retry", {"users": 3}, "retry must be of type Retry, not 3"),
        ("classify", 3, "classify must be a function of a response or an exception .*, not 3"),
        ("classify", judge, "classify must be a function of a response or an exception .* at once, not "),
        ("deadline_header", "a b", "deadline_header must be the name of a header, not 'a b'"),
        ("deadline_header", 3, "deadline_header must be the name of a header, not 3"),
        ("attempt_timeout", {"users": -1}, "attempt_timeout must be above 0, not -1"),
    ],
)
@pytest.mark.parametrize("owner", [BalancedSession, BalancingMiddleware])
async def test_options_of_services_are_checked_for_each(owner: Any, option: str, value: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        owner(USERS, **{option: value})
    if not isinstance(value, dict) or "users" in value:
        assert caught.value.__notes__ == ["for the service 'users'"]


async def test_services_that_are_not_named_have_the_defaults() -> None:
    services = {"users": Memory(), "orders": Memory(), "mails": Memory()}
    async with BalancedSession(services, retry={"users": Retry(attempts=7), "mails": None}) as session:
        made = session._balancing._services
        assert [made[name].settings.retry.attempts for name in services] == [7, 3, 3]


@pytest.mark.parametrize("option", ["wait_for_endpoints", "drain_timeout"])
@pytest.mark.parametrize("value", BAD_NUMBERS)
async def test_numbers_that_may_be_zero(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*0 or more") as caught:
        BalancedSession(USERS, **{option: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("option", ["attempt_timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [0, *(value for value in BAD_NUMBERS if value is not None)])
async def test_numbers_above_zero(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0") as caught:
        BalancedSession(USERS, **{option: value})
    assert repr(value) in str(caught.value)


async def test_only_attempt_timeout_may_be_none() -> None:
    async with BalancedSession(USERS, attempt_timeout=None):
        pass
    with pytest.raises(ValueError, match="connect_timeout must be above 0, not None"):
        BalancedSession(USERS, connect_timeout=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", "users:80", "a b", "http://users", "users/x", "[::1]", "b\u00fccher", 5, None]
)
async def test_a_services_name_is_a_host_name(name: Any) -> None:
    with pytest.raises(ValueError, match="a service name is a host name in URLs") as caught:
        BalancedSession({name: Memory()})
    assert repr(name) in str(caught.value)


async def test_names_that_differ_in_case_only_are_one_name() -> None:
    with pytest.raises(ValueError, match="differ in more than case, unlike users, Users"):
        BalancedSession({"users": Memory(), "Users": Memory()})


async def test_a_single_services_name_is_checked_too() -> None:
    with pytest.raises(ValueError, match="'users:80' cannot be one"):
        BalancedSession(Memory(), name="users:80")


async def test_a_name_is_for_a_single_service() -> None:
    with pytest.raises(ValueError, match="name='users' is for a single service"):
        BalancedSession(USERS, name="users")


async def test_there_is_a_service() -> None:
    with pytest.raises(ValueError, match="at least one service"):
        BalancedSession({})


@pytest.mark.parametrize("source", [42, None, ["127.0.0.1:1"], object])
async def test_a_source_can_be_watched(source: Any) -> None:
    with pytest.raises(TypeError, match=r"is no source: it has no watch\(\) method") as caught:
        BalancedSession({"users": source})
    assert repr(source) in str(caught.value)


@pytest.mark.parametrize("policy", [None, 3, object(), lambda: "nothing", list])
@pytest.mark.parametrize("owner", [BalancedSession, BalancingMiddleware])
async def test_a_policy_can_pick(policy: Any, owner: Any) -> None:
    with pytest.raises(TypeError, match=r"policy must (be|have)"):
        owner(USERS, policy=policy)


@pytest.mark.parametrize("policy", [RoundRobin, RoundRobin(), lambda: PowerOfTwo(load=in_flight)])
async def test_a_policy_is_a_class_a_function_or_an_object(policy: Any) -> None:
    async with BalancedSession(USERS, policy=policy) as session:
        assert session.describe()["services"]["users"]["policy"] in ("RoundRobin", "PowerOfTwo")


@pytest.mark.parametrize("owner", [BalancedSession, BalancingMiddleware])
async def test_an_unknown_policy_name_lists_the_known_ones(owner: Any) -> None:
    with pytest.raises(ValueError, match=r"one of round_robin, .*power_of_two.*, not 'round-robin'"):
        owner(USERS, policy="round-robin")


async def test_each_service_may_have_its_own_policy() -> None:
    services = {"users": Memory(), "orders": Memory(), "mails": Memory()}
    async with BalancedSession(services, policy={"users": RoundRobin, "mails": "random"}) as session:
        policies = {name: state["policy"] for name, state in session.describe()["services"].items()}
    assert policies == {"users": "RoundRobin", "orders": "PowerOfTwo", "mails": "Random"}
    with pytest.raises(ValueError, match="policy has 'user', which is no service; there are users, orders, mails"):
        BalancedSession(services, policy={"user": RoundRobin})


async def test_a_policy_object_is_not_shared_among_services_and_sessions() -> None:
    policy = RoundRobin()
    services = {"users": Memory(), "orders": Memory()}
    async with (
        BalancedSession(services, policy={"users": policy, "orders": policy}) as one,
        BalancedSession(USERS, policy=policy) as two,
    ):
        found = [
            service.balancer.policy for session in (one, two) for service in session._balancing._services.values()
        ]
        assert found[0] is policy
        assert len({id(each) for each in found}) == 3


async def test_a_policy_object_needs_no_place_for_weak_references() -> None:
    class First:
        __slots__ = ()

        def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
            return next(node for node in nodes if node not in call.excluded)

    async with BalancedSession(USERS, policy=First()) as session:
        assert session.describe()["services"]["users"]["policy"] == "First"


async def test_a_websocket_takes_no_key_and_says_what_to_do() -> None:
    async with BalancedSession(USERS) as session:
        with pytest.raises(TypeError, match=r"ws_connect takes no lb_key; give the policy a key="):
            session.ws_connect("http://users/", lb_key="user-42")


async def test_ejection_is_an_ejection() -> None:
    with pytest.raises(TypeError, match="ejection must be of type Ejection, not 3"):
        BalancedSession(USERS, ejection=3)  # type: ignore[arg-type]
    async with BalancedSession(USERS, ejection=Ejection(base=1)):
        pass


async def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="max_attempt"):
        BalancedSession(USERS, max_attempt=3)
    with pytest.raises(TypeError, match="max_attempt"):
        BalancingMiddleware(USERS, max_attempt=3)  # type: ignore[call-arg]


async def test_a_total_deadline_is_a_number_or_a_clienttimeout() -> None:
    with pytest.raises((TypeError, ValueError), match=r"timeout must be .*not 'soon'"):
        BalancedSession(USERS, timeout="soon")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "meant"), [("retries", "retry"), ("healthcheck", "health_check"), ("limit", "limits")]
)
async def test_a_misspelt_option_is_named_with_what_is_meant(option: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"no option '{option}'; did you mean '{meant}'"):
        BalancedSession(USERS, **{option: 1})


async def test_a_middleware_needs_names_for_its_services() -> None:
    with pytest.raises(TypeError, match="services must be a mapping from names to sources, not 'static://"):
        BalancingMiddleware("static://10.0.0.1:80")  # type: ignore[arg-type]


async def test_a_time_out_is_not_negative() -> None:
    with pytest.raises(ValueError, match="timeout must be 0 or more, not -1"):
        BalancedSession(USERS, timeout=-1)
