"""Heavy work beside an event loop: futures can be awaited, and the loop stays free."""

import asyncio
import hashlib

import manyhands as mh


def derive_key(password: str) -> str:
    """Slow on purpose, as it should be."""
    key = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 50_000)
    return key.hex()[:12]


async def tick(stop: asyncio.Event) -> int:
    """Counts how often the loop came by while others worked."""
    ticks = 0
    while not stop.is_set():
        ticks += 1
        await asyncio.sleep(0.001)
    return ticks


async def main() -> None:
    stop = asyncio.Event()
    ticking = asyncio.create_task(tick(stop))
    with mh.Pool() as pool:
        names = ["ada", "grace", "edsger", "barbara"]
        keys = await asyncio.gather(*(pool.submit(derive_key, name) for name in names))
    stop.set()
    for name, key in zip(names, keys, strict=True):
        print(f"{name:8} {key}")
    print("the loop stayed free:", await ticking > 1)


asyncio.run(main())
