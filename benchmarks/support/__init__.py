"""What several benchmarks, and the tests, need."""
