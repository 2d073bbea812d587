"""`ps-sglang workers`: see and change who serves in a running cluster."""
