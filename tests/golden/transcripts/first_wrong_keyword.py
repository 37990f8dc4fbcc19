import manyhands as mh


def scale(x, factor=1):
    return x * factor


for call in (
    lambda: mh.Pool(max_workers=4),
    lambda: mh.map(scale, [1, 2], n_jobs=2),
    lambda: mh.map(scale, [1, 2], max_workers=2),
    lambda: mh.map(scale, [1, 2], factor=3),
    lambda: mh.map(scale, [1, 2], on_eror="skip"),
    lambda: mh.map(scale, [1, 2], on_error="ignore"),
    lambda: mh.map(scale),
    lambda: mh.map([1, 2], scale),
):
    try:
        call()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
