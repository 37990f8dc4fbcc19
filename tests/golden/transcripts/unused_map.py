import manyhands as mh

mh.map(print, range(1000))
