"""UniRG: reinforcement learning of radiology-report generators, and proof of how good they are."""

__version__ = "0.1.0"
