"""Whole clusters of real engines on tiny checkpoints: up, broken in every way, and gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from benchmarks.worker_keys import let_in
from ps_sglang.cli import main
from ps_sglang.errors import LaunchError
from ps_sglang.gateway_http import KEY_VARIABLE, GatewayRefused, call
from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.launch.args import parse_args
from tests.launch.conftest import WriteAdapter
from tests.support.certificates import write_certificate
from tests.support.processes import Launcher, Marked, can_listen

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


def arguments(tiny: dict[str, Path], *more: str) -> list[str]:
    models = ["--prefill", str(tiny["base"]), "--decoders", f"{tiny['a']},{tiny['b']}"]
    return [*models, "--port", "0", "--device", "cpu", *more]


def ask(url: str, model: str) -> dict[str, object]:
    body = {"model": model, "prompt": "one two three", "max_tokens": 4, "temperature": 0}
    return call(f"{url}/v1/completions", body, timeout_s=60)


def url_of(ready_line: str) -> str:
    found = re.search(r"ready (https?://\S+)", ready_line)
    assert found
    return found[1]


def status(url: str, key: str | None = None, method: str = "GET") -> int:
    headers = {} if key is None else {"Authorization": key}
    try:
        with urlopen(Request(url, headers=headers, method=method), timeout=60) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def assert_only_for_the_gateway(cluster: Cluster, marked: Marked) -> None:
    """Workers answer to the cluster's key, to what a cluster needs, and the key shows nowhere."""
    key = cluster.key.authorization
    for worker in cluster.workers:
        for path in ("/metrics", "/health_generate", "/server_info", "/v1/models", "/nowhere"):
            assert status(worker.url + path) == 401
            assert status(worker.url + path, "Bearer wrong") == 401
        assert status(worker.url + "/generate", method="POST") == 401
        assert status(worker.url + "/ready") == 200
        assert status(worker.url + "/server_info", key) == 200
        assert status(worker.url + "/pause_generation", key, "POST") == 403
        assert "401 Client Error" not in worker.log.read_text(), "it lets itself in"
    secret = key.split()[1]
    logs = [path.read_text() for path in cluster.plan.log_dir.iterdir()]
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in marked.pids()]
    assert not [text for text in (*logs, *lines) if secret in text]
    for place in cluster._processes._runtime.rglob("cluster.key"):
        assert place.stat().st_mode & 0o777 == 0o600


