"""The accuracy study: cache-conditioned decoders against full fine-tuning and naive sharing."""
