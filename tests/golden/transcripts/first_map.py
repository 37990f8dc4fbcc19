import manyhands as mh


def square(n):
    return n * n


results = mh.map(square, range(5))
print(results)
print(list(results))
