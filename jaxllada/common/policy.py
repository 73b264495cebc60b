"""What a sampler decides by, apart from numbers: the same for every backend."""

from dataclasses import dataclass

from jaxllada.common.config.cache import Cache, FeatureCache, NoCache
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.rule import Extra, Rank
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.selection import Dream
from jaxllada.common.config.smoothing import NoSmoothing
from jaxllada.common.errors import UserError


@dataclass(frozen=True)
class Policy:
    """What the compiled sampler depends on besides shapes; all else is data."""

    mask_id: int
    eos_id: int
    block_length: int
    window: int
    """Positions looked at per step: the active block, or the whole canvas when the prompt holds
    masks, which the release fills along with the block, and when later blocks are read too."""
    is_noisy: bool
    is_guided: bool
    rank: Rank
    """What puts the open positions in order."""
    extra: Extra
    """Rule by which an adaptive selection keeps more than the plan says; empty: it does not."""
    has_credit: bool
    """Whether what earlier calls of a block predicted counts: `sampling/credit.py`."""
    has_decay: bool
    """Whether the number that `extra` compares with changes from call to call."""
    is_shuffled: bool
    """Whether the order is drawn by its rank."""
    has_top_p: bool
    has_top_k: bool
    ranks_draws: bool
    """Whether confidences are those of the distribution drawn from, after temperature and filters;
    otherwise of the model's own."""
    never_eos: bool
    never_mask: bool
    """Masks are not predicted, so that none is left. The release lets them be."""
    end_ids: tuple[int, ...]
    """Ids committed after all others of a block."""
    zeroed_ids: tuple[int, ...]
    """Ids taken out of the distribution that confidences come from."""
    stop_at_eos: bool
    end_think_ids: tuple[int, ...]
    """The sequence that answers are pulled to; empty: they are not."""
    cache: Cache
    """What is kept of earlier model calls."""
    is_block_causal: bool
    """Whether tokens see no later block."""
    answer_length: int
    """Tokens of the answer, where the cache has a room for each of them; 0 elsewhere."""
    is_smooth: bool
    """Whether masks carry what was predicted for them into the next call."""
    reads_ahead: bool
    """Whether masks of later blocks are read, too."""

    @classmethod
    def of(cls, config: SamplingConfig, model: ModelConfig, window: int) -> "Policy":
        """Separates the choices of a config from its numbers."""
        rule, selection, candidate = config.cache_rule, config.selection_rule, config.candidate
        if window > config.block_length and not isinstance(rule, NoCache):
            raise UserError(
                f"cache={config.cache} is for an answer behind the prompt, and this prompt holds"
                " masks, which are filled with every block: use cache=none"
            )
        if window > config.block_length and config.end_think_token_ids:
            raise UserError(
                "end_think_token_ids is for answers behind a prompt, and this prompt holds masks"
            )
        for name in ("suppress_tokens", "begin_suppress_tokens", "end_think_token_ids"):
            wrong = [token for token in getattr(config, name) if token >= model.rows]
            if wrong:
                raise UserError(
                    f"{name} holds {wrong[0]}, outside the {model.rows} rows of the embedding"
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
            rank="random" if config.remasking == "random" else selection.rank,
            extra=selection.extra,
            has_credit=bool(selection.credit),
            has_decay=selection.decay > 0,
            is_shuffled=selection.order_temperature > 0,
            has_top_p=candidate.has_top_p,
            has_top_k=candidate.has_top_k,
            ranks_draws=candidate.has_top_p or candidate.has_top_k or isinstance(selection, Dream),
            never_eos=config.logits_eos_inf,
            never_mask=config.compat is None,
            end_ids=ends,
            zeroed_ids=zeroed,
            stop_at_eos=config.stop_at_eos,
            end_think_ids=config.end_think_token_ids,
            cache=rule,
            is_block_causal=config.attention == "block_causal",
            answer_length=config.gen_length if isinstance(rule, FeatureCache) else 0,
            is_smooth=not isinstance(config.smoothing_rule, NoSmoothing),
            reads_ahead=config.reads_ahead,
        )

    @property
    def draws_order(self) -> bool:
        """Whether chance takes part in the order of positions."""
        return self.rank == "random" or self.is_shuffled

    @property
    def is_wide(self) -> bool:
        """Whether the window is the whole canvas, and masks inside the prompt take part."""
        return self.window > self.block_length
