import time

import manyhands as mh


def slow(n):
    if n == 100:
        print("READY", flush=True)
    time.sleep(0.002)
    return n


mh.map(slow, range(10_000)).run()
