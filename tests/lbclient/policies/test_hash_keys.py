"""Keys taken from requests: a header, a cookie, a part of the path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import ClientRequest
from hashing_rig import call, nodes
from yarl import URL

from lbclient import Maglev, RingHash, cookie, header, path_part
from lbclient.policies import Key


async def key_of(key: Key, url: str = "/", headers: Mapping[str, str] | None = None) -> str | None:
    return key(ClientRequest("GET", URL("http://users/").join(URL(url)), headers=headers))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"X-User": "42"}, "42"), ({"x-user": "42"}, "42"), ({"X-User": ""}, None), ({"X-Other": "42"}, None)],
)
async def test_a_header_is_found_in_any_case_and_an_empty_one_is_none(
    headers: dict[str, str], expected: str | None
) -> None:
    assert await key_of(header("X-User"), headers=headers) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("session=abc", "abc"),
        ("a=1; session=abc; b=2", "abc"),
        ("a=1;session=abc", "abc"),
        ('session="abc"', "abc"),
        ("session=a=b", "a=b"),
        ("session=abc; session=later", "abc"),
        ("session=", None),
        ("session", None),
        ("mysession=abc; session2=abc; Session=abc", None),
        ("", None),
    ],
)
async def test_a_cookie_is_found_by_its_whole_name(sent: str, expected: str | None) -> None:
    assert await key_of(cookie("session"), headers={"Cookie": sent}) == expected


async def test_without_any_cookie_there_is_no_key() -> None:
    assert await key_of(cookie("session")) is None


@pytest.mark.parametrize(
    ("index", "path", "expected"),
    [
        (0, "/users/42/orders", "users"),
        (1, "/users/42/orders", "42"),
        (-1, "/users/42/orders", "orders"),
        (-3, "/users/42/orders", "users"),
        (3, "/users/42/orders", None),
        (-4, "/users/42/orders", None),
        (1, "/users/42?user=7", "42"),
        (1, "/users/a%2Fb/c", "a/b"),
        (1, "/users/%C3%A9", "é"),
        (1, "/users/", None),
        (0, "/", None),
        (-1, "/", None),
    ],
)
async def test_a_part_of_the_path_is_decoded_and_one_that_is_not_there_is_none(
    index: int, path: str, expected: str | None
) -> None:
    assert await key_of(path_part(index), path) == expected


@pytest.mark.parametrize("make", [header, cookie])
@pytest.mark.parametrize("name", ["", "a b", "a=b", "a;b", "é", "a\n", 7, None])
def test_what_cannot_be_a_name_is_refused(make: Any, name: Any) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__} takes the name of a {make.__name__}, not "):
        make(name)


@pytest.mark.parametrize("index", ["1", 1.0, None, True])
def test_what_cannot_be_a_number_of_a_part_is_refused(index: Any) -> None:
    with pytest.raises(ValueError, match="path_part takes the number of a part, 0 for the first, not "):
        path_part(index)


@pytest.mark.parametrize("make", [RingHash, Maglev])
def test_a_key_may_have_been_decoded_from_any_bytes(make: Any) -> None:
    """A server hands on headers that are no UTF-8 with lone surrogates in them."""
    policy, among = make(), nodes(1, 1, 1)
    homes = {key: policy.pick(among, call(key)) for key in (f"\udce9{number}" for number in range(40))}
    assert set(homes.values()) == set(among)
    assert homes == {key: policy.pick(among, call(key)) for key in homes}


@pytest.mark.parametrize("make", [RingHash, Maglev])
def test_a_key_that_is_no_function_is_refused_and_the_message_shows_one(make: Any) -> None:
    with pytest.raises(TypeError, match=r"such as header\('X-User'\), not 'X-User'"):
        make("X-User")
