"""The dashboard and the alerts ask for what a gateway and its workers export."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ps_sglang.cli import main
from ps_sglang.gateway.state import GATEWAY
from tests.gateway.gateway_setup import Setup, running, stream_by_tokens
from tests.support import monitoring
from tests.support.standin_engine import COMPLETIONS, Plan

BODY = {"model": "a", "prompt": "x", "stream": True}


async def test_every_query_finds_its_metric_and_labels() -> None:
    """After a stream that was answered, one that failed, and the spans of a request."""
    async with running(events=True) as gateway:
        for worker in gateway.cluster.workers:
            worker.metrics = monitoring.WORKER_METRICS
        await stream_by_tokens(gateway)
        gateway.decode().plan = Plan(die_after=1)
        async with gateway.http.post(gateway.url + COMPLETIONS, json=BODY) as response:
            await response.read()
        tell_of_a_request(gateway)
        async with gateway.http.get(gateway.url + "/metrics") as response:
            exported = monitoring.samples(await response.text())
    missing = [
        f"{one.name}{sorted(one.labels)}: {query}"
        for query, shown in monitoring.queries()
        for one in monitoring.selected(query, shown)
        if not one.is_in(exported)
    ]
    assert not missing


async def test_the_table_of_metrics_has_all_that_the_gateway_exports_with_their_labels() -> None:
    async with running(events=True) as gateway:
        await stream_by_tokens(gateway)
        tell_of_a_request(gateway)
        async with gateway.http.get(gateway.url + "/metrics") as response:
            text = await response.text()
    page = Path(monitoring.__file__).parents[2] / "docs" / "operations.md"
    rows = re.findall(r"^\| `(ps_sglang_gateway_\w+)(?:{([\w,]+)})?` \|", page.read_text(), re.M)
    table = {
        name.removesuffix("_total"): set(filter(None, labels.split(","))) for name, labels in rows
    }
    exported = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("ps_sglang_gateway_") and not family.name.endswith("_created")
    ]
    assert {family.name for family in exported} == table.keys()
    for family in exported:
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == table[family.name], family.name


def tell_of_a_request(gateway: Setup) -> None:
    """What the traces of one request count."""
    metrics = gateway.app[GATEWAY].metrics.traces
    tokens = {"computed": 5, "tree": 0, "own": 0, "pulled": 5, "pulled_bytes": 500}
    metrics.concluded("a", {"queue": 0.5}, tokens, 3, 0)


@pytest.mark.parametrize("query", ["sum(x", "rate(x[])", "sum by (a) x"])
def test_what_is_no_promql_is_found(query: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        monitoring.selected(query, set())


def test_a_label_that_a_sum_loses_is_found() -> None:
    with pytest.raises(AssertionError, match="is lost in a sum"):
        monitoring.selected("sum by (reason) (x_total)", {"worker"})


@pytest.mark.parametrize(
    "query", ["unknown", 'known{worker="b"}', 'known{state=~"c|d"}', 'known{worker!="a"}']
)
def test_what_is_not_exported_is_found(query: str) -> None:
    exported = monitoring.samples('# TYPE known gauge\nknown{worker="a",state="b"} 1.0\n')
    (one,) = monitoring.selected('known{worker="a",state=~"b|c"}', {"state"})
    assert one.is_in(exported)
    (one,) = monitoring.selected(query, set())
    assert not one.is_in(exported)


def test_the_rules_are_in_prometheus_form() -> None:
    """Prometheus refuses a file with any other field."""
    content = msgspec.yaml.decode((Path(monitoring.__file__).parents[2] / RULES).read_text())
    assert content.keys() == {"groups"}
    names = [rule["alert"] for rule in monitoring.rules()]
    assert len(names) == len(set(names)) > 0
    for group in content["groups"]:
        assert group.keys() == {"name", "rules"}
    for rule in monitoring.rules():
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


RULES = "ps_sglang/monitoring/alerts.yaml"


def test_the_dashboard_hangs_together() -> None:
    content = monitoring.dashboard()
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in content["panels"]}
    assert len(corners) == len(ids), "panels lie on each other"
    variables = {one["name"] for one in content["templating"]["list"]}
    text = str(content)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= variables | {"__rate_interval", "__all"}


def test_the_command_writes_both(tmp_path: Path) -> None:
    assert main(["monitoring", str(tmp_path / "new")]) == 0
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"dashboard.json", "alerts.yaml"}
    assert (tmp_path / "new" / "alerts.yaml").read_text().count("alert:") == len(monitoring.rules())


def test_where_it_cannot_write_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["monitoring", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err
