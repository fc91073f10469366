"""Every state of a node times everything that can happen, against a table that knows nothing of the code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
from ejection_rig import World

from lbclient.attempt import Attempt
from lbclient.node import NOWHERE, Node
from lbclient.outcome import Outcome

# What becomes of a node by the outcome of one attempt, where one failure is enough.
#   in: the attempt began while the node was in, or after it came back;
#   probe, stray: the node is ejected, and the attempt is its probe, or began there after that all the same;
#   connect, answers: what it was ejected for.
# `same` is the state as it was. Attempts that began before the ejection, or before the return, change nothing.
TABLE = """
            in       probe/connect  probe/answers  stray/connect  stray/answers
success     same     in             in             in             in
overload    same     in             in             in             in
error       answers  in             waiting        in             same
gateway     answers  in             waiting        in             same
connect     connect  waiting        waiting        same           same
fault       answers  waiting        waiting        same           same
timeout     answers  waiting        waiting        same           same
broken      answers  waiting        waiting        same           same
ours        same     waiting        waiting        same           same
left        same     waiting        waiting        same           same
"""
HEAD, *ROWS = (line.split() for line in TABLE.strip().splitlines())
BECOMES = {(row[0], column): cell for row in ROWS for column, cell in zip(HEAD, row[1:], strict=True)}


class State(NamedTuple):
    """What there is to know: ejection is one of in, waiting, due, probing, overdue (its probe takes too long)."""

    ejection: str = "in"
    reason: str = ""
    returned: bool = False
    healthy: bool = True
    leaving: bool = False
    listed: bool = True

    @property
    def out(self) -> bool:
        return self.ejection != "in" or not self.healthy or self.leaving

    @property
    def name(self) -> str:
        """As the balancer calls it."""
        if not self.listed:
            return "draining"
        if self.leaving:
            return "leaving"
        if not self.healthy:
            return "unhealthy"
        return {"in": "ready", "waiting": "ejected", "due": "ejected"}.get(self.ejection, "probing")


Event = tuple[str, str]
CHANGES = [
    *[("time", ""), ("pick", ""), ("check", "up"), ("check", "down"), ("check", "confirmed")],
    *[("drain", "begins"), ("drain", "is over"), ("update", "with"), ("update", "without")],
]


def events(state: State) -> Iterator[Event]:
    """What can happen in a state."""
    yield from CHANGES
    kinds = ["new"]
    if state.returned or state.ejection != "in" or not state.listed:
        kinds.append("old")
    if state.ejection in ("probing", "overdue") and state.listed:
        kinds.append("probe")
    yield from ((kind, outcome.value) for kind in kinds for outcome in Outcome)


def after(state: State, event: Event) -> State:
    """The model."""
    if not state.listed:
        return State() if event == ("update", "with") else state
    return after_change(state, event) if event in CHANGES else after_outcome(state, event)


def after_change(state: State, event: Event) -> State:
    kind, what = event
    if kind == "time":
        return state._replace(
            ejection={"waiting": "due", "probing": "overdue"}.get(state.ejection, state.ejection)
        )
    if kind == "pick":
        probed = state.ejection in ("due", "overdue") and state.healthy and not state.leaving
        return state._replace(ejection="probing") if probed else state
    if event == ("check", "confirmed"):
        return back(state) if state.reason == "connect" else state
    if kind == "check":
        return state._replace(healthy=what == "up")
    if kind == "drain":
        return state._replace(leaving=what == "begins")
    return state._replace(listed=what == "with")


def after_outcome(state: State, event: Event) -> State:
    kind, what = event
    if kind == "old":
        return state
    column = "in" if state.ejection == "in" else f"{'probe' if kind == 'probe' else 'stray'}/{state.reason}"
    becomes = BECOMES[what, column]
    if becomes == "same":
        return state
    if becomes == "in":
        return back(state)
    if becomes in ("connect", "answers"):
        return state._replace(ejection="waiting", reason=becomes)
    return state._replace(ejection=becomes)


def back(state: State) -> State:
    return state._replace(ejection="in", reason="", returned=True)


@cache
def paths() -> dict[State, tuple[Event, ...]]:
    """All states that can be reached, and how."""
    found: dict[State, tuple[Event, ...]] = {State(): ()}
    todo = [State()]
    for state in todo:
        for event in events(state):
            following = after(state, event)
            if following not in found:
                found[following] = (*found[state], event)
                todo.append(following)
    return found


class Story:
    """A node among four, to which things happen one second after the other."""

    def __init__(self) -> None:
        self.world = World(0, 1, 2, 3, connect_failures=1, failures=1, base=1000, cap=1000)
        self.node = self.world.node(0)
        self.old = [self.world.begin(self.node) for _ in range(20)]
        self.probe: Attempt | None = None

    def happen(self, event: Event) -> None:
        kind, what = event
        world, balancer, node = self.world, self.world.balancer, self.node
        world.now += 1
        if kind == "time":
            world.now += 1200
        elif kind == "pick":
            self.pick()
        elif event == ("check", "confirmed"):
            balancer.health_confirmed(node, world.now)
        elif kind == "check":
            balancer.set_health(node, healthy=what == "up", now=world.now)
        elif kind == "drain":
            balancer.set_leaving(node, leaving=what == "begins", now=world.now)
        elif kind == "update":
            world.update(*([0] if what == "with" else []), 1, 2, 3)
            self.node = balancer.nodes.get("s0:80", node)
        else:
            attempt = self.old.pop() if kind == "old" else self.probe if kind == "probe" else world.begin(node)
            assert attempt is not None
            world.now += 1
            world.end(attempt, Outcome(what))

    def pick(self) -> None:
        """A request that is a probe if one is due, and at another node if not."""
        picked = self.world.pick()
        assert picked is not None
        if picked is self.node and picked.ejected_at is not None:
            self.probe = self.world.begin(picked)


def run(path: tuple[Event, ...]) -> Story:
    story = Story()
    for event in path:
        story.happen(event)
    return story


def check(state: State, story: Story) -> None:
    """What can be seen of a state from outside."""
    node, balancer = story.node, story.world.balancer
    assert node.state == state.name
    assert node.left is not state.listed
    if not state.listed:
        assert node.group is NOWHERE
        return
    assert node.out is state.out
    assert (node in balancer.usable) is not state.out
    assert (node.ejected_at is not None) is (state.ejection != "in")
    assert node.unreachable is (state.reason == "connect")
    assert bool(node.ejected_because) is (state.ejection != "in")
    due = (node.ejected_until or 0) <= story.world.now
    assert state.ejection not in ("waiting", "due") or due is (state.ejection == "due")
    if state.out:
        # The others have room.
        willing = state.healthy and not state.leaving
        assert (node in [story.world.pick() for _ in range(8)]) is (
            state.ejection in ("due", "overdue") and willing
        )


def warmed_up(node: Node, story: Story) -> bool:
    return node in story.world.balancer._warm_up._starts


@pytest.mark.parametrize("state", paths(), ids=lambda state: "-".join(map(str, state)))
def test_every_state_is_what_it_looks_like_and_every_event_leads_where_the_table_says(state: State) -> None:
    check(state, run(paths()[state]))
    for event in events(state):
        story = run(paths()[state])
        before = story.node
        story.happen(event)
        expected = after(state, event)
        try:
            check(expected, story)
        except AssertionError as error:
            error.add_note(f"{state} and {event} should be {expected}; got there by {paths()[state]}")
            raise
        if not expected.listed:
            assert not warmed_up(story.node, story)
        elif story.node is before and state.out != expected.out:
            assert warmed_up(before, story) is not expected.out, "who is back has a slow start"


def test_the_table_is_whole() -> None:
    """Two ways to be in, four to be ejected for each of two reasons; healthy or not, leaving or not."""
    listed = [state for state in paths() if state.listed]
    # In for the first time, in again, and out: for the first time, or again.
    assert len({(s.ejection, s.reason) for s in listed}) == 1 + 4 * 2
    assert len(listed) == (2 + 4 * 2 * 2) * 4
    assert {row[0] for row in ROWS} == {outcome.value for outcome in Outcome}


def test_a_probe_that_was_picked_and_never_began_is_still_due() -> None:
    world = World(0, 1, 2)
    world.see(0, *[Outcome.CONNECT] * 3)
    world.now += 30
    assert world.pick() is world.node(0)
    assert world.node(0).state == "probing"
    assert world.pick() is world.node(0)
    world.begin(0)
    assert world.picked() == {1, 2}


def test_a_second_attempt_that_ends_does_not_let_a_second_probe_begin() -> None:
    """It went there before, or since nothing else was left; the probe is still under way."""
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    stray = world.begin(0)
    probe = world.probe(0)
    late = world.begin(0)
    for attempt, outcome in ((stray, Outcome.OURS), (late, Outcome.LEFT)):
        world.end(attempt, outcome)
        assert world.picked() == {1}
    assert world.node(0).probe is probe
    world.end(probe, Outcome.OURS)
    world.now += 10
    assert world.pick() is world.node(0)


def test_a_probe_that_fails_after_another_attempt_brought_the_node_back_changes_nothing() -> None:
    world = World(0, 1)
    world.see(0, *[Outcome.CONNECT] * 3)
    probe = world.probe(0)
    world.now += 1
    world.see(0, Outcome.SUCCESS)
    world.now += 1
    assert world.out() == set()
    world.end(probe, Outcome.CONNECT)
    assert world.out() == set()
    assert world.node(0).connect_failures == 0


@pytest.mark.parametrize("sticky", [False, True])
def test_a_probe_goes_to_no_node_that_is_full_or_was_tried(sticky: bool) -> None:
    world = World(0, 1, limit=1)
    hanging = world.begin(0)
    for _ in range(3):
        world.balancer.observe(world.begin(0), Outcome.CONNECT, world.now)
    world.now += 30
    assert world.picked() == {1}
    for attempt in list(world.node(0).attempts):
        attempt.land()
    if sticky:
        assert world.pick(0) is world.node(1)
    assert world.pick(1) is world.node(0)
    assert hanging.node is world.node(0)
