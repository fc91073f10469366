"""What a source knows of the keys under its prefix, and how a probe of etcd shows that events were lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from discovery.etcd.wire import unb64
from discovery.records.records import Records
from discovery.source import SourceError

__all__ = ["Probe", "View", "header", "text"]

_FULL_EVERY = 60  # probes; after so many, in about 4 minutes, all keys are compared once more
_MOST_CHANGED = 2000  # keys in the answer to a probe, parsed in about 3 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What etcd says about the prefix at one revision.

    Attributes:
        cluster: id of the cluster.
        revision: the revision.
        count: how many keys there are.
        changed: those that were written after the revision asked for, with their `mod_revision`, oldest first.
        upto: the revision up to which `changed` is complete.
    """

    cluster: str
    revision: int
    count: int
    changed: Mapping[bytes, int]
    upto: int

    @staticmethod
    def request(since: int) -> dict[str, Any]:
        """What to ask for: a range request without its range, for the keys written after a revision."""
        return {
            "keys_only": True,
            "min_mod_revision": str(since + 1),
            "sort_target": "MOD",
            "sort_order": "ASCEND",
            "limit": str(_MOST_CHANGED),
        }

    @classmethod
    def read(cls, url: str, answer: Mapping[str, Any]) -> Probe:
        """From the answer; `SourceError` if it is not etcd's."""
        cluster, revision = header(url, answer)
        changed = {unb64(pair["key"]): int(pair["mod_revision"]) for pair in answer.get("kvs", ())}
        upto = max(changed.values()) if answer.get("more") else revision
        count = int(answer.get("count", 0))
        return cls(cluster=cluster, revision=revision, count=count, changed=changed, upto=upto)


class View:
    """What we know: the keys with their `mod_revision`s as of one revision of one cluster.

    Args:
        url: of the member that showed it, for messages.
        records: where the values go.
        cluster: id of the cluster.
        revision: the revision that was listed.
    """

    def __init__(self, url: str, records: Records[bytes], cluster: str, revision: int) -> None:
        self.keys: dict[bytes, int] = {}
        self.revision = revision
        # Up to here a list or a probe showed that nothing is missing.
        self.confirmed = revision
        self._matches_left = _FULL_EVERY
        self._url = url
        self._records = records
        self.cluster = cluster
        self._doubt: tuple[Probe, int] | None = None

    def is_behind(self, other: View | None) -> bool:
        """Whether this is an earlier time than that of an earlier view, or another cluster."""
        if other is None:
            return False
        return self.cluster != other.cluster or self.revision < max(other.revision, other.confirmed)

    def events(self, answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The events in one answer of the watch, to be applied one by one.

        Raises:
            SourceError: it says that this is the end, or comes from another cluster.
        """
        result = answer.get("result", {})
        if result.get("canceled"):
            # The gateway leaves the connection open after this, silent for ever.
            why = result.get("cancel_reason") or "no reason given"
            if "compact_revision" in result:
                why = f"what changed up to revision {result['compact_revision']} was compacted away"
            raise SourceError(f"etcd at {self._url} canceled the watch: {why}")
        self._expect_cluster(result.get("header", {}).get("cluster_id", self.cluster))
        events: Sequence[Mapping[str, Any]] = result.get("events", ())
        return events

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply one event; `SourceError` if it proves that others were lost."""
        pair = event["kv"]
        key, revision = unb64(pair["key"]), int(pair["mod_revision"])
        self._settle(revision)
        if event.get("type") == "DELETE":
            self.keys.pop(key, None)
            self._records.delete(text(key))
        else:
            self.put(pair)
        self.revision = revision

    def put(self, pair: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Take over a key with its value, from a list or an event; returns both."""
        key, value = unb64(pair["key"]), unb64(pair.get("value", ""))
        self.keys[key] = int(pair["mod_revision"])
        self._records.put(text(key), value)
        return key, value

    def agrees(self, probe: Probe) -> bool:
        """Whether the probe shows what we have; if not, events may be on their way, or lost.

        Raises:
            SourceError: events were lost, or this is not the cluster that it was.
        """
        self._expect_cluster(probe.cluster)
        if probe.revision < self.revision:
            raise SourceError(
                f"etcd at {self._url} went back from revision {self.revision} to {probe.revision}: a backup?"
            )
        before, self._doubt = self._doubt, None
        if self._matches(probe):
            return True
        if before is not None and before[1] == self.revision:
            raise self._lost(probe)
        self._doubt = probe, self.revision
        return False

    def _settle(self, revision: int) -> None:
        """Decide an open doubt before the first event beyond its probe: then our view is as old as the probe."""
        if self._doubt is not None and revision > self._doubt[0].revision:
            (probe, _), self._doubt = self._doubt, None
            if not self._matches(probe):
                raise self._lost(probe)

    def _matches(self, probe: Probe) -> bool:
        """Whether we have what the probe shows; our view is as old as the probe, or older.

        All keys written since the last match are compared, so that no lost write is missed. Then ours lack none,
        and equal counts say that there is none too many: no lost delete either.
        """
        if len(self.keys) != probe.count or any(self.keys.get(key) != at for key, at in probe.changed.items()):
            return False
        self.confirmed = probe.upto
        self._matches_left -= 1
        if not self._matches_left:
            # A backup may have been restored in silence, and written to until it was where we are.
            self.confirmed, self._matches_left = 0, _FULL_EVERY
        return True

    def _lost(self, probe: Probe) -> SourceError:
        return SourceError(
            f"events of etcd at {self._url} were lost: {len(self.keys)} keys known at revision {self.revision}, "
            f"{probe.count} were there at revision {probe.revision}"
        )

    def _expect_cluster(self, cluster: object) -> None:
        if cluster != self.cluster:
            raise SourceError(f"at {self._url} there is another etcd cluster now: {cluster}, not {self.cluster}")


def header(url: str, answer: Mapping[str, Any]) -> tuple[str, int]:
    """Cluster id and revision of an answer; `SourceError` if it is not etcd's."""
    found = answer.get("header", {})
    try:
        return str(found["cluster_id"]), int(found["revision"])
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"at {url} there is no etcd: its answer has no header") from None


def text(key: bytes) -> str:
    """A key as the records have it: any bytes, readable."""
    return key.decode("utf-8", "backslashreplace")
