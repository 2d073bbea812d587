"""What the dashboard and the alerts ask of Prometheus, and whether an exporter has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import msgspec
import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from promql_parser import AggregateExpr, Expr, Matcher, MatchOp, VectorSelector

# What Grafana puts in for its variables.
_VARIABLES = {"$__rate_interval": "1m", "$decoder": ".*"}
_FOLDER = files("ps_sglang.monitoring")


# As SGLang and the plugin export them, which a test on real engines checks.
WORKER_METRICS = """# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 1.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="m"} 0.0
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="m"} 0.5
# TYPE ps_sglang_transfer_bytes_total counter
ps_sglang_transfer_bytes_total{path="shm"} 4096.0
# TYPE ps_sglang_handoff_failures_total counter
ps_sglang_handoff_failures_total{reason="lost"} 0.0
"""


@dataclass
class Selected:
    """A metric that a query asks for, with what it says of its labels."""

    name: str
    matchers: list[Matcher] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)

    def is_in(self, samples: list[Sample]) -> bool:
        """Whether a sample has the name, all labels, and values that fit."""
        return any(
            one.name == self.name
            and one.labels.keys() >= self.labels
            and all(_fits(matcher, one.labels.get(matcher.name, "")) for matcher in self.matchers)
            for one in samples
        )


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_FOLDER.joinpath("dashboard.json").read_text())
    return content


def rules() -> list[dict[str, Any]]:
    content = msgspec.yaml.decode(_FOLDER.joinpath("alerts.yaml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, set[str]]]:
    """All queries, with the labels that a legend or text takes from their results."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in _VARIABLES.items():
                expression = expression.replace(variable, value)
            yield expression, set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    for rule in rules():
        texts = " ".join(rule["annotations"].values())
        yield rule["expr"], set(re.findall(r"\$labels\.(\w+)", texts))


def selected(query: str, shown: set[str]) -> list[Selected]:
    """What a query asks for; raises ValueError if it is no PromQL."""
    found: list[Selected] = []
    kept: list[set[str]] = [shown]  # by the aggregations around the part of the query

    def enter(part: Expr) -> None:
        if isinstance(part, AggregateExpr):
            by = set(part.modifier.labels) if part.modifier is not None else set()
            assert kept[-1] <= by, f"{query}: {kept[-1] - by} is lost in a sum"
            kept.append(by)
        elif isinstance(part, VectorSelector):
            assert part.name is not None
            matchers = list(part.matchers.matchers)
            labels = kept[-1] | {matcher.name for matcher in matchers}
            found.append(Selected(part.name, matchers, labels))

    def leave(part: Expr) -> None:
        if isinstance(part, AggregateExpr):
            kept.pop()

    promql_parser.walk(promql_parser.parse(query), enter, leave)
    assert found, query
    return found


def samples(exported: str) -> list[Sample]:
    return [one for family in text_string_to_metric_families(exported) for one in family.samples]


def _fits(matcher: Matcher, value: str) -> bool:
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        same = matcher.value == value
    else:
        same = re.fullmatch(matcher.value, value) is not None
    return same != (matcher.op in (MatchOp.NotEqual, MatchOp.NotRe))
