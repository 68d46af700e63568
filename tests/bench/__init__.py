"""blip2rt-bench."""
