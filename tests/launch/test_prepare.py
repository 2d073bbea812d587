"""Everything that is refused before a process is started."""

from __future__ import annotations

import shutil
import socket
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from ps_sglang.contract import read_manifest, write_manifest
from ps_sglang.errors import ContractError, MissingPackageError, UsageError
from ps_sglang.gateway.config import ChatFlags
from ps_sglang.launch import prepare as prepare_module
from ps_sglang.launch.__main__ import main
from ps_sglang.launch.command_lines import check_flags
from ps_sglang.launch.devices import runs_on_cpu
from ps_sglang.launch.environment import has_accelerator
from ps_sglang.launch.flags import value_of
from ps_sglang.launch.gateway_config import gateway_config
from ps_sglang.launch.ports import free_ports, is_free
from ps_sglang.launch.prepare import Plan, prepare
from ps_sglang.launch.spec import ClusterSpec, Role


@pytest.fixture
def spec(tiny: dict[str, Path], tmp_path: Path) -> ClusterSpec:
    return ClusterSpec(
        prefill=str(tiny["base"]),
        decoders=(f"a={tiny['a']}", f"b={tiny['b']}"),
        prefill_replicas=2,
        port=0,
        log_dir=tmp_path / "logs",
        engine_args=("--device", "cpu"),
    )


