"""Metrics and health over HTTP, on a UNIX socket or a port of this machine: for Prometheus, and for whoever watches."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kwsd.address import Address, url
from kwsd.door import bind, bind_tcp
from kwsd.errors import UNAVAILABLE, ConfigError
from kwsd.metrics import Histogram, Metric

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import Metric as Family

PREFIX = "kwsd_"
SHUTDOWN_S = 0.3  # how long `close` waits for answers that are on their way

Metrics = Callable[[], Iterable[Metric | Histogram]]
Problems = Callable[[], Sequence[str]]  # none: all is well


class Endpoint:
    """Serves `/metrics` and `/healthz`. Open it with `await Endpoint.open(…)`."""

    def __init__(self, runner: "web.AppRunner") -> None:
        self._runner = runner
        self._paths: list[tuple[Path, int]] = []

    @classmethod
    async def open(
        cls, addresses: Sequence[Address], group: str | None, metrics: Metrics, problems: Problems
    ) -> "Endpoint":
        """Raises ConfigError or KwsdError if an address cannot be had, or the libraries for it are not installed."""
        try:
            from aiohttp import web
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
        except ImportError as error:
            raise ConfigError(
                f"http.on: {error.name} is not installed; pip install 'kwsd[http]'", exit_code=UNAVAILABLE
            ) from None
        registry = CollectorRegistry()
        registry.register(_Collector(metrics))

        async def show_metrics(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        async def show_health(_: web.Request) -> web.Response:
            wrong = list(problems())
            answer = json.dumps({"ok": not wrong, "problems": wrong}) + "\n"
            return web.Response(text=answer, status=503 if wrong else 200, content_type="application/json")

        app = web.Application()
        app.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", show_health)])
        endpoint = cls(web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S))
        await endpoint._runner.setup()
        try:
            for address in addresses:
                await web.SockSite(endpoint._runner, endpoint._bind(address, group)).start()
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    def _bind(self, address: Address, group: str | None) -> socket.socket:
        if address.path is None:
            return bind_tcp(address.host, address.port, f"http.on: {address.text}")
        listener = bind(address.path, "http.on", group)
        self._paths.append((address.path, address.path.stat().st_ino))
        return listener

    @property
    def addresses(self) -> list[str]:
        """Where it really is served, with the ports the system chose."""
        return [f"unix:{name}" if isinstance(name, str) else url(name[0], name[1]) for name in self._runner.addresses]

    async def close(self) -> None:
        """Hang up, and remove socket files that are still ours."""
        await self._runner.cleanup()
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


class _Collector:
    """What prometheus_client asks at every scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> "Iterator[Family]":
        """Nothing: it would ask for all metrics before there are any."""
        return iter(())

    def collect(self) -> "Iterator[Family]":
        """Every metric in its own words."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in self._metrics():
            if isinstance(metric, Histogram):
                buckets = [("+Inf" if most == float("inf") else str(most), count) for most, count in metric.buckets]
                yield HistogramMetricFamily(PREFIX + metric.name, metric.about, buckets=buckets, sum_value=metric.total)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(PREFIX + metric.name, metric.about, labels=metric.labels)
            for labels, value in metric.values.items():
                family.add_metric(labels, value)
            yield family
