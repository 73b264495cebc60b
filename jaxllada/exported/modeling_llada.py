"""Dense LLaDA models (arXiv:2502.09992v3, section 2.1) for transformers 4.57 and 5.x.

Exported by jaxllada beside the weights. A Transformer without a causal mask: it reads a text in
which some tokens are hidden behind the mask token and predicts every position at once. Module names
are those of the released weights; norms, angles and softmax are computed in float32.

Shape letters: B batch, L positions, D model width, H head width, V embedding rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_llada import LLaDAConfig
from .generation_llada import generate

LAYER_NORM_EPS = 1e-5


class LLaDANorm(nn.Module):
    """RMS norm or LayerNorm of the last axis, as `layer_norm_type` says."""

    def __init__(self, config, width, affine):
        super().__init__()
        self.kind, self.eps = config.layer_norm_type, config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and config.norm_bias else None

    def forward(self, x):
        weight, bias = self.weight, self.bias
        if self.kind in ("default", "low_precision"):
            if self.kind == "low_precision":
                weight, bias = (w if w is None else w.to(x.dtype) for w in (weight, bias))
            weight, bias = (w if w is None else w.float() for w in (weight, bias))
            return F.layer_norm(x.float(), x.shape[-1:], weight, bias, LAYER_NORM_EPS).to(x.dtype)
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        # Rounded before it is scaled: the released order, which decides the bits in bfloat16.
        y = y.to(x.dtype)
        if weight is not None:
            weight = weight.to(x.dtype)
            y = y * (1 + weight) if self.kind == "gemma_rms" else y * weight
        return y if bias is None else y + bias.to(x.dtype)


def rotary_angles(position_ids, head_dim, theta):
    """Returns cosine and sine [B, 1, L, H/2] of positions * theta**(-2i/H) radians in float32."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequency = 1.0 / (theta ** (exponent / head_dim))
    angle = position_ids[:, None, :, None].float() * frequency
    return angle.cos(), angle.sin()


def rotate(x, cos, sin, full_precision):
    """Rotates each pair (x[i], x[i + H/2]); in float32, or in the type of `x` if not."""
    dtype = torch.float32 if full_precision else x.dtype
    cos, sin = cos.to(dtype), sin.to(dtype)
    x1, x2 = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)


