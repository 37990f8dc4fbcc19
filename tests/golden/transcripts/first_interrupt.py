import time

import manyhands as mh


def slow(n):
    time.sleep(0.002)
    return n


for result in mh.map(slow, range(10_000)):
    if result == 100:
        print("READY", flush=True)
