"""The demonstration that `fxrebasin demo` runs on digits."""
