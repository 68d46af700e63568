"""`blip2rt-bench`: the speed of a bundle on this machine, next to a linear read of its weights and to other engines.

Each measurement has its own process (worker.py, torch_peer.py, llama_peer.py), one after the other: cold and warm
starts, the stages, each peer. The parent process collects and prints the results.
"""
