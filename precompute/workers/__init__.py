"""`caskd precompute`: workers, their shards, signals and executors."""

from caskd.precompute.workers.run import precompute

__all__ = ["precompute"]
