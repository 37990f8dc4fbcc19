"""The peers, each in its own module; `ALL` is their order in every table."""

from __future__ import annotations

from benchmarks.peers import (
    bare,
    joblib,
    loky,
    manyhands,
    mpire,
    multiprocessing_pool,
    process_pool_executor,
    ray,
    serial,
    thread_pool_executor,
)
from benchmarks.peers.base import Peer

ALL: tuple[Peer, ...] = (
    manyhands.PEER,
    *multiprocessing_pool.PEERS,
    *process_pool_executor.PEERS,
    loky.PEER,
    joblib.PEER,
    mpire.PEER,
    ray.PEER,
    thread_pool_executor.PEER,
    bare.PEER,
    serial.PEER,
)


def by_key(key: str) -> Peer:
    return next(peer for peer in ALL if peer.key == key)
