"""The day that a GPU is there: everything that no other machine can say, by one command.

    python -m benchmarks.gpu_day [--out build/gpu_day] [--geometry blip2-opt-2.7b] [--skip STEP ...]

It needs this repository, and wheels laid into `wheels/` beside it where the machine has no network: they are installed
into an environment of the day's own. Each step runs in a process of its own, so that none ends the others. Results lie
in --out: a JSON for each step, gpu_day.json of all, report.md, which are written after each. The command given again
goes on where it stopped: what was done is not done again, what failed or was left out is, and what ran by a package
that is another now.

--stand-in runs the whole day without a GPU, on a driver that stands in for NVIDIA's and has the kernels compiled for
the CPU (tests/trt/native): it shows that the day's own code works, and its times mean nothing.
"""
