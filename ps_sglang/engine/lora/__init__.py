"""LoRA decoders: several adapters of the base on one worker share weights, batch and KV pages."""
