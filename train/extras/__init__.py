"""Methods beyond the paper that the embedded model needed: distillation, CIDEr reward, calibration, averaging."""
