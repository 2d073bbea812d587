"""What the workers hold of a prompt: an index fed by their KV events, and an estimate."""

from ps_sglang.gateway.index.collector import IndexMetrics
from ps_sglang.gateway.index.holdings import Holdings, Source
from ps_sglang.gateway.index.lookup import NOTHING, HeldPrefix
from ps_sglang.gateway.index.prompt import Prompt
from ps_sglang.gateway.index.prompts import Prompts

__all__ = ["NOTHING", "HeldPrefix", "Holdings", "IndexMetrics", "Prompt", "Prompts", "Source"]
