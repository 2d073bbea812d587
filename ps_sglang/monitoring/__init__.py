"""A Grafana dashboard and Prometheus alerts for what the gateway's `/metrics` exports."""
