"""`Maglev`: the same key to the same node, by a table."""

from __future__ import annotations

import random
from math import isqrt

from lbclient.policies.hashing import Hashing
from lbclient.policies.keys import Key
from lbclient.policies.table import Table

__all__ = ["Maglev"]


class Maglev(Hashing):
    """The same key to the same node, at all clients, with shares as even as can be (NSDI 2016, section 3.4).

    Of nodes with the same weight none has two slots more than another. A node that comes or goes moves its own
    keys, and a few others besides: half a percent of all with a hundred nodes. A new table is made in pieces, by
    the next fifty picks or so, which still go by the old one; nodes that left are passed over at once.
    The keys of a node that must not be picked are hashed again. So they go to all others by weight; what is in
    the next slots depends on how the table was filled.

    Args:
        key: takes the key out of a request: `header(name)`, `cookie(name)`, `path_part(index)` or a function of
            aiohttp's `ClientRequest`. It is not asked about a request that was given its own key,
            `get(..., lb_key="user-42")`. A request in which it finds none goes to a random node.
        bounded_load: a node gets at most so many times its fair share of the attempts under way, rounded up, and
            the rest of its keys' requests go on to other nodes; above 1, usually 1.25 to 2. None for no bound.
        table_size: the number of slots, a prime. The paper wants a hundred for each node; what is above
            it makes a change move fewer keys, and building a table slower (Maglev: 65537).
        rng: the source of randomness for requests without a key.

    Raises:
        ValueError: for `bounded_load` out of range or a `table_size` that is no prime; and at a request without a
            key if there is no `key` either.
    """

    def __init__(
        self,
        key: Key | None = None,
        *,
        bounded_load: float | None = None,
        table_size: int = 65537,
        rng: random.Random | None = None,
    ) -> None:
        if isinstance(table_size, bool) or not isinstance(table_size, int) or not _is_prime(table_size):
            raise ValueError(f"table_size must be a prime number, such as 65537 or 655373, not {table_size!r}")
        super().__init__(Table(table_size), key, bounded_load, rng)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
