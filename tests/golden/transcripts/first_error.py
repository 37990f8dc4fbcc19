import manyhands as mh


def parse(line):
    name, value = line.split("=")
    return name, int(value)


lines = [f"x{n}={n}" for n in range(1000)]
lines[700] = "x700=?"
print(dict(mh.map(parse, lines))["x1"])
