"""What Prometheus is told. Labels are keys' ids and experts' names: no caller's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from moiety.serve.jobs import Load
from moiety.serve.usage import Bill

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Gauges(Collector):
    def __init__(self, load: Callable[[], Load | None]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        yield GaugeMetricFamily("moiety_ready", "1 when it answers", value=load is not None)
        if load is None:
            return
        told = {
            "running": "requests' choices that are computed now",
            "waiting": "choices that wait for a place",
            "capacity": "choices that are computed at once",
            "cached_tokens": "tokens whose keys and values are kept",
            "generated_tokens": "tokens generated since the start",
        }
        for name, words in told.items():
            yield GaugeMetricFamily(f"moiety_{name}", words, value=getattr(load, name))


class Metrics:
    """Counters of one server."""

    def __init__(self, load: Callable[[], Load | None]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(load))
        self._answers = Counter(
            "moiety_answers", "answers by status", ["key", "status"], registry=self._registry
        )
        labels = ["key", "expert"]
        self._counters = [
            Counter(f"moiety_{name}", words, labels, registry=self._registry)
            for name, words in (
                ("requests", "requests that could use the expert"),
                ("prompt_tokens", "tokens of their prompts"),
                ("completion_tokens", "tokens that were generated"),
                ("routing_share", "the expert's routing weight, added up over those"),
            )
        ]

    def answered(self, key: str, status: int) -> None:
        """One request got its status."""
        self._answers.labels(key, str(status)).inc()

    def used(self, bill: Bill) -> None:
        """One request ended, or goes on."""
        for expert, weight in bill.weights.items():
            amounts = (bill.requests, bill.prompt_tokens, bill.completion_tokens, max(0.0, weight))
            for counter, amount in zip(self._counters, amounts, strict=True):
                counter.labels(bill.key, expert).inc(amount)

    def text(self) -> bytes:
        """What is scraped."""
        return generate_latest(self._registry)
