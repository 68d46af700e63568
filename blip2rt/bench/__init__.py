"""`blip2rt-bench`: the speed of a bundle on this machine, next to the machine's limits and to other engines.

Each measurement has its own process (worker.py, torch_peer.py), one after the other: the limits of the machine, cold
and warm starts, the stages, each peer. The parent process collects and prints the results.
"""
