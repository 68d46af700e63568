"""Engines that carry blip2rt beyond one machine: Ray, Ray Serve and Triton. Each module imports its engine.

docs/scale.md says which engine to use for which job.
"""
