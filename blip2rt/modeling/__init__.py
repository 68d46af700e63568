"""The PyTorch definition of BLIP-2. Imported by training and export only; the runtime never needs it."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read by Hugging Face's packages when they are imported
