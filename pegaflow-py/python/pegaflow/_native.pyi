"""PegaFlow's client for Python. Calls that wait do not hold the GIL."""

from collections.abc import Sequence
from typing import TypedDict, final, type_check_only

__all__ = ["Client", "Found", "Lookup", "Namespace", "PegaFlowError", "Rank", "encode_namespace"]

class PegaFlowError(Exception):
    """The node refused, did not answer, or is away. ``args`` are the kind of the error and its message."""

@type_check_only
class NamespaceParts(TypedDict):
    """What must match before blocks can be exchanged."""

    model: bytes
    weights: bytes
    kv_dtype: str
    kv_quantisation: str
    hash_algorithm: str
    hash_seed: bytes
    layout: str
    block_tokens: int
    mla: bool
    tenant_salt: bytes

@type_check_only
class RankLayout(TypedDict):
    """Where a rank's blocks lie in the engine's memory."""

    layers: tuple[int, int]
    heads: tuple[int, int]
    blocks: int
    views: Sequence[tuple[int, int, int, int]]
    memory: Sequence[tuple[int, int]]

def encode_namespace(parts: NamespaceParts) -> bytes:
    """The canonical encoding of a namespace with one group."""

@final
class Client:
    """Connection to a node, or the node itself."""

    @staticmethod
    def embedded(pool_bytes: int, path: str) -> Client: ...
    @staticmethod
    def connect(path: str, timeout_ms: int) -> Client: ...
    def namespace(
        self, encoding: bytes, tenant: str, shape: tuple[int, int, int, int], stage_ends: Sequence[int]
    ) -> Namespace: ...
    def lookup(self, namespace: Namespace, keys: bytes, ttl_ms: int) -> Lookup: ...
    def release(self, found: Sequence[Found]) -> None: ...
    def rank(self, namespace: Namespace, layout: RankLayout, threads: int) -> Rank: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

@final
class Namespace:
    """A namespace that is registered with the node: makes keys."""

    def keys(self, group: int, hashes: Sequence[bytes]) -> bytes: ...

@final
class Lookup:
    """A lookup on its way."""

    def poll(self, wait_ms: int) -> Found | None: ...
    def cancel(self) -> None: ...

@final
class Found:
    """Blocks that a lookup found: the first ones of its keys."""

    @property
    def ready(self) -> int: ...
    @property
    def places(self) -> bytes: ...
    @property
    def generations(self) -> bytes: ...

@final
class Rank:
    """One rank's copies between the engine's memory and the pool."""

    def load(self, keys: bytes, places: bytes, generations: bytes, blocks: Sequence[int]) -> list[int]: ...
    def save(self, parent: bytes, keys: bytes, blocks: Sequence[int]) -> int: ...
    def close(self) -> None: ...
