"""The product's shim under the name that scripts written beside the benchmarks import."""

from fxrebasin.models.torchvision_shim import ensure_torchvision

__all__ = ["ensure_torchvision"]
