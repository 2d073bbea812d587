"""Metrics of requests' traces: where time went, and where the base prefix came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class TraceMetrics:
    """Counts what the spans of workers tell."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stages = cache(
            Histogram(
                "ps_sglang_gateway_stage_seconds",
                "Where requests' time went, by their workers' spans.",
                ("stage",),
                buckets=SECONDS,
                registry=registry,
            ).labels
        )
        self._base_tokens = cache(
            Counter(
                "ps_sglang_gateway_base_tokens",
                "Prompt tokens by workers' spans: computed by the base, held by the tree of the "
                "one that prefills, held by the decode worker's own tree, pulled by it.",
                ("decoder", "source"),
                registry=registry,
            ).labels
        )
        self._output_tokens = cache(
            Counter(
                "ps_sglang_gateway_output_tokens",
                "Tokens that decoders generated, by workers' spans.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._pulled_bytes = cache(
            Counter(
                "ps_sglang_gateway_pulled_bytes",
                "Bytes of KV that decode workers pulled.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._saved_tokens = cache(
            Counter(
                "ps_sglang_gateway_saved_tokens",
                "Prompt tokens not computed because another decoder's turn had brought them in.",
                ("decoder",),
                registry=registry,
            ).labels
        )
        self._cross_decoder = Gauge(
            "ps_sglang_gateway_cross_decoder_hit_ratio",
            "Of all prompt tokens so far, the part saved by another decoder's turn.",
            registry=registry,
        )
        self._prompt_total = self._saved_total = 0

    def concluded(
        self,
        decoder: str,
        stages: Mapping[str, float],
        tokens: Mapping[str, int],
        output: int,
        shared: int,
        *,
        is_aggregated: bool = False,
    ) -> None:
        """A request's trace is there, see `trace.Trace`.

        `output`: how many tokens it got. `shared`: how much of what its workers held another
        decoder's turn had brought in.
        """
        for stage, seconds in stages.items():
            self._stages(stage).observe(seconds)
        for source in ("computed", "tree", "own", "pulled"):
            if source in tokens:
                self._base_tokens(decoder, source).inc(tokens[source])
        self._output_tokens(decoder).inc(output)
        self._pulled_bytes(decoder).inc(tokens.get("pulled_bytes", 0))
        if "computed" in tokens and ("pulled" in tokens or is_aggregated):
            held = tokens["computed"] + tokens["tree"]
            prompt = held if is_aggregated else tokens["own"] + tokens["pulled"]
            saved = min(shared, prompt - tokens["computed"])
            self._saved_tokens(decoder).inc(saved)
            self._prompt_total += prompt
            self._saved_total += saved
            self._cross_decoder.set(self._saved_total / max(self._prompt_total, 1))
