"""The PyTorch definition of BLIP-2. Imported by training and export only; the runtime never needs it."""
