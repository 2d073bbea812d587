"""OpenAI-compatible gateway: sends each request to a prefill worker and a decode worker."""
