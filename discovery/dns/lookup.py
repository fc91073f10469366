"""One round of questions to DNS: a name's addresses, or the addresses of the targets of its SRV records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from discovery.dns.client import Absent, Answer, DnsClient, RecordType, SrvRecord
from discovery.endpoint import Endpoint, join_host_port
from discovery.source import SourceError

__all__ = ["Kept", "Lookup", "shares"]

# Seconds for the other family once one has answered: some servers drop questions about AAAA.
_GRACE = 1.0
# Seconds until a question that failed beside good answers is asked again.
_RETRY = 5.0
_QUESTIONS_AT_ONCE = 16
# Endpoints made in one go, about 10 us each: others shall have their turn in between.
_AT_ONCE = 250


class Kept:
    """The last good answers, for those times when one question fails and others do not.

    Args:
        keep: seconds for which an answer may be used after it was given.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._answers: dict[tuple[str, RecordType], tuple[tuple[str, ...], float]] = {}

    def put(self, name: str, kind: RecordType, addresses: tuple[str, ...]) -> None:
        """Remember an answer; an empty one is worth remembering too."""
        now = asyncio.get_running_loop().time()
        self._answers = {key: known for key, known in self._answers.items() if known[1] > now}
        self._answers[name, kind] = addresses, now + self._keep

    def get(self, name: str, kind: RecordType) -> tuple[str, ...]:
        """The addresses of the last answer, nothing if that is too long ago."""
        addresses, until = self._answers.get((name, kind), ((), 0.0))
        return addresses if asyncio.get_running_loop().time() < until else ()


