"""How decoders are made and measured: training, tasks and evaluation."""
