"""Answers as a corpus: the teacher's own, or those that a teacher and a student write together."""

from caskd.precompute.responses.rollout import rollout_command
from caskd.precompute.responses.run import sample_responses

__all__ = ["rollout_command", "sample_responses"]
