"""Random programs against the analysis: `python -m tests.fuzz --seconds 60 --seed 0`."""
