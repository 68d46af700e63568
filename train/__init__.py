"""Training BLIP-2: `python -m train.stage1|stage2|questions|evaluate` (installed as blip2rt_train)."""
