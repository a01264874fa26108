"""Metrics in Prometheus' format. They need ``prometheus-client`` (the extra ``metrics``).

Only how long a call took is noted in a metric as it happens. All other figures are plain integers of this module, of
the managers and of the mesh, carried over on every request for ``/metrics``, every few seconds, and at the end of the
gateway. With several worker processes (``PROMETHEUS_MULTIPROC_DIR`` set, see prometheus-client), any of them answers
for all.

Label values are names chosen by the operator or a service, never text sent by a client. The label ``transport`` is the
kind of connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..authentication.key_sets import KeySet
from ..authorization.policy_file import PolicyFile
from ..connection_kind import ConnectionKind

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

__all__ = ["Metrics"]

#: Seconds between two collections without a request for the metrics.
COLLECT_INTERVAL: Final = 5.0
#: Seconds between two measurements of the event loop's lag.
LAG_INTERVAL: Final = 0.5
_DURATIONS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LAGS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

#: Gauges for each kind of connection: name, text and value.
_GAUGES: Final[Sequence[tuple[str, str, Callable[[ConnectionKind], float]]]] = (
    ("connections", "Registered connections", lambda each: len(each.handler_manager)),
    ("in_flight", "Calls in flight", lambda each: each.service_mesh_manager.in_flight),
    (
        "orphaned_calls",
        "Calls that services may be working on for clients that wait no longer",
        lambda each: len(each.service_mesh_manager.calls.table.orphans),
    ),
    (
        "waiting_calls",
        "Calls that wait for a place among those of their user at their service",
        lambda each: each.service_mesh_manager.calls.places.waiting,
    ),
    ("mesh_connected", "Processes with a connection to the mesh", lambda each: each.service_mesh_manager.connected),
    (
        "mesh_blocked",
        "Processes whose publishers the broker blocks",
        lambda each: getattr(each.service_mesh_manager.mesh, "blocked", False),
    ),
    (
        "open_circuits",
        "Services that do not answer",
        lambda each: len(each.service_mesh_manager.open_circuits),
    ),
    ("outbox_bytes", "Bytes in the outboxes of clients", lambda each: each.outbox_size),
    ("sessions_resumable", "Resumable sessions", lambda each: len(each.service_mesh_manager.resumption.store)),
    (
        "sessions_parked",
        "Resumable sessions without a connection",
        lambda each: each.service_mesh_manager.resumption.store.parked,
    ),
    (
        "sessions_parked_bytes",
        "Bytes kept for sessions without a connection",
        lambda each: each.service_mesh_manager.resumption.store.parked_size,
    ),
)
#: Counters that are carried over: name, text and labels.
_COUNTERS: Final[Sequence[tuple[str, str, tuple[str, ...]]]] = (
    ("requests", "Calls that ended, by service and code", ("service", "code", "transport")),
    ("handshakes_refused", "Handshakes refused, by reason", ("reason", "transport")),
    ("connections_closed", "Connections closed by the gateway, by code", ("code", "transport")),
    ("dropped", "Replies and events dropped, by reason", ("reason", "transport")),
    ("mesh_reconnects", "Reconnections to the broker", ("transport",)),
    ("events", "Events received from the mesh", ("transport",)),
    ("kept_events", "Live events of topics with history, for at least one client", ("transport",)),
    ("replayed_events", "Events of the past that were sent to clients", ("transport",)),
    ("subscriptions_recovered", "Topics that began in the past, by success", ("recovered", "transport")),
    ("rate_limited", "Frames over a rate limit, by the limit's scope", ("scope", "transport")),
    ("subscriptions_ended", "Subscriptions ended by the policy", ("transport",)),
    ("sessions_resumed", "Answers to resume: resumed, or the reason why not", ("reason", "transport")),
    ("sessions_handed_over", "Sessions that left for another process, or came from one", ("direction", "transport")),
    ("policy_reloads", "Reloads of the policy file, by result", ("result",)),
    ("published", "Messages published to the broker", ("transport",)),
    ("admin_refused", "Refused requests to the admin API, by reason", ("reason",)),
)
_KEY_FAILURES: Final = ("key_fetch_failures", "Failed attempts to fetch the keys")


class Metrics:
    """The metrics of one gateway."""

    def __init__(
        self,
        kinds: Collection[ConnectionKind],
        policy_file: PolicyFile | None = None,
        key_sets: Mapping[str, KeySet] = MappingProxyType({}),
    ) -> None:
        import prometheus_client as prometheus

        self._kinds = kinds
        self._policy_file = policy_file
        #: By the labels of their series: the issuer, if there are several.
        self._key_sets = {(issuer,) if len(key_sets) > 1 else (): each for issuer, each in key_sets.items()}
        by_issuer = ("issuer",) if len(key_sets) > 1 else ()
        self._render = prometheus.exposition.generate_latest
        self._content_type = prometheus.CONTENT_TYPE_LATEST
        self._registry = registry = prometheus.CollectorRegistry()
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ

        def gauge(name: str, text: str, mode: Any = "livesum", labels: tuple[str, ...] = ()) -> Any:
            return prometheus.Gauge(f"nuropb_gateway_{name}", text, labels, registry=registry, multiprocess_mode=mode)

        self._duration = prometheus.Histogram(
            "nuropb_gateway_request_duration_seconds",
            "From a call's frame to its answer, by service",
            ("service", "transport"),
            registry=registry,
            buckets=_DURATIONS,
        )
        self._lag = prometheus.Histogram(
            "nuropb_gateway_loop_lag_seconds", "Lag of the event loop", registry=registry, buckets=_LAGS
        )
        self._round_trip = prometheus.Histogram(
            "nuropb_gateway_mesh_round_trip_seconds",
            "From publishing a message to the process itself to its delivery",
            registry=registry,
            buckets=_DURATIONS,
        )
        # Of several processes, the latest start: it changes with the start of each worker.
        started = gauge("start_time_seconds", "Time at which the newest process started, in Unix time", "livemax")
        started.set(time.time())
        # All kinds share the places of their process.
        places = max((each.handler_manager.admission.max_connections for each in kinds), default=0)
        gauge("processes", "Processes that answer together").set(1)
        gauge("connections_limit", "Connections that the processes accept (MAX_CONNECTIONS of each)").set(places)
        self._gauges: list[tuple[Any, Callable[[], float]]] = [
            (gauge("policy_broken", "Processes in which the policy file is not in force"), self._policy_broken),
        ]
        for name, text, value in _GAUGES:
            by_transport = gauge(name, text, labels=("transport",))
            self._gauges += [(by_transport.labels(each.name), functools.partial(value, each)) for each in kinds]
        if key_sets:
            # Of several processes, report the one that is worst off.
            keys = gauge("keys", "Keys for checking tokens", "livemin", by_issuer)
            age = gauge("keys_age_seconds", "Seconds since the keys were fetched", "livemax", by_issuer)
            for labels, each in self._key_sets.items():
                self._gauges += [
                    (keys.labels(*labels) if labels else keys, functools.partial(getattr, each, "size")),
                    (age.labels(*labels) if labels else age, functools.partial(getattr, each, "age")),
                ]
        self._counters: dict[str, Counter] = {
            name: prometheus.Counter(f"nuropb_gateway_{name}", text, labels, registry=registry)
            for name, text, labels in (*_COUNTERS, *([(*_KEY_FAILURES, by_issuer)] if key_sets else []))
        }
        #: Refused requests to the admin API, by reason.
        self.admin_refused: Mapping[str, int] = MappingProxyType({})
        self._carried: dict[tuple[str, tuple[str, ...]], int] = {}
        self._ended: dict[tuple[str, str, str], _Ended] = {}
        for kind in kinds:
            kind.service_mesh_manager.calls.on_call_ended = functools.partial(self._on_call_ended, kind.name)

    @classmethod
    def create(
        cls,
        kinds: Collection[ConnectionKind],
        policy_file: PolicyFile | None = None,
        key_sets: Mapping[str, KeySet] = MappingProxyType({}),
    ) -> Metrics | None:
        """Return the metrics, or None if prometheus-client is not installed."""
        try:
            return cls(kinds, policy_file, key_sets)
        except ModuleNotFoundError:
            return None

    def collect(self) -> None:
        """Carry over the figures of the managers, the mesh, the policy file and the keys."""
        for gauge, value in self._gauges:
            gauge.set(value())
        for kind in self._kinds:
            self._collect_kind(kind)
        if self._policy_file is not None:
            for result, count in self._policy_file.reloads.items():
                self._carry("policy_reloads", count, result)
        for reason, count in self.admin_refused.items():
            self._carry("admin_refused", count, reason)
        for (transport, service, code), ended in self._ended.items():
            self._carry("requests", ended.count, service, code, transport)
        for labels, key_set in self._key_sets.items():
            self._carry("key_fetch_failures", key_set.failures, *labels)

    def _collect_kind(self, kind: ConnectionKind) -> None:
        handlers, manager, name = kind.handler_manager, kind.service_mesh_manager, kind.name
        for reason, count in handlers.statistics.refused.items():
            self._carry("handshakes_refused", count, reason, name)
        for code, count in handlers.statistics.closed.items():
            self._carry("connections_closed", count, str(code), name)
        for scope, count in handlers.statistics.limited.items():
            self._carry("rate_limited", count, scope, name)
        statistics = manager.statistics
        mesh: dict[str, Any] = {}
        if hasattr(manager.mesh, "statistics"):
            mesh = msgspec.structs.asdict(manager.mesh.statistics)
        for reason, count in (
            ("late_reply", statistics.late_replies),
            ("double_reply", statistics.double_replies),
            ("unknown_reply", statistics.unknown_replies),
            ("abandoned_call", statistics.abandoned),
            ("oversized_event", statistics.oversized_events),
            ("reserved_event", statistics.reserved_events),
            ("controller_event", statistics.dropped_controller_events),
            ("slow_client_event", handlers.statistics.lost_events),
            ("bad_reply", mesh.get("dropped_replies", 0)),
            ("bad_event", mesh.get("dropped_events", 0)),
            ("repeated_event", mesh.get("repeated_events", 0)),
            ("expired_unsent", mesh.get("expired_unsent", 0)),
        ):
            self._carry("dropped", count, reason, name)
        for reason, count in manager.resumption.answers.items():
            self._carry("sessions_resumed", count, reason, name)
        self._carry("sessions_handed_over", manager.resumption.departures.count, "out", name)
        self._carry("sessions_handed_over", manager.resumption.arrivals.count, "in", name)
        self._carry("events", statistics.events, name)
        self._carry("kept_events", statistics.kept_events, name)
        self._carry("replayed_events", statistics.replayed_events, name)
        recovered = statistics.catch_ups - statistics.failed_catch_ups
        self._carry("subscriptions_recovered", recovered, "yes", name)
        self._carry("subscriptions_recovered", statistics.failed_catch_ups, "no", name)
        self._carry("subscriptions_ended", statistics.denied_subscriptions, name)
        self._carry("mesh_reconnects", mesh.get("reconnects", 0), name)
        self._carry("published", mesh.get("published", 0), name)
        round_trips = getattr(manager.mesh, "round_trips", None)
        while round_trips:
            self._round_trip.observe(round_trips.popleft())

    def render(self) -> tuple[bytes, str]:
        """Return the metrics of all worker processes as text, and the content type of that text."""
        registry: CollectorRegistry = self._registry
        if self._multiprocess:
            from prometheus_client import CollectorRegistry as Registry
            from prometheus_client.multiprocess import MultiProcessCollector

            _forget_dead_processes()
            registry = Registry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return self._render(registry), self._content_type

    async def run(self) -> None:
        """Collect regularly and measure the event loop's lag, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + COLLECT_INTERVAL
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_INTERVAL)
            now = loop.time()
            self._lag.observe(max(now - before - LAG_INTERVAL, 0.0))
            if now >= due:
                due = now + COLLECT_INTERVAL
                self.collect()

    def _on_call_ended(self, transport: str, service: str, code: str, seconds: float) -> None:
        # As many as there are series of calls. The library takes a lock and makes strings to find one by its labels.
        ended = self._ended.get((transport, service, code))
        if ended is None:
            ended = self._ended[transport, service, code] = _Ended(self._duration.labels(service, transport).observe)
        ended.count += 1
        ended.observe(seconds)

    def _carry(self, name: str, count: int, *labels: str) -> None:
        """Bring a counter up to ``count``. A count of 0 makes a series, too: growth is told by a reading before it."""
        key = (name, labels)
        new = count - self._carried.get(key, 0)
        if new > 0 or key not in self._carried:
            self._carried[key] = count
            counter = self._counters[name]
            (counter.labels(*labels) if labels else counter).inc(new)

    def _policy_broken(self) -> float:
        return 0.0 if self._policy_file is None or self._policy_file.problem is None else 1.0


class _Ended:
    """The calls of one series that have ended."""

    __slots__ = ("count", "observe")

    def __init__(self, observe: Callable[[float], None]) -> None:
        self.count = 0
        #: Notes how long a call took, in seconds.
        self.observe = observe


def _forget_dead_processes() -> None:
    """Remove the gauges of dead worker processes. Otherwise they would stay in the sums for ever."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not _is_running(pid):
            with contextlib.suppress(FileNotFoundError):  # another process removes it at the same time
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 is CTRL_C_EVENT
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
