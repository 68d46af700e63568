"""Training BLIP-2: `python -m train.stage1|stage2|questions|evaluate` (installed as blip2rt_train)."""

import sys

if sys.argv[:1] == ["-m"]:  # so while python looks for the command, whose imports fail before its main() can say why
    from .cli import tell_missing

    sys.excepthook = tell_missing
