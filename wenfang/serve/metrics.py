"""Figures for Prometheus. Labels are routes, statuses and models, never anything that a client made up."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wenfang.serve.models import Served

TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._requests = Counter("wenfang_requests", "Answers by route and status.", ["path", "status"], registry=r)
        self._errors = Counter("wenfang_errors", "Answers other than 2xx.", ["path", "status"], registry=r)
        self._seconds = Histogram(
            "wenfang_request_seconds", "From request to the last byte.", ["path"], buckets=FIRST_S, registry=r
        )
        self._first = Histogram(
            "wenfang_time_to_first_token_seconds", "Queue and prompt.", ["model"], buckets=FIRST_S, registry=r
        )
        self._between = Histogram(
            "wenfang_inter_token_seconds", "Between two pieces.", ["model"], buckets=TOKEN_S, registry=r
        )
        self._prompt = Counter("wenfang_prompt_tokens", "Tokens read.", ["model"], registry=r)
        self._written = Counter("wenfang_generation_tokens", "Tokens written.", ["model"], registry=r)

    def watch(self, loaded: Callable[[], Sequence[Served]]) -> None:
        """Report the queues and caches of these models from now on."""
        self.registry.register(_Occupancies(loaded))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(path, status).inc()
        if status >= 400:
            self._errors.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A choice has its first token."""
        self._first.labels(model).observe(seconds)
        self._written.labels(model).inc()

    def next_token(self, model: str, seconds: float) -> None:
        """A choice has another token."""
        self._between.labels(model).observe(seconds)
        self._written.labels(model).inc()

    def read(self, model: str, tokens: int) -> None:
        """A prompt was handed to the engine."""
        self._prompt.labels(model).inc(tokens)

    def text(self) -> bytes:
        """In Prometheus' exposition format."""
        return generate_latest(self.registry)


class _Occupancies(Collector):
    """Looks at the engines whenever it is asked."""

    def __init__(self, loaded: Callable[[], Sequence[Served]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        """One gauge per figure, one sample per model."""
        running = GaugeMetricFamily("wenfang_running", "Requests in the batch.", labels=["model"])
        waiting = GaugeMetricFamily("wenfang_waiting", "Requests before the batch.", labels=["model"])
        cache = GaugeMetricFamily("wenfang_cache_used_ratio", "Held share of the cache's blocks.", labels=["model"])
        for served in self._loaded():
            now = served.engine.occupancy
            running.add_metric([served.name], now.running)
            waiting.add_metric([served.name], now.waiting)
            if now.blocks:  # None where the model runs elsewhere.
                cache.add_metric([served.name], now.held_blocks / now.blocks)
        return running, waiting, cache
