"""`ps-sglang launch --dry-run`: all is checked and told, and nothing is started or made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ps_sglang.errors import UsageError
from ps_sglang.launch.__main__ import main
from ps_sglang.launch.args import parse_args
from ps_sglang.launch.dry_run import planned
from ps_sglang.launch.flags import value_of
from ps_sglang.launch.prepare import prepare
from ps_sglang.launch.spec import ClusterSpec, Entry

Tiny = dict[str, Path]


def arguments(tiny: Tiny, folder: Path, *more: str) -> list[str]:
    decoders = f"a={tiny['a']},b={tiny['b']}"
    logs = str(folder / "logs")
    return ["--prefill", str(tiny["base"]), "--decoders", decoders, "--log-dir", logs, *more]


def test_a_described_machine_is_planned_for_without_a_gpu(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, tmp_path, "--gpus", "2x24GB", "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 GPUs of 24.0 GB (described)\n")
    assert re.search(r"^decode-b +127\.0\.0\.1 +\d +1 ", shown, re.MULTILINE)
    assert "CUDA IPC" in shown
    assert re.search(r"CUDA_VISIBLE_DEVICES=1 .*--page-size 64", shown)
    assert not (tmp_path / "logs").exists()


def test_a_launch_tells_the_same_plan_in_short(tiny: Tiny, tmp_path: Path) -> None:
    plan = prepare(parse_args(arguments(tiny, tmp_path, "--gpus", "1x24GB", "--dry-run")))
    prefill, first, second, *pages = planned(plan)
    assert prefill.startswith("prefill-0: GPU 0, ")
    assert "starts when" not in prefill
    assert "starts when" in first
    assert second.startswith("decode-b: GPU 0, ")
    assert "CUDA IPC on the same GPU: prefill-0 to decode-a, prefill-0 to decode-b" in pages[0]


def test_the_cpu_is_planned_for_as_well(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, tmp_path, "--device", "cpu", "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("no GPU is used\n")
    assert re.search(r"^decode-b .* 4,096 +1$", shown, re.MULTILINE)
    assert "pages by zmq" in shown
    assert "CUDA" not in shown
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpus", "1x24GB"], "describes a machine to plan for: add --dry-run"),
        (["--gpus", "1x24GB", "--device", "cpu"], "does not go with --device cpu"),
        (["--gpus", "some"], "--gpus some: must be all"),
        (["--gpus", "1x2GB", "--dry-run"], "GPU 0 has 2.0 GB for what needs"),
        (["--gpus", "1x24GB", "--dry-run", "--transfer-backend", "zmq"], "CPU only"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(arguments(tiny, tmp_path, "--port", "0", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_file_says_more_of_each_worker(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        f"prefill: {{model: {tiny['base']}, replicas: 2, gpus: [0, 1], mem: 10GB}}\n"
        "decoders:\n"
        f"  - {{model: a={tiny['a']}, tp: 2, gpus: [2, 3]}}\n"
        f"  - {{model: b={tiny['b']}, replicas: 2, engine_args: [--max-running, '7']}}\n"
        f"adapters: {{mem: 5GB}}\ngpus: 4x24GB\nlog_dir: {tmp_path}\n"
    )
    spec = parse_args(["--spec", str(file), "--dry-run"])
    assert spec.prefill_replicas == 2
    assert spec.adapter_resources.mem == "5GB"
    plan = prepare(spec)
    assert plan.gpus is not None
    budgets = plan.gpus.budgets
    assert [budgets[name].gpus for name in ("prefill-0", "prefill-1", "decode-a")] == [
        (0,),
        (1,),
        (2, 3),
    ]
    assert budgets["prefill-0"].total_bytes <= 10 * 10**9
    running = {w.name: value_of(w.argv, "--max-running-requests") for w in plan.workers}
    assert running == {
        "prefill-0": None,
        "prefill-1": None,
        "decode-a": None,
        "decode-b": "7",
        "decode-b-2": "7",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decoders: [{model: a*2, replicas: 3}]", r"decoder a\*2 has its replicas twice"),
        (
            "decoders: [{model: a, gpu: [0]}]",
            r"unknown key decoders\[0\]\.gpu: did you mean gpus\?",
        ),
        ("decoders: [a]\nprefill_replicas: 2", "prefill_replicas is given beside prefill"),
        ("decoders: [{model: a, tp: 0}]", "decoder a: tp is 0"),
        ("decoders: [{model: a, replicas: 0}]", "at least 1 worker"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"prefill: {{model: base, replicas: 2}}\n{text}\n")
    with pytest.raises(UsageError, match=message):
        parse_args(["--spec", str(file)])


def test_resources_on_a_cpu_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        f"prefill: {tiny['base']}\ndecoders: [{{model: a={tiny['a']}, tp: 2}}]\n"
        f"port: 0\nlog_dir: {tmp_path}\n"
    )
    spec = parse_args(["--spec", str(file), "--device", "cpu"])
    with pytest.raises(UsageError, match=r"tp, gpus and mem of decoder a=.* are for GPUs"):
        prepare(spec)


def test_an_adapter_has_no_gpus_of_its_own(tiny: Tiny, write_adapter: object) -> None:
    assert callable(write_adapter)
    entry = Entry(str(write_adapter("x")), engine_args=("--max-running-requests", "7"))
    spec = ClusterSpec(str(tiny["base"]), (entry,), gpus="1x24GB", dry_run=True)
    with pytest.raises(UsageError, match="decoder x shares its workers with all adapters"):
        prepare(spec)


def test_flags_of_one_decoder_are_checked(tiny: Tiny) -> None:
    entry = Entry(f"a={tiny['a']}", engine_args=("--no-such-flag",))
    spec = ClusterSpec(str(tiny["base"]), (entry,), engine_args=("--device", "cpu"), port=0)
    with pytest.raises(UsageError, match=r"engine_args of a=.*: SGLang has no flag --no-such-flag"):
        prepare(spec)
