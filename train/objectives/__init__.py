"""The losses: ITC, ITM and ITG of stage 1, the language-model losses of stage 2, and texts packed for them."""
