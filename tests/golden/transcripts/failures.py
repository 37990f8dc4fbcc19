import os

import manyhands as mh


def reciprocal(n):
    if n == 3:
        os._exit(7)
    return 1 / n


results = mh.map(reciprocal, [1, 2, 0, 3, 4], on_error="skip")
print(list(results))
for failure in results.failures:
    print(failure.index, failure.input, failure.cause, "|", failure.exception)
print(results)
