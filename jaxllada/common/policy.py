"""What a sampler decides by, apart from numbers: the same for every backend."""

from dataclasses import dataclass

from jaxllada.common.config.cache import Cache, FeatureCache, NoCache
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError


@dataclass(frozen=True)
class Policy:
    """What the compiled sampler depends on besides shapes; all else is data."""

    mask_id: int
    eos_id: int
    block_length: int
    window: int
    """Positions looked at per step: the active block, or the whole canvas when the prompt holds
    masks, which the release fills along with the block."""
    is_noisy: bool
    is_guided: bool
    random_order: bool
    never_eos: bool
    never_mask: bool
    """Masks are not predicted, so that none is left. The release lets them be."""
    end_ids: tuple[int, ...]
    """Ids committed after all others of a block."""
    zeroed_ids: tuple[int, ...]
    """Ids taken out of the distribution that confidences come from."""
    stop_at_eos: bool
    cache: Cache
    """What is kept of earlier model calls."""
    is_block_causal: bool
    """Whether tokens see no later block."""
    answer_length: int
    """Tokens of the answer, where the cache has a room for each of them; 0 elsewhere."""

    @classmethod
    def of(cls, config: SamplingConfig, model: ModelConfig, window: int) -> "Policy":
        """Separates the choices of a config from its numbers."""
        rule = config.cache_rule
        if window > config.block_length and not isinstance(rule, NoCache):
            raise UserError(
                f"cache={config.cache} is for an answer behind the prompt, and this prompt holds"
                " masks, which are filled with every block: use cache=none"
            )
        ends: tuple[int, ...] = ()
        if config.confidence_eos_eot_inf:
            ends = (model.eos_token_id,)
            ends += () if config.eot_token_id is None else (config.eot_token_id,)
        zeroed: tuple[int, ...] = ()
        if config.compat == "official-2025":
            # The release wrote minus infinity to the end-of-turn logit, and to the end-of-sequence
            # logit of a tensor that is the same one only while no noise is added.
            zeroed = ends[1:] if config.temperature > 0 else ends
            ends = ()
        return cls(
            mask_id=model.mask_id,
            eos_id=model.eos_token_id,
            block_length=config.block_length,
            window=window,
            is_noisy=config.temperature > 0,
            is_guided=config.cfg_scale > 0,
            random_order=config.remasking == "random",
            never_eos=config.logits_eos_inf,
            never_mask=config.compat is None,
            end_ids=ends,
            zeroed_ids=zeroed,
            stop_at_eos=config.stop_at_eos,
            cache=rule,
            is_block_causal=config.attention == "block_causal",
            answer_length=config.gen_length if isinstance(rule, FeatureCache) else 0,
        )

    @property
    def fills_prompt(self) -> bool:
        """Whether masks inside the prompt take part."""
        return self.window > self.block_length
