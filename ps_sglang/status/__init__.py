"""`ps-sglang status` and `ps-sglang top`: what a running cluster does, by its gateway."""
