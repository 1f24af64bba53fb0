"""One Vision Transformer, hundreds of encoders: nested models, submodels, cost and training."""

import lazy_loader as lazy

# What a name needs, such as torch, is imported when the name is first asked for.
__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
