"""Questions: ask an index with any submodel, and measure what a smaller one costs and finds."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
