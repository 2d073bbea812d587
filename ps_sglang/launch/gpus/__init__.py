"""GPUs, planned before anything starts: which worker gets which, how much memory, how pages travel.

All of it is arithmetic on `config.json`, the headers of weights and a description of the machine,
so it needs neither torch nor a GPU.
"""
