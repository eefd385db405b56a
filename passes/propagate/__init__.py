"""The first stage: run a model once and record what its operators say about axes."""