class LLaDABlock(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward part."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, kv_width = config.d_model, config.num_key_value_heads * config.head_dim
        bias, qkv_bias = config.include_bias, config.include_bias or config.include_qkv_bias
        ffn = config.intermediate_size
        self.attn_norm = LLaDANorm(config, width, config.layer_norm_with_affine)
        self.ff_norm = LLaDANorm(config, width, config.layer_norm_with_affine)
        if config.block_type == "sequential":
            self.att_proj = nn.Linear(width, width + 2 * kv_width, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=qkv_bias)
            self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
            self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        if config.attention_layer_norm:
            affine = config.attention_layer_norm_with_affine
            self.q_norm = LLaDANorm(config, width, affine)
            self.k_norm = LLaDANorm(config, kv_width, affine)
        self.attn_out = nn.Linear(width, width, bias=bias)
        self.ff_proj = nn.Linear(width, ffn, bias=bias)
        if config.block_type == "llama":
            self.up_proj = nn.Linear(width, ffn, bias=bias)
        inner = ffn // 2 if config.activation_type == "swiglu" else ffn
        self.ff_out = nn.Linear(inner, width, bias=bias)

    def forward(self, x, cos, sin, bias=None):
        rate = self.config.residual_dropout
        mixed = self.attend(self.attn_norm(x), cos, sin, bias)
        x = x + F.dropout(mixed, rate, self.training)
        return x + F.dropout(self.feed_forward(self.ff_norm(x)), rate, self.training)

    def attend(self, x, cos, sin, bias):
        """Mixes positions; `bias` [B or 1, heads or 1, L, L] is added to the scores."""
        c = self.config
        kv_width = c.num_key_value_heads * c.head_dim
        if c.block_type == "sequential":
            q, k, v = self.att_proj(x).split((c.d_model, kv_width, kv_width), dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if c.attention_layer_norm:  # over the whole width, before the heads are split
            dtype = k.dtype
            q, k = self.q_norm(q).to(dtype), self.k_norm(k).to(dtype)
        q, k, v = (y.view(*y.shape[:2], -1, c.head_dim).transpose(1, 2) for y in (q, k, v))
        q = rotate(q, cos, sin, c.rope_full_precision)
        k = rotate(k, cos, sin, c.rope_full_precision)
        repeats = c.n_heads // c.num_key_value_heads
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        rate = c.attention_dropout if self.training else 0.0
        if bias is not None:
            # A narrower type turns the lowest float32 into minus infinity, and empty rows into NaN.
            bias = bias.clamp(min=torch.finfo(q.dtype).min).to(q.dtype)
        if c._attn_implementation == "eager":
            scores = q @ k.transpose(-1, -2) / math.sqrt(c.head_dim)
            scores = scores if bias is None else scores + bias
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
            out = F.dropout(weights, rate, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        return self.attn_out(out.transpose(1, 2).flatten(2))

    def feed_forward(self, x):
        """Maps each position on its own."""
        kind, x_in = self.config.activation_type, self.ff_proj(x)
        if kind == "swiglu":
            value, gate = x_in.chunk(2, dim=-1)
            return self.ff_out(F.silu(gate) * value)
        inner = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}[kind](x_in)
        return self.ff_out(inner * self.up_proj(x) if hasattr(self, "up_proj") else inner)


class LLaDAModel(nn.Module):
    """Embedding, blocks, final norm and (where it is not tied) the head, named as released."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        modules = {"wte": nn.Embedding(config.rows, config.d_model)}
        blocks = [LLaDABlock(config) for _ in range(config.n_layers)]
        if config.block_group_size > 1:
            size = config.block_group_size
            groups = [blocks[i : i + size] for i in range(0, config.n_layers, size)]
            modules["block_groups"] = nn.ModuleList(nn.ModuleList(group) for group in groups)
        else:
            modules["blocks"] = nn.ModuleList(blocks)
        modules["ln_f"] = LLaDANorm(config, config.d_model, config.layer_norm_with_affine)
        if not config.weight_tying:
            modules["ff_out"] = nn.Linear(config.d_model, config.rows, bias=config.include_bias)
        self.transformer = nn.ModuleDict(modules)

    def blocks(self):
        """All blocks in order."""
        if "blocks" in self.transformer:
            return list(self.transformer["blocks"])
        return [block for group in self.transformer["block_groups"] for block in group]

    def forward(self, x, position_ids, bias, collect):
        """Returns the normalised activations [B, L, D], and with `collect` those of every layer."""
        c, collected = self.config, []
        if c.input_emb_norm:
            x = x * math.sqrt(c.d_model)
        x = F.dropout(x, c.embedding_dropout, self.training)
        cos, sin = rotary_angles(position_ids, c.head_dim, c.rope_theta)
        for block in self.blocks():
            if collect:
                collected.append(x)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x, cos, sin, bias)
            else:
                x = block(x, cos, sin, bias)
        x = self.transformer["ln_f"](x)
        return x, (*collected, x) if collect else None


class LLaDAModelLM(PreTrainedModel, GenerationMixin):
    """The mask predictor with its head; `generate` fills masks by diffusion."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["LLaDABlock"]
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config):
        config.check()
        super().__init__(config)
        self.model = LLaDAModel(config)
        if config.weight_tying:  # some files hold a tied head a second time
            self._keys_to_ignore_on_load_unexpected = [r"^model\.transformer\.ff_out\.weight$"]
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        attention_bias=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        logits_to_keep=0,
        output_hidden_states=None,
        output_attentions=None,
        use_cache=None,
        past_key_values=None,
        token_type_ids=None,
        return_dict=None,
    ):
        """Returns logits [B, L, V] in the activation type, for the same position, not the next.

        Args:
            input_ids: [B, L] with `config.mask_token_id` at the positions to predict.
            attention_mask: [B, L], 1 for keys that may be seen, 0 for padding. Hidden positions
                still get logits, which mean nothing.
            attention_bias: [B or 1, heads or 1, L, L]; boolean or int8 tells which keys each query
                sees, floats are added to the scores. Combined with `attention_mask`.
            position_ids: [B or 1, L] rotary positions; 0 to L - 1 by default, also under padding.
            inputs_embeds: [B, L, D] instead of `input_ids`.
            labels: [B, L]; the loss is the mean cross-entropy at labels that are not -100, without
                the weights 1/t of the diffusion objective, which the caller knows.
            logits_to_keep: compute logits of the last so many positions, or of the positions in
                this tensor; 0 is all.
            token_type_ids: some tokenizers return them; LLaDA has no such types.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds")
        if use_cache or past_key_values is not None:
            raise ValueError("use_cache: every position sees every other, nothing can be cached")
        if output_attentions:
            raise ValueError("output_attentions=True is not supported")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        bias = score_bias(attention_mask, attention_bias, x)
        hidden, states = self.model(x, position_ids, bias, output_hidden_states)
        if isinstance(logits_to_keep, torch.Tensor):
            hidden = hidden[:, logits_to_keep.to(hidden.device)]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.project(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device))
        if not return_dict:
            return tuple(value for value in (loss, logits, states) if value is not None)
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=states)

    def project(self, hidden):
        """Returns the logits of final activations."""
        if self.config.weight_tying:
            logits = F.linear(hidden, self.model.transformer["wte"].weight)
        else:
            logits = self.model.transformer["ff_out"](hidden)
        return logits * (1 / math.sqrt(self.config.d_model)) if self.config.scale_logits else logits

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, **options):
        """Answers by diffusion; the options are those of `generate` in generation_llada.py."""
        return generate(inputs, generation_config, model=self, **options)

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value):
        self.model.transformer["wte"] = value

    def get_output_embeddings(self):
        """The head; the embedding where they are tied."""
        return self.model.transformer["wte" if self.config.weight_tying else "ff_out"]

    def set_output_embeddings(self, value):
        self.model.transformer["wte" if self.config.weight_tying else "ff_out"] = value

    def resize_token_embeddings(self, *args, **kwargs):
        embedding = super().resize_token_embeddings(*args, **kwargs)
        self.config.embedding_size = embedding.weight.shape[0]
        return embedding

    def _init_weights(self, module):
        """Initialises a module that has no stored weights, by the scheme `init_fn`."""
        if isinstance(module, LLaDANorm):
            if module.weight is not None:
                nn.init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            std, cutoff = self._initial_std(module)
            if cutoff is None:
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.trunc_normal_(module.weight, std=std, a=-cutoff * std, b=cutoff * std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    def _initial_std(self, module):
        """Returns the standard deviation, and how many of them end the distribution (or None)."""
        c, fan_in = self.config, module.weight.shape[1]
        is_embedding = isinstance(module, nn.Embedding)
        factor = 0.5 * math.sqrt(c.d_model) if is_embedding and c.scale_logits else 1.0
        role, depth = self._role_of(module)
        into_residual = role in ("attn_out", "mlp_out")
        if c.init_fn == "mitchell":
            return factor / math.sqrt(fan_in * (2 * (depth + 1) if into_residual else 1)), 3.0
        if c.init_fn == "normal":
            scale = math.sqrt(2 * c.n_layers) if role == "mlp_out" else 1.0
            return c.init_std * factor / scale, c.init_cutoff_factor
        if c.init_fn == "kaiming_normal":
            return math.sqrt(2 / fan_in), None
        if c.init_fn == "fan_in":
            return factor / math.sqrt(fan_in), None
        if c.block_type == "llama":
            raise ValueError("init_fn='full_megatron' cannot initialise block_type='llama'")
        std = c.d_model**-0.5 if role == "head" else c.init_std
        scale = math.sqrt(2 * c.n_layers) if into_residual else 1.0
        return std / scale, c.init_cutoff_factor or 3.0

    def _role_of(self, module):
        for depth, block in enumerate(self.model.blocks()):
            for role, candidate in (("attn_out", block.attn_out), ("mlp_out", block.ff_out)):
                if candidate is module:
                    return role, depth
        is_head = not self.config.weight_tying and module is self.model.transformer["ff_out"]
        return ("head" if is_head else "in"), 0


def score_bias(attention_mask, attention_bias, x):
    """Merges both masks into what is added to the scores, finite and in float32; None for none."""
    lowest, bias = torch.finfo(torch.float32).min, None
    if attention_bias is not None:
        if attention_bias.dtype in (torch.bool, torch.int8):
            bias = torch.zeros(attention_bias.shape, device=x.device)
            bias = bias.masked_fill(attention_bias.to(x.device) == 0, lowest)
        else:
            bias = attention_bias.to(x.device, torch.float32).clamp(min=lowest)
    if attention_mask is not None:
        length = x.shape[1]
        hidden = (attention_mask.to(x.device) == 0)[:, None, None, :]
        bias = torch.zeros(1, 1, length, length, device=x.device) if bias is None else bias
        bias = bias.masked_fill(hidden, lowest)
    return bias
