"""Training and evaluation of BLIP-2: `python -m train.stage1`, `train.stage2`, `train.evaluate` (installed as blip2rt_train)."""
