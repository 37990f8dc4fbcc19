import manyhands as mh

table = bytes(120_000_000)


def look(n):
    return table[n]


print(sum(mh.map(look, range(10))))
