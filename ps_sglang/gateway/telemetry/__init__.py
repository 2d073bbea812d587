"""What the gateway tells about its work: metrics, timelines, log lines."""
