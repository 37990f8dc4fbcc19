import manyhands as mh

mh.map(abs, range(1000))
