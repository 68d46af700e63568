"""Everything that only a machine with a GPU can verify or measure, by one command.

    python -m benchmarks.gpu_day [--out build/gpu_day] [--geometry blip2-opt-2.7b] [--skip STEP ...]

It needs this repository and, on a machine without a network, wheels in `wheels/` beside it, which it installs into an
environment of its own. Each step runs in its own process, so that a crash ends that step only. Results are written to
--out after every step: a JSON file per step, gpu_day.json and report.md. Running the command again resumes it: finished
steps are skipped unless their packages have changed; failed and skipped steps run again.

--stand-in runs all steps without a GPU, on a simulated driver whose kernels are compiled for the CPU
(tests/trt/native). It tests this package itself; its times mean nothing.
"""
