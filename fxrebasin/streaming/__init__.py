"""Checkpoints larger than memory: matched, permuted and merged tensor by tensor."""
