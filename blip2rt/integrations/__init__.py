"""Engines that run blip2rt: Ray, Ray Serve and Triton. Each module imports its engine.

docs/scale.md says which engine to use for which job.
"""
