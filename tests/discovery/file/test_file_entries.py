"""What stands in a file -> endpoints, and where exactly something is wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from discovery import Endpoint
from discovery.file.entries import Broken, as_endpoint
from discovery.file.json_text import json_entries
from discovery.file.yaml_text import _loader_class, yaml_entries

FULL = {
    "host": "10.0.0.1",
    "port": 8080,
    "weight": 2.5,
    "priority": -1,
    "zone": "eu-1",
    "tls": True,
    "metadata": {"version": "2", "canary": True, "shard": 3, "none": None},
    "id": "users-1",
}


@pytest.mark.parametrize(
    ("entry", "endpoint"),
    [
        ("10.0.0.1:80", Endpoint(host="10.0.0.1", port=80)),
        ("[fd00::1]:80", Endpoint(host="fd00::1", port=80)),
        ("https://users.example", Endpoint(host="users.example", port=443, tls=True)),
        ({"address": "http://10.0.0.1", "weight": 0}, Endpoint(host="10.0.0.1", port=80, weight=0)),
        ({"address": "10.0.0.1:80", "tls": True}, Endpoint(host="10.0.0.1", port=80, tls=True)),
        ({"host": "a", "port": 80, "zone": None}, Endpoint(host="a", port=80)),
        (
            FULL,
            Endpoint(
                host="10.0.0.1",
                port=8080,
                weight=2.5,
                priority=-1,
                zone="eu-1",
                tls=True,
                metadata={"version": "2", "canary": "true", "shard": "3", "none": "null"},
                id="users-1",
            ),
        ),
    ],
)
def test_entries(entry: Any, endpoint: Endpoint) -> None:
    for text, read in ((json.dumps([entry]), json_entries), (yaml.safe_dump([entry]), yaml_entries)):
        ((line, found),) = read(text)
        assert (line, as_endpoint(found)) == (1, endpoint)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (42, "expected host:port or a mapping, not 42"),
        (None, "expected host:port or a mapping, not None"),
        ([], "expected host:port or a mapping, not a list"),
        ("10.0.0.1", "expected host:port"),
        ({}, "either address, or host and port"),
        ({"host": "a"}, "either address, or host and port"),
        ({"address": "a:80", "port": 80}, "says it already"),
        ({"address": "https://a", "tls": True}, "says it already"),
        ({"address": ["a:80"]}, "address must be text, not a list"),
        ({"host": "a", "port": "80"}, "port must be a whole number, not '80'"),
        ({"host": "a", "port": True}, "port must be a whole number, not True"),
        ({"host": "a", "port": 0}, "port must be"),
        ({"host": "a", "port": 80, "weight": "heavy"}, "weight must be a number"),
        ({"host": "a", "port": 80, "weight": float("nan")}, "weight must be finite"),
        ({"host": "a", "port": 80, "weight": float("-inf")}, "weight must be finite"),
        ({"host": "a", "port": 80, "weight": -1}, "weight must be finite and not negative, not -1"),
        ({"host": "a", "port": 80, "priority": 1.5}, "priority must be a whole number, not 1.5"),
        ({"host": "a", "port": 80, "priority": "high"}, "priority must be a whole number, not 'high'"),
        ({"host": "a", "port": 80, "zone": 1}, "zone must be text, not 1"),
        ({"host": "a", "port": 80, "tls": "yes"}, "tls must be true or false"),
        ({"host": "a", "port": 80, "metadata": []}, "metadata must be a mapping"),
        ({"host": "a", "port": 80, "metadata": {"a": [1]}}, "metadata 'a' must be text or a number, not a list"),
        ({"host": "a", "port": 80, "Weight": 1}, "unknown key 'Weight'"),
        ({1: 2}, "unknown key 1"),
        (ValueError("month must be in 1..12"), "month"),
    ],
)
def test_bad_entries_say_why(entry: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        as_endpoint(entry)


def test_lone_surrogates_do_no_harm() -> None:
    ((_, entry),) = json_entries(r'[{"address": "a:80", "zone": "\ud800", "metadata": {"\ud800": "\ud800"}}]')
    found = as_endpoint(entry)
    f"{found}".encode()
    assert (found.zone, dict(found.metadata)) == ("?", {"?": "?"})


@pytest.fixture(params=["libyaml", "python"])
def read_yaml(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], list[Any]]]:
    """With and without the parser in C."""
    if request.param == "python":
        monkeypatch.setattr(yaml, "__with_libyaml__", False)
    _loader_class.cache_clear()
    yield lambda text: list(yaml_entries(text))
    _loader_class.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        ("endpoints: []", []),
        ("a: {b: [1]}\nendpoints:\n  - x\n\n  - y: 1\nb: 2", [(3, "x"), (5, {"y": 1})]),
        ("- 2024-13-45\n- 1", [(1, "ValueError"), (2, 1)]),
        ("--- # first\n- 'a'\n...\n", [(2, "a")]),
    ],
)
def test_yaml(read_yaml: Callable[[str], list[Any]], text: str, expected: list[Any]) -> None:
    found = [(line, "ValueError" if isinstance(value, ValueError) else value) for line, value in read_yaml(text)]
    assert found == expected


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nendpoints: [{address: *b}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\na: 1", "line 2, column 1: expected a list"),
        ("", "line 1, column 1: expected a list"),
        ("text", "line 1, column 1: expected a list"),
        ("endpoints:\n", "line 1, column 11: expected a list"),
        ("endpoints: []\nendpoints: []", "line 2, column 12: expected a list"),
        ("- a\n- b: [1", "line [23], column"),
        ("- a\n b: c", "line 2, column"),
        ("- a\n---\n- b", "line 2, column 1: more than one document"),
        ("- !!python/object:os.system x", "line 1, column 3: could not determine a constructor"),
        (LAUGHS, "line 2, column 8: aliases"),
        ("- <<: *x", "line 1, column 7: aliases"),
        ("- " + "[" * 100_000, "line 1, column 2[0-9]: nested too deeply"),
        ("- é\n- \x01", r"line 2, column 3: character #x0001 is not allowed"),
        ("- {[a]: b}", "line 1, column 4: .*unhashable"),
    ],
)
def test_broken_yaml_says_where(read_yaml: Callable[[str], list[Any]], text: str, words: str) -> None:
    with pytest.raises(Broken, match=words):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n {}", "line 2, column 2: expected a list"),
        ('{"endpoints": {}}', "line 1, column 15: expected a list"),
        ('{"endpoints": [], "endpoints": []}', "line 1, column 31: expected a list"),
        ('{"a": 1,\n}', "line 2, column 1: Expecting a name"),
        ('{"a" 1}', "line 1, column 6: Expecting ':'"),
        ('{"endpoints": []', "line 1, column 17: Expecting ',' or '}'"),
        ("[1,]", "line 1, column 4: Expecting value"),
        ("[1 2]", "line 1, column 4: Expecting ',' or ']'"),
        ("[\n01]", "line 2, column 2: Expecting"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "Exceeds the limit"),
    ],
)
def test_broken_json_says_where(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(json_entries(text))


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20).map(json.dumps)
)
def test_json_is_what_the_json_module_says(text: str) -> None:
    value = json.loads(text)
    if isinstance(value, list):
        assert [entry for _, entry in json_entries(text)] == value
        wrapped = json.dumps({"a": value, "endpoints": value, "b": 1}, indent=1)
        assert [entry for _, entry in json_entries(wrapped)] == value
    else:
        with pytest.raises(Broken):
            list(json_entries(text))


@given(st.text() | st.text(alphabet='[]{}",:-& *\n\t1ae!|>%#?'))
def test_any_text_is_read_or_broken(text: str) -> None:
    for read in (json_entries, yaml_entries):
        try:
            for _, entry in read(text):
                with contextlib.suppress(ValueError):
                    as_endpoint(entry)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - it may be good, too
