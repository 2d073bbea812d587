"""Transfer backend `zmq`: KV pages from a prefill worker to decode workers over ZMQ."""