@pytest.fixture
def own(tiny: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies of the models, to be changed."""
    return {name: shutil.copytree(tiny[name], tmp_path / name) for name in ("base", "a", "b")}


def test_the_plan_has_every_worker_on_ports_of_its_own(spec: ClusterSpec) -> None:
    plan = prepare(spec)
    assert [(w.name, w.role, w.model_name) for w in plan.workers] == [
        ("prefill-0", Role.PREFILL, "base"),
        ("prefill-1", Role.PREFILL, "base"),
        ("decode-a", Role.DECODE, "a"),
        ("decode-b", Role.DECODE, "b"),
    ]
    ports = [w.port for w in plan.workers] + [w.bootstrap_port for w in plan.workers[:2]]
    feeds = [urlsplit(address) for w in plan.workers for address in astuple(w.events)]
    assert {(one.scheme, one.hostname) for one in feeds} == {("tcp", "127.0.0.1")}
    assert len({*ports, *(one.port for one in feeds)}) == 6 + 8
    assert plan.context_length == 2048
    assert plan.fingerprint.startswith("ps1:")
    assert plan.log_dir.is_dir()


def test_a_smaller_pool_shortens_the_context(spec: ClusterSpec) -> None:
    plan = prepare(replace(spec, decode_engine_args=("--max-total-tokens", "999")))
    assert plan.context_length == 999


def test_a_port_in_use_is_refused(spec: ClusterSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            prepare(replace(spec, port=port))


def test_a_host_of_another_machine_is_refused(spec: ClusterSpec) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        prepare(replace(spec, no_keys=True, host="192.0.2.1", port=18765))


def test_a_log_folder_that_is_a_file_is_refused(spec: ClusterSpec, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match=f"cannot make the log folder {file}"):
        prepare(replace(spec, log_dir=file))


def test_a_log_folder_that_even_root_cannot_write_is_refused(spec: ClusterSpec) -> None:
    with pytest.raises(UsageError, match="cannot write to the log folder /sys: "):
        prepare(replace(spec, log_dir=Path("/sys")))


def test_two_decoders_of_one_name_are_refused(spec: ClusterSpec) -> None:
    with pytest.raises(UsageError, match="two models are called a"):
        prepare(replace(spec, decoders=(spec.decoders[0], spec.decoders[0])))


def test_a_decoder_that_does_not_fit_is_refused(spec: ClusterSpec, tmp_path: Path) -> None:
    from benchmarks.tiny import make_tiny

    other = make_tiny("llama", tmp_path / "other", seed=7)
    with pytest.raises(ContractError, match="base fingerprint"):
        prepare(replace(spec, decoders=(str(other["a"]),)))


@pytest.mark.parametrize(("flag", "value"), [("--page-size", "16"), ("--kv-cache-dtype", "bf16")])
def test_pages_must_be_alike_in_both_roles(spec: ClusterSpec, flag: str, value: str) -> None:
    with pytest.raises(ContractError, match=flag):
        prepare(replace(spec, decode_engine_args=(flag, value)))


@pytest.mark.parametrize(
    ("prefill", "decode", "backend", "said"),
    [
        ("2", "1", "zmq", "prefill-0 2, prefill-1 2, decode-a 1, decode-b 1; transfer backend zmq"),
        ("1", "2", "zmq", "give both roles the same --tp-size, or use mooncake or nixl"),
        ("2", "3", "nixl", "transfer backend nixl needs one --tp-size to be a multiple"),
        ("2", "2", "zmq", None),
        ("2", "1", "mooncake", None),
        ("1", "4", "nixl", None),
    ],
)
def test_pages_are_divided_alike_in_both_roles(
    spec: ClusterSpec, prefill: str, decode: str, backend: str, said: str | None
) -> None:
    unequal = replace(
        spec,
        prefill_engine_args=("--tp-size", prefill),
        decode_engine_args=("--tensor-parallel-size", decode),
        transfer_backend=backend,
    )
    if said is None:
        assert prepare(unequal).workers
    else:
        with pytest.raises(ContractError, match=f"--tp-size: .*{said}"):
            prepare(unequal)


@pytest.mark.parametrize("flag", ["--disaggregation-mod", "--model-pat", "--hos"])
def test_an_owned_flag_cut_short_is_refused(spec: ClusterSpec, flag: str) -> None:
    with pytest.raises(UsageError, match=f"{flag}[a-z]+ cannot be passed through"):
        check_flags(replace(spec, engine_args=(flag, "decode")))


def test_a_context_may_be_given_in_thousands(spec: ClusterSpec) -> None:
    assert (
        prepare(replace(spec, engine_args=("--device=cpu", "--context-len=1k"))).context_length
        == 1000
    )


def flag_values(plan: Plan, flag: str) -> dict[str, str | None]:
    return {worker.name: value_of(worker.argv, flag) for worker in plan.workers}


def name_parsers(folder: Path, **parsers: str) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, msgspec.structs.replace(manifest, **parsers))


def test_a_manifests_parsers_become_flags_of_its_workers(
    spec: ClusterSpec, own: dict[str, Path]
) -> None:
    spec = replace(spec, prefill=str(own["base"]), decoders=(str(own["a"]), str(own["b"])))
    name_parsers(own["a"], tool_call_parser="hermes", reasoning_parser="qwen3")
    name_parsers(own["b"], tool_call_parser="hermes", reasoning_parser="step3")
    plan = prepare(spec)
    names = [worker.name for worker in plan.workers]
    assert flag_values(plan, "--tool-call-parser") == dict.fromkeys(names, "hermes")
    reasoning = {"prefill-0": None, "prefill-1": None, "decode-a": "qwen3", "decode-b": "step3"}
    assert flag_values(plan, "--reasoning-parser") == reasoning
    plan = prepare(replace(spec, engine_args=(*spec.engine_args, "--tool-call-parser", "mistral")))
    assert flag_values(plan, "--tool-call-parser") == dict.fromkeys(names, "mistral")
    assert all("hermes" not in worker.argv for worker in plan.workers)
    plan = prepare(replace(spec, decode_engine_args=("--no-reasoning-parser",)))
    assert flag_values(plan, "--reasoning-parser") == dict.fromkeys(names)


def test_a_parser_that_writes_prompts_must_be_everybodys(
    spec: ClusterSpec, own: dict[str, Path]
) -> None:
    spec = replace(spec, prefill=str(own["base"]), decoders=(str(own["a"]), str(own["b"])))
    name_parsers(own["a"], tool_call_parser="deepseekv32")
    with pytest.raises(ContractError, match=r"--tool-call-parser: .*decode-b"):
        prepare(spec)
    name_parsers(own["b"], tool_call_parser="deepseekv32")
    assert set(flag_values(prepare(spec), "--tool-call-parser").values()) == {"deepseekv32"}


def test_an_unknown_parser_is_refused_with_all_that_there_are(
    spec: ClusterSpec, own: dict[str, Path]
) -> None:
    name_parsers(own["a"], tool_call_parser="herms")
    with pytest.raises(ContractError, match=r"'herms', which SGLang does not have; .*hermes"):
        prepare(replace(spec, prefill=str(own["base"]), decoders=(str(own["a"]),)))


def test_files_of_keys_and_certificates_are_read_before_anything_else(
    spec: ClusterSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = Path("keys.txt")
    nothing = replace(spec, prefill="/nowhere", api_keys=keys)
    with pytest.raises(UsageError, match=r"keys file keys\.txt: No such file"):
        prepare(nothing)
    keys.touch()
    with pytest.raises(UsageError, match=r"it has no key: `ps-sglang keys add keys\.txt NAME`"):
        prepare(nothing)
    keys.write_text("alice\n")
    with pytest.raises(UsageError, match=r"keys\.txt: line 1: sha256, role, tenant is missing"):
        prepare(nothing)
    with pytest.raises(UsageError, match=r"--tls-cert keys\.txt and --tls-key keys\.txt: they"):
        prepare(replace(nothing, api_keys=None, tls_cert=keys, tls_key=keys))
    keys.write_text(f"alice sha256={'a' * 64} role=admin tenant=x\n")
    config = gateway_config(prepare(replace(spec, host="0.0.0.0", port=0, api_keys=keys)), "d")
    assert config.api_keys == str(tmp_path / "keys.txt"), "the gateway may run elsewhere"
    assert config.launcher_key == "d"
    assert type(config).from_json(config.to_json()) == config


def test_a_template_and_its_variables_reach_the_gateway(spec: ClusterSpec, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    own = [
        *("--chat-template", str(file), "--hf-chat-template-name=rag"),
        *("--default-chat-template-kwargs", '{"enable_thinking": false}'),
    ]
    config = gateway_config(prepare(replace(spec, engine_args=(*spec.engine_args, *own))))
    assert config.chat == ChatFlags(str(file), "rag", {"enable_thinking": False})
    assert type(config).from_json(config.to_json()) == config
    assert gateway_config(prepare(spec)).chat == ChatFlags()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--chat-template", "{tmp}/none.jinja"), "no such file, and no template .*, chatml, "),
        (("--chat-template", "chattml"), "no such file, and no template .*, chatml, "),
        (("--chat-template", "{tmp}/bad.jinja"), "bad.jinja: the chat template has an error: "),
        (("--chat-template", "{tmp}/text.txt"), "must be called .jinja or .json"),
        (("--default-chat-template-kwargs", "{{"), "invalid JSON value"),
        (("--default-chat-template-kwargs", "[1]"), "must be a JSON object"),
        (("--tool-call-parser", "herms"), "--tool-call-parser: invalid choice: 'herms'"),
        (("--reasoning-parser=x",), "--reasoning-parser: invalid choice: 'x'"),
        (("--tokenizer-path", "x"), "each model brings its own tokenizer"),
    ],
)
def test_flags_of_chats_that_cannot_work_are_refused(
    spec: ClusterSpec, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "bad.jinja").write_text("{% for")
    (tmp_path / "text.txt").write_text("{{ messages }}")
    given = [word.replace("{tmp}", str(tmp_path)) for word in words]
    with pytest.raises(UsageError, match=said):
        prepare(replace(spec, engine_args=(*spec.engine_args, *given)))


@pytest.mark.parametrize("role", ["prefill_engine_args", "decode_engine_args"])
def test_all_roles_render_with_one_template(spec: ClusterSpec, tmp_path: Path, role: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    changed: dict[str, Any] = {role: ("--chat-template", str(file))}
    with pytest.raises(ContractError, match=r"--chat-template: .*\(default\)"):
        prepare(replace(spec, **changed))


def test_owned_flags_are_refused_wherever_they_are(spec: ClusterSpec) -> None:
    port = ("--port", "1")
    for wrong in (
        replace(spec, engine_args=port),
        replace(spec, prefill_engine_args=port),
        replace(spec, decode_engine_args=port),
    ):
        with pytest.raises(UsageError, match="--port cannot be passed through"):
            check_flags(wrong)


def test_another_sglang_is_refused(spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "SGLANG_VERSION", "9.9.9")
    with pytest.raises(MissingPackageError, match=r"is installed, ps_sglang supports 9\.9\.9"):
        prepare(spec)


def test_a_refusal_is_exit_status_2_and_one_message(
    tiny: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["--prefill", str(tiny["base"]), "--decoders", str(tiny["a"]), "--port", port]
        assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"ps-sglang: error: port {port} is in use")


@pytest.mark.parametrize(("device", "found"), [("nvidiactl", True), ("null", False)])
def test_an_accelerator_is_seen_by_its_device(tmp_path: Path, device: str, found: bool) -> None:
    (tmp_path / device).touch()
    assert has_accelerator(tmp_path) is found


def test_the_device_flag_decides(spec: ClusterSpec) -> None:
    assert runs_on_cpu(replace(spec, engine_args=("--device=cpu",)))
    assert not runs_on_cpu(replace(spec, engine_args=("--device", "cuda")))


def test_a_workers_port_may_be_known_before(tiny: dict[str, Path], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    spec = ClusterSpec(
        str(tiny["base"]),
        (),
        join="http://127.0.0.1:1",
        worker_port=port,
        log_dir=tmp_path,
        engine_args=("--device", "cpu"),
    )
    (worker,) = prepare(spec).workers
    assert worker.port == port
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            prepare(spec)


def test_no_worker_takes_the_gateways_port(
    spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway listens only once it has loaded, and workers' ports are chosen before."""
    count = 5 * len(prepare(spec).workers)
    candidates = iter(range(20_000, 30_000, count + 1))
    low = next(n for n in candidates if all(is_free("", n + one) for one in range(count + 1)))
    monkeypatch.setattr("ps_sglang.launch.ports._LOW", low)
    monkeypatch.setattr("ps_sglang.launch.ports._ephemeral_low", lambda: low + count + 1)
    for port in (low, low + count):
        taken = {worker.port for worker in prepare(replace(spec, port=port)).workers}
        assert port not in taken
        assert all(low <= one <= low + count for one in taken)
