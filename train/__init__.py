"""Training BLIP-2: `blip2rt-train stage1 ...`, or `python -m train.stage1 ...`. Installed as blip2rt_train."""
