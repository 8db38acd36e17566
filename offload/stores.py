"""I/O. The stores that the configuration names: where it says what is where, for workers and for `busway cache`."""

from bus.config import OffloadConfig
from bus.errors import BadConfig
from offload.redis import RedisStore
from offload.store import Store


def make_stores(config: OffloadConfig) -> list[Store]:
    """Return the shared stores, the fastest first; nothing is connected yet.

    Raises `BadConfig` for a wrong address, and when a package that a store needs is not installed.
    """
    stores: list[Store] = []
    if config.redis.url:
        stores.append(RedisStore(config.redis.url, timeout_s=config.redis.timeout_s))
    if config.s3.url:
        try:
            from offload.s3 import ObjectStore
        except ModuleNotFoundError as error:
            raise BadConfig(f"offload.s3 needs the package {error.name!r}: pip install 'busway[offload]'") from error
        stores.append(ObjectStore(config.s3.url, keep_s=config.s3.keep_s, timeout_s=config.s3.timeout_s))
    return stores
