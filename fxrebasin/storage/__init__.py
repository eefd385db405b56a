"""Files: certificates, checkpoints, references."""
