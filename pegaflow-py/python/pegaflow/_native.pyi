"""PegaFlow's client for Python. Calls that wait do not hold the GIL."""

from collections.abc import Sequence
from typing import TypedDict, final, type_check_only

__all__ = [
    "Client",
    "Device",
    "Found",
    "Loading",
    "Lookup",
    "Namespace",
    "PegaFlowError",
    "Rank",
    "encode_namespace",
    "probe_gpus",
]

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
    groups: Sequence[tuple[str, int, int, str]]
    tenant_salt: bytes

@type_check_only
class RankLayout(TypedDict):
    """Where a rank's blocks lie in the engine's memory."""

    layers: tuple[int, int]
    heads: tuple[int, int]
    blocks: int
    views: Sequence[tuple[int, int, int, int]]

def encode_namespace(parts: NamespaceParts) -> bytes:
    """The canonical encoding of a namespace."""

def probe_gpus() -> list[tuple[int, str, int, list[str]]]:
    """Number, name, bytes of memory and limits of each GPU. Raises `PegaFlowError` with the reason if none."""

@final
class Client:
    """Connection to a node, or the node itself."""

    @staticmethod
    def embedded(pool_bytes: int, path: str, ssd_path: str = "", ssd_bytes: int = 0) -> Client: ...
    @staticmethod
    def connect(path: str, timeout_ms: int, wait_ms: int) -> Client: ...
    def trouble(self) -> str | None: ...
    def namespace(
        self, encoding: bytes, tenant: str, groups: Sequence[tuple[tuple[int, int, int, int], Sequence[int]]]
    ) -> Namespace: ...
    def lookup(self, namespace: Namespace, keys: bytes, ttl_ms: int) -> Lookup: ...
    def lookup_hybrid(self, namespace: Namespace, keys: Sequence[bytes], ttl_ms: int) -> Lookup: ...
    def release(self, found: Sequence[Found]) -> None: ...
    def rank(self, device: Device, namespace: Namespace, group: int, layout: RankLayout) -> Rank: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...

@final
class Device:
    """Copies between the engine's memory and pools."""

    @staticmethod
    def host(threads: int, memory_pieces: Sequence[tuple[int, int]]) -> Device: ...
    @staticmethod
    def cuda(ordinal: int, cache_dir: str | None = None) -> Device: ...
    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> list[str]: ...

@final
class Namespace:
    """A namespace: makes keys, also while the node is away."""

    def keys(self, group: int, hashes: Sequence[bytes]) -> bytes: ...

@final
class Lookup:
    """A lookup on its way."""

    def poll(self, wait_us: int, patience_ms: int, fetch_ms: int) -> Found | None: ...
    def wait(self, patience_ms: int, fetch_ms: int) -> Found | None: ...
    def cancel(self) -> None: ...

@final
class Found:
    """Blocks that a lookup found: the first ones of its keys."""

    @property
    def ready(self) -> int: ...
    def group(self, group: int) -> tuple[bytes, bytes, bytes]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def given_up(self) -> bool: ...
    @property
    def at_once(self) -> int: ...
    @property
    def from_ssd(self) -> int: ...
    @property
    def answer_us(self) -> int: ...
    @property
    def fetch_us(self) -> int: ...
    @property
    def places(self) -> bytes: ...
    @property
    def generations(self) -> bytes: ...

@final
class Loading:
    """Blocks on their way from the pool to the engine."""

    def hold(self, stream: int | None, layers: int | None = None) -> None: ...
    def done(self) -> bool: ...
    def finish(self) -> list[int]: ...

@final
class Rank:
    """A rank's copies."""

    def load(
        self, items: Sequence[tuple[bytes, bytes, bytes, bytes]], stream: int | None = None, by_layer: bool = False
    ) -> Loading: ...
    def save(self, items: Sequence[tuple[int, bytes, bytes, bytes]], stream: int | None = None) -> None: ...
    def saves(self) -> tuple[int, int, int, int, int, list[int], str | None]: ...
    def settle(self, number: int) -> None: ...
    def close(self) -> None: ...
