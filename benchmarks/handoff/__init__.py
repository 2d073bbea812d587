"""How fast KV pages move from a prefill worker to a decode worker, beside memcpy and Mooncake."""