class Lookup:
    """One round of questions, and what came of it.

    Attributes:
        endpoints: what was found.
        skipped: what could not be resolved or used beside that, and why.
        ttl: seconds, the smallest of all answers.

    Args:
        client: asks.
        types: the types of addresses wanted.
        kept: the memory of the rounds before.
    """

    def __init__(self, client: DnsClient, types: Sequence[RecordType], kept: Kept) -> None:
        self.endpoints: list[Endpoint] = []
        self.skipped: dict[str, str] = {}
        self.ttl = float("inf")
        self._client = client
        self._types = types
        self._kept = kept
        self._few = asyncio.Semaphore(_QUESTIONS_AT_ONCE)

    async def hosts(self, name: str, port: int) -> None:
        """Find the addresses of a name.

        Raises:
            Absent: there is no such name, or it has no addresses.
            SourceError: no server answers usefully.
        """
        shown = name.removesuffix(".")
        await self._use(shown, port, await self._addresses(name, self._types), {"name": shown})
        self._expect_some(name)

    async def services(self, name: str) -> None:
        """Find the targets of SRV records, of all priorities.

        Raises:
            Absent: there is no such name, it has no SRV records, or none of their targets exists.
            SourceError: no server answers usefully.
        """
        answer = await self._client.ask(name, "SRV")
        self.ttl = min(self.ttl, answer.ttl)
        # The target "." says that there is no such service (RFC 2782).
        records = [record for record in answer.records if record.target]
        if not records:
            return
        targets = sorted({record.target for record in records})
        results = await asyncio.gather(*(self._target(target, answer) for target in targets))
        found = dict(zip(targets, results, strict=True))
        known = {target: self._or_instead(target, result) for target, result in found.items()}
        for priority in sorted({record.priority for record in records}):
            group = [record for record in records if record.priority == priority]
            failures = [failure for record in group if isinstance(failure := found[record.target], SourceError)]
            transient = [failure for failure in failures if not isinstance(failure, Absent)]
            if transient and len(failures) == len(group) and not self.endpoints:
                # A glitch of a resolver is no reason to go over to the servers of another priority.
                raise transient[0]
            await self._use_group(group, known)
        if all(isinstance(result, Absent) for result in results):
            raise Absent(f"DNS: no target in the SRV records of {name} exists")
        self._expect_some(name)

    async def _use_group(self, group: Sequence[SrvRecord], known: Mapping[str, Sequence[str]]) -> None:
        """Use the records of one priority."""
        # An address that stands at several priorities is one server, and the first one counts.
        preferred = {endpoint.address for endpoint in self.endpoints}
        for record, share in zip(group, shares(record.weight for record in group), strict=True):
            addresses = known[record.target]
            metadata = {"name": record.target, "priority": str(record.priority)}
            more = {"weight": share / max(len(addresses), 1), "priority": record.priority}
            fresh = [host for host in addresses if join_host_port(host, record.port) not in preferred]
            await self._use(record.target, record.port, fresh, metadata, **more)

    def _or_instead(self, target: str, found: list[str] | SourceError) -> list[str]:
        return self._instead(target, found) if isinstance(found, SourceError) else found

    def _instead(self, target: str, error: SourceError) -> list[str]:
        """What is used for a target that could not be resolved, while others could."""
        self._skip(target, str(error))
        if isinstance(error, Absent):
            return []
        return [address for kind in self._types for address in self._kept.get(f"{target}.", kind)]

    async def _target(self, target: str, answer: Answer) -> list[str] | SourceError:
        # A type that the answer brings for one target but not for another may have been left out to make it
        # fit; one that it brings for none is taken for a type that these servers do not use.
        brought = [kind for kind in self._types if any(kind == each for _, each in answer.additional)]
        given = {kind: answer.additional[target, kind] for kind in brought if (target, kind) in answer.additional}
        types = brought if given else self._types
        try:
            async with self._few:
                return await self._addresses(f"{target}.", types, given)
        except SourceError as error:
            return error

    async def _addresses(
        self, name: str, types: Sequence[RecordType], given: Mapping[RecordType, Answer] | None = None
    ) -> list[str]:
        """The addresses of the types; some of them may be absent or fail, but not all."""
        given = given or {}
        asked = await self._ask(name, [kind for kind in types if kind not in given])
        found: list[str] = []
        failed: dict[RecordType, SourceError] = {}
        absent: SourceError | None = None
        for kind in types:
            result = given.get(kind) or asked[kind]
            if isinstance(result, Answer):
                self.ttl = min(self.ttl, result.ttl)
                self._kept.put(name, kind, result.records)
                found += result.records
            elif isinstance(result, Absent):
                self._kept.put(name, kind, ())
                absent = absent or result
            else:
                failed[kind] = result
        if not found:
            raise next(iter(failed.values()), absent or Absent(f"DNS: {name} has no addresses"))
        for kind, error in failed.items():
            self._skip(f"{kind} of {name.removesuffix('.')}", str(error))
            found += self._kept.get(name, kind)
        return found

    async def _ask(self, name: str, types: Sequence[RecordType]) -> dict[RecordType, Answer | SourceError]:
        """Ask for several types at once; a good answer to one leaves little time for the others."""
        tasks = {kind: asyncio.create_task(self._client.ask(name, kind)) for kind in types}
        try:
            pending = set(tasks.values())
            while pending and not any(task.done() and not task.exception() for task in tasks.values()):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=_GRACE)
            return {kind: _result(task, f"DNS: {kind} of {name}") for kind, task in tasks.items()}
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _use(
        self, name: str, port: int, addresses: Iterable[str], metadata: Mapping[str, str], **more: Any
    ) -> None:
        for host in addresses:
            try:
                endpoint = Endpoint(host=host, port=port, metadata=metadata, id=name, **more)
            except ValueError as error:
                self._skip(f"{name} at {host} port {port}", str(error))
            else:
                self.endpoints.append(endpoint)
                if len(self.endpoints) % _AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _skip(self, what: str, why: str) -> None:
        self.skipped[what] = why
        self.ttl = min(self.ttl, _RETRY)

    def _expect_some(self, name: str) -> None:
        if not self.endpoints:
            raise Absent(f"DNS: nothing at {name} can be used: {next(iter(self.skipped.values()))}")


def shares(weights: Iterable[int]) -> list[float]:
    """Weights of SRV as weights of endpoints; `Dns` says how."""
    given = list(weights)
    total, zeros = sum(given), given.count(0)
    if not total:
        return [1.0] * len(given)
    return [float(weight) if weight else min(1.0, total / 100) / zeros for weight in given]


def _result(task: asyncio.Task[Answer], what: str) -> Answer | SourceError:
    if not task.done():
        return SourceError(f"{what}: no answer within {_GRACE:g} s of the other family's")
    error = task.exception()
    return error if isinstance(error, SourceError) else task.result()
