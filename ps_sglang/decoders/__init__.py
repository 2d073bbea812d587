"""`ps-sglang decoders`: see and change which decoders a running cluster serves."""
