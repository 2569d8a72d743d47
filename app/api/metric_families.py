"""Families of metrics for Prometheus, made of what was counted."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from app.service.counters import BOUNDS, Timing

Values = Mapping[Any, float]  # by the labels' values, a tuple of strings


def gauge(name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return a gauge."""
    return filled(GaugeMetricFamily(name, meaning, labels=labels), values)


def filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    """Return a family with values, by the values of its labels."""
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def histogram(name: str, meaning: str, labels: tuple[str, ...], timings: Mapping[Any, Timing]) -> Metric:
    """Return a histogram of seconds."""
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for label_values, timing in timings.items():
        bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
        counts = list(accumulate(timing.counts))
        family.add_metric(label_values, list(zip(bounds, counts, strict=True)), timing.total)
    return family
