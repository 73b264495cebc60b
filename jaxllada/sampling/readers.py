"""Which reader works by which rule of the option `cache`."""

from jaxllada.common.config.cache import FeatureCache
from jaxllada.common.policy import Policy
from jaxllada.common.regions import Regions
from jaxllada.sampling.caches.features import FeatureReader
from jaxllada.sampling.caches.regions import RegionReader
from jaxllada.sampling.reader import PlainReader, Reader


def reader_of(policy: Policy) -> Reader:
    """Returns the reader that works by the rule of a policy."""
    if isinstance(policy.cache, FeatureCache):
        return FeatureReader(policy.cache, policy.answer_length)
    regions = Regions.of(policy.cache, policy.block_length)
    return PlainReader() if regions is None else RegionReader(regions)
