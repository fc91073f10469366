"""Whatever a Consul agent answers: nothing raises, and what cannot be read is counted."""

from __future__ import annotations

import copy
import json
from typing import Any

from consul_rig import ENTRY, NAMES, entry
from hypothesis import given
from hypothesis import strategies as st

from discovery.consul.conventions import by_key, reader
from discovery.records import Records

# What an agent could answer with: entries with any JSON in their fields, and any JSON instead of them.

names = st.sampled_from(
    ["Node", "Service", "Checks", "ID", "Address", "Port", "Tags", "TaggedAddresses", "Meta", "Weights", "Passing",
     "Status", "http", "secure", "zone"]
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
    st.sampled_from(["passing", "warning", "10.0.0.1", "http://a:1", "true", "urlprefix-/", "\ud800", 80]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
services = st.fixed_dictionaries(
    {"ID": anything, "Address": st.sampled_from(["10.0.0.1", ""]) | anything, "Port": st.just(80) | anything},
    optional=dict.fromkeys(("Tags", "TaggedAddresses", "Meta", "Weights"), anything),
)
instances = st.fixed_dictionaries(
    {"Node": st.just(ENTRY["Node"]) | anything, "Service": services | anything}, optional={"Checks": anything}
)


@given(st.lists(st.lists(instances | anything, max_size=3), max_size=3), st.sampled_from(NAMES), st.booleans())
def test_no_json_raises(answers: list[list[Any]], name: str, passing: bool) -> None:
    found = Records(reader(name, passing=passing))
    for answer in answers:
        found.replace(by_key(answer))
        assert len(found.skipped) <= len(answer)
        json.dumps([endpoint.as_dict() for endpoint in found.endpoints], ensure_ascii=False).encode()


def test_monsters() -> None:
    deep: Any = []
    for _ in range(300):
        deep = {"Address": deep}
    for name in NAMES:
        for field in ENTRY["Service"]:
            for value in (deep, "x" * 1_000_000, 10**1000, ["urlprefix-/ " + "a=b " * 100_000], {"a": deep}):
                found = Records(reader(name))
                for _ in range(2):
                    found.replace(by_key([entry(**{field: copy.deepcopy(value)})]))
                assert len(found.skipped) + len(found.endpoints) <= 1
                assert all(len(reason) < 400 for reason in found.skipped.values())
