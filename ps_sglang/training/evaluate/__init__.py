"""Score any decoder on any task at any share ratio, offline and through a running cluster.

`ps-sglang evaluate --help`, or from Python:

    from ps_sglang.training.evaluate.run import evaluate
    from ps_sglang.training.evaluate.settings import EvaluateSettings
"""
