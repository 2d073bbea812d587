"""The state of workers: who may join, whether they are well, when to try them again."""
