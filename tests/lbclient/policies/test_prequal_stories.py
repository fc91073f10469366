"""Prequal under random stories of updates, picks, answers and time that passes."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from discovery import Endpoint
from lbclient import Prequal
from lbclient.call import Call
from lbclient.node import Node

Step = Callable[["Story"], None]
MAX_AGE = 1.0
POOL = 4


class Story:
    def __init__(self, weights: list[float], seed: int) -> None:
        self.all = [Node(Endpoint(host=f"10.0.0.{n}", port=80, weight=w)) for n, w in enumerate(weights)]
        self.nodes = tuple(self.all)
        self.now = 100.0
        self.asked: list[Node] = []
        self.policy = Prequal(pool=POOL, probes=1.5, remove=0.5, max_age=MAX_AGE, rng=random.Random(seed))
        self.policy.probe = self.ask

    def ask(self, node: Node) -> None:
        assert node in self.nodes
        assert len(self.nodes) > 1
        self.asked.append(node)

    def update(self, keep: int) -> None:
        kept = tuple(node for bit, node in enumerate(self.all) if keep >> bit & 1)
        self.nodes = kept or self.nodes

    def pick(self, exclude: int) -> None:
        call = Call(now=self.now)
        call.excluded = [node for bit, node in enumerate(self.nodes) if exclude >> bit & 1][: len(self.nodes) - 1]
        node = self.policy.pick(self.nodes, call)
        assert node in self.nodes
        assert node not in call.excluded
        probes = self.policy._pool.probes
        assert len({probe.node for probe in probes}) == len(probes) <= POOL
        if len(self.nodes) > 1:
            assert all(probe.node in self.nodes for probe in probes)
            assert all(self.now - MAX_AGE <= probe.received_at <= self.now for probe in probes)
        assert [probe.received_at for probe in probes] == sorted(probe.received_at for probe in probes)

    def answer(self, which: int, rif: float, latency: float | None) -> None:
        if self.asked:
            self.policy.learn(self.asked.pop(which % len(self.asked)), rif, latency, self.now)

    def miss(self, which: int) -> None:
        if self.asked:
            self.policy.missed(self.asked.pop(which % len(self.asked)), self.now)

    def fail(self, which: int) -> None:
        self.all[which % len(self.all)].learn(0.01, self.now, failed=True)

    def wait(self, seconds: float) -> None:
        self.now += seconds


NUMBERS = st.integers(0, 255)
STEPS = st.one_of(
    st.builds(lambda keep: lambda story: story.update(keep), NUMBERS),
    st.builds(lambda exclude: lambda story: story.pick(exclude), NUMBERS),
    st.just(lambda story: story.pick(0)),
    st.builds(
        lambda which, rif, latency: lambda story: story.answer(which, rif, latency),
        NUMBERS,
        st.floats(0, 1e6),
        st.none() | st.floats(0, 3600),
    ),
    st.builds(lambda which: lambda story: story.miss(which), NUMBERS),
    st.builds(lambda which: lambda story: story.fail(which), NUMBERS),
    st.builds(lambda seconds: lambda story: story.wait(seconds), st.floats(0, 20)),
)


@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1000.0]), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
    steps=st.lists(STEPS, max_size=60),
)
def test_whatever_happens_a_node_of_the_tuple_is_picked_and_the_pool_holds_what_is_new(
    weights: list[float], seed: int, steps: list[Step]
) -> None:
    story = Story(weights, seed)
    for step in steps:
        step(story)
    story.pick(0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.floats(0.01, 0.99))
def test_the_limit_is_the_quantile_of_the_last_128_loads(loads: list[float], quantile: float) -> None:
    policy = Prequal(q_rif=quantile)
    node = Node(Endpoint(host="10.0.0.1", port=80))
    for load in loads:
        policy.learn(node, load, 0.01, 0.0)
    limit, recent = policy._pool.limit, loads[-128:]
    assert limit in recent
    assert sum(load <= limit for load in recent) >= quantile * len(recent) - 1e-9
    assert sum(load < limit for load in recent) < quantile * len(recent) + 1e-9
