"""Many adapters of one base over agent sessions: ours beside stock SGLang multi-LoRA."""