def test_a_cluster_serves_and_leaves_nothing(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    spec = ClusterSpec(
        str(tiny["base"]),
        (str(tiny["a"]), str(tiny["b"])),
        port=0,
        log_dir=tmp_path / "logs",
        engine_args=("--device", "cpu"),
    )
    with Cluster.start(spec) as cluster:
        assert ask(cluster.url, "a")["model"] == "a"
        assert ask(cluster.url, "b")["model"] == "b"
        assert [w.name for w in cluster.workers] == ["prefill-0", "decode-a", "decode-b"]
        assert all(w.alive and w.log.exists() for w in cluster.workers)
        assert_only_for_the_gateway(cluster, marked)
        let_in(cluster)
        for worker in cluster.workers:
            with urlopen(f"{worker.url}/metrics", timeout=60) as answer:
                metrics = answer.read().decode()
            # Each worker's registry holds its own model's series and nobody else's.
            assert set(re.findall(r'model_name="([^"]+)"', metrics)) == {worker.model}
        memory = marked.shared_memory()
        assert memory
        # Other programs are given ephemeral ports as soon as they are free; these are below.
        ports = {w.port for w in cluster.plan.workers} | {cluster.plan.workers[0].bootstrap_port}
        assert ports <= marked.listening_ports()
    assert marked.pids() == []
    assert [path for path in memory if path.exists()] == []
    assert [port for port in ports if port and not can_listen(port)] == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("one_worker", [False, True])
def test_adapters_are_served_by_one_worker(
    tiny: dict[str, Path],
    tmp_path: Path,
    write_adapter: WriteAdapter,
    marked: Marked,
    one_worker: bool,
) -> None:
    spec = ClusterSpec(
        str(tiny["base"]),
        (str(write_adapter("code")), str(write_adapter("math", 8, ("q_proj", "v_proj")))),
        port=0,
        log_dir=tmp_path / "logs",
        one_worker=one_worker,
        engine_args=("--device", "cpu"),
    )
    with Cluster.start(spec) as cluster:
        names = ["worker"] if one_worker else ["prefill-0", "decode-lora"]
        assert [worker.name for worker in cluster.workers] == names
        # These change nothing, so all say what the base says.
        answers = [ask(cluster.url, model)["choices"] for model in ("base", "code", "math")]
        assert answers[1:] == answers[:1] * 2
        let_in(cluster)
        with urlopen(f"{cluster.workers[-1].url}/server_info", timeout=60) as answer:
            adapters = json.load(answer)["ps_sglang"]["adapters"]
        assert list(adapters) == ["code@1", "math@1"]
        assert len(schedulers_of_shared_weights(marked)) == (0 if one_worker else 2)
        if not one_worker:
            tools = str(write_adapter("tools"))
            more = replace(spec, decoders=(tools,), prefill_replicas=0, join=cluster.url)
            with Cluster.start(more):
                assert ask(cluster.url, "tools")["choices"] == answers[0]
            assert ask(cluster.url, "code")["choices"] == answers[0]


def test_a_cluster_with_keys_and_a_certificate(
    tiny: dict[str, Path],
    tmp_path: Path,
    write_adapter: WriteAdapter,
    marked: Marked,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All by names without a folder, as a person in that folder gives them."""
    monkeypatch.chdir(tmp_path)
    cert, key = write_certificate(tmp_path, "server")
    main(["keys", "add", "keys.txt", "ops", "--role", "admin"])
    admin = capsys.readouterr().out.strip()
    words = ["--prefill", str(tiny["base"]), "--decoders", str(write_adapter("code"))]
    words += ["--one-worker", "--port", "0", "--device", "cpu", "--log-dir", "logs"]
    words += ["--api-keys", "keys.txt", "--tls-cert", cert.name, "--tls-key", key.name]
    with Cluster.start(parse_args(words)) as cluster:
        assert cluster.url.startswith("https://")
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with pytest.raises(GatewayRefused, match="status 401: There is no API key"):
            ask(cluster.url, "code")
        monkeypatch.setenv(KEY_VARIABLE, admin)
        assert ask(cluster.url, "code")["model"] == "code"
        assert main(["workers", "--gateway", cluster.url, "list"]) == 0
        monkeypatch.setenv(KEY_VARIABLE, "none")
        assert main(["workers", "--gateway", cluster.url, "list"]) == 1
        assert "the key is read from $PS_SGLANG_API_KEY" in capsys.readouterr().err
        # In the gateway's order: the launcher has a key, too.
        assert cluster._outlook() == "still served: base, code"
        secrets = "".join(path.read_text(errors="replace") for path in Path("logs").iterdir())
        assert admin not in secrets


def schedulers_of_shared_weights(marked: Marked) -> list[int]:
    """Processes that use weights which another has as well."""
    return [
        pid
        for pid in marked.pids()
        if "/memfd:ps_sglang-weights" in Path(f"/proc/{pid}/maps").read_text()
    ]


def test_a_flag_that_the_engine_refuses_names_the_worker(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    launcher = Launcher(
        *arguments(tiny, "--log-dir", str(tmp_path / "logs")),
        "--decode-engine-args=--json-model-override-args '[1]'",
        temporary=tmp_path / "tmp",
    )
    assert launcher.end(90) == 1
    assert re.search(r"error: decode-[ab] ended with \S+ while the cluster was", launcher.output)
    assert re.search(r"log: \S+/logs/decode-[ab].log", launcher.output)
    assert "  | AttributeError: 'list' object has no attribute 'items'" in launcher.output
    assert marked.pids() == []
    assert list(launcher.temporary.iterdir()) == []


def test_a_missed_deadline_names_who_was_late(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    spec = ClusterSpec(
        str(tiny["base"]),
        (str(tiny["a"]),),
        port=0,
        log_dir=tmp_path / "logs",
        ready_timeout_s=0.5,
        engine_args=("--device", "cpu"),
    )
    with pytest.raises(
        LaunchError, match=r"fork-server was not ready within 0\.5 s; log: .*fork-server\.log"
    ):
        Cluster.start(spec)
    assert marked.pids() == []


def test_a_worker_that_dies_is_reported_and_restarted(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    launcher = Launcher(
        *arguments(tiny, "--log-dir", str(tmp_path / "logs")), temporary=tmp_path / "tmp"
    )
    url = url_of(launcher.wait_for("ready http"))
    memory = marked.shared_memory()
    worker = next(p for p in map(psutil.Process, marked.pids()) if is_worker(p, tiny["a"]))
    family = [worker, *worker.children(recursive=True)]
    worker.kill()
    launcher.wait_for("decode-a was killed by SIGKILL; still served: b; no longer: a")
    assert psutil.wait_procs(family, 10)[1] == []
    assert ask(url, "b")["model"] == "b"
    launcher.wait_for("decode-a is back after")
    assert ask(url, "a")["model"] == "a"
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.end() == 0
    assert marked.pids() == []
    assert list(launcher.temporary.iterdir()) == []
    assert [path for path in memory if path.exists()] == []


def is_worker(process: psutil.Process, model: Path) -> bool:
    """Whether this is the process that the host started for `model`; its children share its log."""
    if process.pid != os.getsid(process.pid):
        return False
    log = os.readlink(f"/proc/{process.pid}/fd/1")
    return log.endswith(f"-{model.name}.log")


def test_a_killed_launcher_leaves_nothing(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    launcher = Launcher(*arguments(tiny), temporary=tmp_path / "tmp")
    launcher.wait_for("ready http")
    memory = marked.shared_memory()
    launcher.process.kill()
    assert marked.wait_until_gone() == []
    assert list(launcher.temporary.iterdir()) == []
    assert [path for path in memory if path.exists()] == []


def test_ctrl_c_twice_while_loading_leaves_nothing(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    launcher = Launcher(*arguments(tiny), temporary=tmp_path / "tmp")
    launcher.wait_for("fork-server ready")
    launcher.process.send_signal(signal.SIGINT)
    launcher.wait_for("stopping")
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end() == 0
    assert marked.pids() == []
    assert list(launcher.temporary.iterdir()) == []


def test_the_gateway_takes_the_port_it_is_given_and_old_logs_are_not_believed(
    tiny: dict[str, Path], tmp_path: Path, marked: Marked
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "gateway.log").write_text("ready http://127.0.0.1:1\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    spec = ClusterSpec(
        f"shared={tiny['base']}",
        (f"only={tiny['a']}",),
        port=port,
        prefill_replicas=2,
        log_dir=tmp_path / "logs",
        engine_args=("--device", "cpu"),
    )
    with Cluster.start(spec) as cluster:
        assert cluster.url == f"http://127.0.0.1:{port}"
        assert ask(cluster.url, "only")["model"] == "only"
