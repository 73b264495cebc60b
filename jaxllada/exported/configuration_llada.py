"""Configuration of dense LLaDA models (arXiv:2502.09992), for transformers 4.57 and 5.x.

Exported by jaxllada beside the weights; field names and defaults are those of the released
config.json. `check` refuses the values that the modeling file cannot run.
"""

from transformers import PretrainedConfig

_CHOICES = {
    "activation_type": ("gelu", "relu", "silu", "swiglu"),
    "block_type": ("llama", "sequential"),
    "layer_norm_type": ("default", "low_precision", "rms", "gemma_rms"),
    "init_fn": ("mitchell", "normal", "kaiming_normal", "fan_in", "full_megatron"),
    "alibi": (False,),
    "rope": (True,),
}


class LLaDAConfig(PretrainedConfig):
    """One dense LLaDA model.

    `d_model`, `n_layers`, `n_heads` and `mlp_hidden_size` give its shape; `embedding_size` rows of
    the embedding are allocated, of which `vocab_size` are used.
    """

    model_type = "llada"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_sequence_length",
        "tie_word_embeddings": "weight_tying",
    }

    def __init__(
        self,
        d_model=768,
        n_heads=12,
        n_kv_heads=None,
        multi_query_attention=None,
        n_layers=12,
        mlp_ratio=4,
        mlp_hidden_size=None,
        activation_type="swiglu",
        block_type="sequential",
        block_group_size=1,
        alibi=False,
        alibi_bias_max=8.0,
        rope=False,
        rope_full_precision=True,
        rope_theta=10000.0,
        flash_attention=False,
        attention_dropout=0.1,
        residual_dropout=0.1,
        embedding_dropout=0.1,
        input_emb_norm=False,
        attention_layer_norm=False,
        attention_layer_norm_with_affine=True,
        layer_norm_type="default",
        layer_norm_with_affine=True,
        rms_norm_eps=1e-5,
        bias_for_layer_norm=None,
        include_bias=False,
        include_qkv_bias=False,
        max_sequence_length=1024,
        scale_logits=False,
        vocab_size=50257,
        embedding_size=50304,
        weight_tying=True,
        eos_token_id=50256,
        pad_token_id=50256,
        mask_token_id=50256,
        init_device=None,
        init_fn="normal",
        init_std=0.02,
        init_cutoff_factor=None,
        precision=None,
        **kwargs,
    ):
        fields = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "kwargs", "__class__")
        }
        if isinstance(kwargs.get("auto_map"), dict) and "AutoModel" in kwargs["auto_map"]:
            # The released files name two classes; the model is a masked language model as well.
            kwargs["auto_map"].setdefault("AutoModelForMaskedLM", kwargs["auto_map"]["AutoModel"])
        kwargs.pop("tie_word_embeddings", None)  # said by weight_tying
        # Which of these the base class knows as its own, and resets, depends on the version.
        super().__init__(
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=weight_tying,
            **kwargs,
        )
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def head_dim(self):
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def num_key_value_heads(self):
        """Heads of keys and values in use; two fields of the file can say it."""
        if self.n_kv_heads is None:
            return 1 if self.multi_query_attention else self.n_heads
        return self.n_kv_heads

    @property
    def intermediate_size(self):
        """Rows of the feed-forward input projection."""
        if self.mlp_hidden_size is not None:
            return self.mlp_hidden_size
        return int(self.mlp_ratio * self.d_model)

    @property
    def rows(self):
        """Rows of the embedding, and logits per position."""
        return self.vocab_size if self.embedding_size is None else self.embedding_size

    @property
    def norm_bias(self):
        """Whether norms with a weight have a bias too."""
        return self.include_bias if self.bias_for_layer_norm is None else self.bias_for_layer_norm

    def check(self):
        """Raises ValueError for values that cannot be run."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                listed = " or ".join(repr(value) for value in allowed)
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported: use {listed}")
        if self.activation_type == "swiglu" and self.block_type == "llama":
            raise ValueError("activation_type='swiglu' needs block_type='sequential'")
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"d_model={self.d_model} and n_heads={self.n_heads}: rotary positions need heads "
                "of one even width"
            )
        heads = self.num_key_value_heads
        if self.n_heads % heads:
            raise ValueError(f"n_kv_heads={heads} does not divide n_heads={self.n_heads}")
        if self.n_kv_heads is not None and self.multi_query_attention is not None:
            expected = 1 if self.multi_query_attention else self.n_heads
            if heads != expected:
                raise ValueError(
                    f"n_kv_heads={heads} contradicts multi_query_attention="
                    f"{self.multi_query_attention}"
                )
        if self.n_layers % self.block_group_size:
            raise ValueError(
                f"block_group_size={self.block_group_size} does not divide n_layers={self.n_layers}"
            )
