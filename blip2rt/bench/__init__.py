"""`blip2rt-bench`: how fast a bundle is on this machine, how close to its limits, and against whom.

Everything is measured in a process of its own (worker.py, peers/), one after the other: the limits of the machine, a
cold and a warm start, the stages, each peer, each point of the scaling. This side asks, collects and prints.
"""
