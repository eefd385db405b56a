"""Data of the experiments: what is embedded in installed packages, or files in `--data-dir`."""
