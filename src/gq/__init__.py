"""gq: train, evaluate and render Decision Transformers on MuJoCo."""

__version__ = "0.1.0"
