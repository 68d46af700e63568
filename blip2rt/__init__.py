"""blip2rt: BLIP-2 on the edge."""

__version__ = "0.1.0"
