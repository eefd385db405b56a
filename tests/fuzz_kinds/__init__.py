"""Random networks against the groups that are found: `python -m tests.fuzz_kinds --seconds 60`."""
