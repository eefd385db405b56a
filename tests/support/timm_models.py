"""The smallest model of each of timm's modules, which tests share with the benchmarks."""

from benchmarks.support.timm_models import (
    SMALLEST,
    build,
    fewest_parameters,
    image_size,
    modules,
)

__all__ = ["SMALLEST", "build", "fewest_parameters", "image_size", "modules"]
