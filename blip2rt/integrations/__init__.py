"""Ray, for `blip2rt caption --ray`; docs/scale.md says which engine to use for which job."""
