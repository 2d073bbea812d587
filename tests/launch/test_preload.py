"""What forks share, and a KV pool that costs memory as it fills: on SGLang's own classes.

In an interpreter of its own: it imports SGLang as the fork server does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


def run(program: str, *arguments: str) -> dict[str, object]:
    """What `program` prints as its last line, as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ
        | {"PS_SGLANG_ENABLE": "1", "OMP_NUM_THREADS": "1"}
        | {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_host_is_fit_to_fork_and_shares_equal_tokenizers(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny["b"], other)
    config = other / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    found = run(_WARM, str(tiny["base"]), str(tiny["a"]), str(other))
    assert found == {
        "threads": 1,
        "prometheus": False,
        "hooked": True,
        "decoder shares": True,
        "other files share": False,
        "other files are read": 77,
        "other options share": False,
    }


_WARM = """
import json, os, sys
from pathlib import Path
from ps_sglang.engine.preload import warm
base, decoder, other = sys.argv[1:]
warm(Path(base))
threads = len(os.listdir("/proc/self/task"))
from sglang.srt.managers import detokenizer_manager, scheduler
options = dict(
    tokenizer_mode="auto", trust_remote_code=False, revision=None, tokenizer_backend="huggingface"
)
get = scheduler.get_tokenizer
shared = get(base, **options)
print(json.dumps({
    "threads": threads,
    "prometheus": "prometheus_client" in sys.modules,
    "hooked": detokenizer_manager.get_tokenizer is get,
    "decoder shares": get(decoder, **options) is shared,
    "other files share": get(other, **options) is shared,
    "other files are read": get(other, **options).model_max_length,
    "other options share": get(base, **options | {"trust_remote_code": True}) is shared,
}))
"""


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_lazy_pool_is_laid_out_like_sglangs(page_size: int) -> None:
    found = run(_POOL, str(page_size))
    assert found["same layout"] is True
    assert found["zero"] is True
    assert found["written"] is True
    # 16 MB, of which a page or two is touched.
    assert found["resident"] < found["size"] / 4  # type: ignore[operator]


_POOL = """
import json, sys, torch
from ps_sglang.engine.kv_pool import LazyKVPool, MHATokenToKVPool

def pool(kind):
    self = object.__new__(kind)
    self.page_size, self.size, self.layer_num = int(sys.argv[1]), 8000, 2
    self.head_num, self.head_dim, self.v_head_dim = 2, 64, 64
    self.store_dtype, self.device, self.kv_cache_layout = torch.float32, "cpu", "nhd"
    self.use_hnd, self.enable_custom_mem_pool, self.custom_mem_pool = False, False, None
    from contextlib import nullcontext
    from types import SimpleNamespace
    self.memory_saver_adapter = SimpleNamespace(region=lambda tag: nullcontext())
    self._create_buffers_normal()
    return self

def layout(self):
    return [
        (tuple(b.shape), b.stride(), b.storage_offset(), b.untyped_storage().nbytes(), str(b.dtype))
        for b in self.k_buffer + self.v_buffer
    ]

def resident():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/smaps_rollup") if "Rss" in l)

stock = pool(MHATokenToKVPool)
before = resident()
lazy = pool(LazyKVPool)
same = layout(stock) == layout(lazy)
lazy.k_buffer[1][5] = 3.0
grown = resident() - before
print(json.dumps({
    "same layout": same,
    "written": bool((lazy.k_buffer[1][5] == 3.0).all()),
    "resident": grown,
    "size": sum(b.numel() * 4 for b in lazy.k_buffer + lazy.v_buffer),
    "zero": not bool(lazy.v_buffer[0].any() or lazy.k_buffer[0].any()),
}))
"""
