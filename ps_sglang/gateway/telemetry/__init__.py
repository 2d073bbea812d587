"""What the gateway reports of its work: metrics, traces, log lines."""
