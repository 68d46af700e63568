"""Everything that only a machine with a GPU can verify or measure, by one command.

    python -m benchmarks.gpu_day [--out build/gpu_day] [--geometry blip2-opt-2.7b] [--skip STEP ...]

Each step runs in its own process, so that a crash ends that step only. After every step, gpu_day.json and report.md in
--out have the results so far.

--stand-in runs all steps without a GPU, on a simulated driver whose kernels are compiled for the CPU
(tests/trt/native). It tests this package itself; its times mean nothing.
"""
