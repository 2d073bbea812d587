"""Cache-conditioned fine-tuning: train a decoder on the KV cache of a frozen base.

`ps-sglang train --help`. Knows nothing of serving beyond the decoder's manifest.
"""
