"""Conversion: an ordinary trained ViT becomes a nested one, its full size untouched."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
