"""Engines that run or evaluate blip2rt: Ray, Ray Serve, Triton and lmms-eval. Each module imports its engine.

docs/scale.md says which engine to use for which job.
"""
