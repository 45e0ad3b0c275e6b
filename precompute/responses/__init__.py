"""`caskd precompute --sample-responses`: the teacher's own answers, written as a corpus."""

from caskd.precompute.responses.run import sample_responses

__all__ = ["sample_responses"]
