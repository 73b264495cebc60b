"""The published caches, transcribed one by one as slow loops in NumPy, one prompt at a time.

Each follows its definition and not our code: keys are kept without rotation and turned when used,
nothing is batched, everything is float64. Greedy decoding with the fixed plan of `transfer_counts`.
Sources: Fast-dLLM (arXiv:2505.22618v3) `prefix`, `dual`; dInfer (arXiv:2510.08666v2) `vicinity`;
dLLM-Cache (arXiv:2506.06295v1) `dllm`; block diffusion (arXiv:2503.09573v3) `block_causal`.
"""

import numpy as np
from safetensors.numpy import load_file

from jaxllada.common.unmasking import transfer_counts


class PlainModel:
    """A released `llama` block model with rms norms, read from its safetensors files."""

    def __init__(self, folder, config):
        self.config, self.weights = config, {}
        for file in sorted(folder.glob("*.safetensors")):
            for name, value in load_file(file).items():
                self.weights[name.removeprefix("model.transformer.")] = value.astype(np.float64)

    def linear(self, name, x):
        return x @ self.weights[name + ".weight"].T

    def norm(self, name, x):
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return x / scale * self.weights[name + ".weight"]

    def embed(self, tokens):
        return self.weights["wte.weight"][tokens]

    def logits(self, h):
        return self.norm("ln_f", h) @ self.weights["ff_out.weight"].T

    def project(self, layer, x):
        """Normalised input, and queries, keys and values before heads and rotation."""
        y = self.norm(f"blocks.{layer}.attn_norm", x)
        q, k = (self.linear(f"blocks.{layer}.{name}_proj", y) for name in "qk")
        if self.config.attention_layer_norm:
            q, k = (self.norm(f"blocks.{layer}.{n}_norm", z) for n, z in (("q", q), ("k", k)))
        return y, q, k, self.linear(f"blocks.{layer}.v_proj", y)

    def turn(self, x, positions):
        width = self.config.head_dim
        x = x.reshape(len(x), x.shape[1] // width, width)
        angle = positions[:, None] / self.config.rope_theta ** (np.arange(0, width, 2) / width)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., : width // 2], x[..., width // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attend(self, layer, q, q_at, k, v, k_at, allowed=None):
        """Attention output after its projection; positions `q_at` ask those at `k_at`."""
        q, k = self.turn(q, q_at), self.turn(k, k_at)
        v = v.reshape(len(v), self.config.kv_heads, self.config.head_dim)
        groups = self.config.n_heads // self.config.kv_heads
        out = np.empty_like(q)
        for head in range(self.config.n_heads):
            scores = q[:, head] @ k[:, head // groups].T / np.sqrt(self.config.head_dim)
            if allowed is not None:
                scores = np.where(allowed, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head // groups]
        return self.linear(f"blocks.{layer}.attn_out", out.reshape(len(q), self.config.d_model))

    def mlp(self, layer, h):
        y = self.norm(f"blocks.{layer}.ff_norm", h)
        gate = self.linear(f"blocks.{layer}.ff_proj", y)
        inner = gate / (1 + np.exp(-gate)) * self.linear(f"blocks.{layer}.up_proj", y)
        return self.linear(f"blocks.{layer}.ff_out", inner)

    def full(self, tokens, allowed=None):
        """Logits of every position, and the keys and values of every layer, not rotated."""
        at, x, kept = np.arange(len(tokens)), self.embed(tokens), []
        for layer in range(self.config.n_layers):
            _, q, k, v = self.project(layer, x)
            kept.append((k, v))
            x = x + self.attend(layer, q, at, k, v, at, allowed)
            x = x + self.mlp(layer, x)
        return self.logits(x), kept

    def beside(self, tokens, first, last, kept):
        """Logits of rows [first, last), whose keys and values replace those kept (in place)."""
        at, x = np.arange(len(tokens)), self.embed(tokens[first:last])
        for layer in range(self.config.n_layers):
            _, q, k, v = self.project(layer, x)
            kept[layer][0][first:last], kept[layer][1][first:last] = k, v
            x = x + self.attend(layer, q, at[first:last], *kept[layer], at)
            x = x + self.mlp(layer, x)
        return self.logits(x)

    def suffix(self, tokens, first, kept):
        """Logits of rows from `first` on; what is kept covers the rows before only."""
        at, x = np.arange(len(tokens)), self.embed(tokens[first:])
        for layer in range(self.config.n_layers):
            _, q, k, v = self.project(layer, x)
            k, v = (np.concatenate(pair) for pair in zip(kept[layer], (k, v), strict=True))
            x = x + self.attend(layer, q, at[first:], k, v, at)
            x = x + self.mlp(layer, x)
        return self.logits(x)


def decode(model, prompt, config, make_reader):
    """Yields the canvas after every call.

    `make_reader(model, prompt_length, config)` returns read(tokens, first row of the block, number
    of the call in its block) -> logits of the block's rows.
    """
    mask_id, length = model.config.mask_token_id, config.block_length
    tokens = np.concatenate([prompt, np.full(config.gen_length, mask_id)])
    read = make_reader(model, len(prompt), config)
    for block in range(config.num_blocks):
        first = len(prompt) + block * length
        counts = transfer_counts(length, config.steps // config.num_blocks)
        for call, count in enumerate(counts[counts > 0]):
            logits = read(tokens, first, call)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            # The mask is never chosen, and counts in the distribution that confidence is of.
            weights[:, mask_id] = -np.inf
            choice, confidence = weights.argmax(axis=1), weights.max(axis=1)
            confidence[tokens[first : first + length] != mask_id] = -np.inf
            for slot in np.argsort(-confidence, kind="stable")[:count]:
                tokens[first + slot] = choice[slot]
            yield tokens.copy()


def none(model, prompt_length, config):
    def read(tokens, first, call):
        return model.full(tokens)[0][first : first + config.block_length]

    return read


def prefix(model, prompt_length, config):
    kept = []

    def read(tokens, first, call):
        if call == 0:
            logits, whole = model.full(tokens)
            kept[:] = [(k[:first], v[:first]) for k, v in whole]
            return logits[first : first + config.block_length]
        return model.suffix(tokens, first, kept)[: config.block_length]

    return read


def vicinity(before, after, warmup):
    def make(model, prompt_length, config):
        kept, total = [], [-1]

        def read(tokens, first, call):
            total[0] += 1
            last = first + config.block_length
            if call == 0 or total[0] <= warmup:
                logits, kept[:] = model.full(tokens)
                return logits[first:last]
            left, right = max(0, first - before), min(len(tokens), last + after)
            return model.beside(tokens, left, right, kept)[first - left : last - left]

        return read

    return make


dual = vicinity(0, 0, 0)


def dllm(prompt_interval, answer_interval, ratio):
    """Section 3 of its paper with everything kept that it keeps, prompt and answer apart."""

    def make(model, prompt_length, config):
        kept, total = [{} for _ in range(model.config.n_layers)], [-1]
        P, at = prompt_length, np.arange(prompt_length + config.gen_length)
        chosen = int(config.gen_length * ratio)

        def layer_pass(layer, x):
            own = kept[layer]
            due_prompt = total[0] % prompt_interval == 0 or layer == 0
            due_answer = total[0] % answer_interval == 0 or layer == 0
            _, q, k, v = model.project(layer, x)
            rows = []
            if due_prompt:
                own["kp"], own["vp"] = k[:P], v[:P]
                rows.extend(range(P))
            if due_answer:
                own["kg"], own["vg"] = k[P:].copy(), v[P:].copy()
                rows.extend(range(P, len(at)))
            elif ratio > 0:
                new, old = v[P:], own["vg"]
                norms = np.linalg.norm(new, axis=1) * np.linalg.norm(old, axis=1)
                cosine = (new * old).sum(axis=1) / np.maximum(norms, 1e-8)
                cosine[cosine > 1 - 1e-5] = 1
                index = np.argsort(cosine, kind="stable")[:chosen]
                own["vg"] = new.copy()
                own["kg"][index] = k[P:][index]
                rows.extend(P + index)
            if "attention" not in own:
                own["attention"], own["mlp"] = np.zeros_like(x), np.zeros_like(x)
            keys = np.concatenate([own["kp"], own["kg"]])
            values = np.concatenate([own["vp"], own["vg"]])
            rows = np.array(rows, int)
            own["attention"][rows] = model.attend(layer, q[rows], at[rows], keys, values, at)
            h = x + own["attention"]
            own["mlp"][rows] = model.mlp(layer, h[rows])
            return h + own["mlp"]

        def read(tokens, first, call):
            total[0] += 1
            x = model.embed(tokens)
            for layer in range(model.config.n_layers):
                x = layer_pass(layer, x)
            return model.logits(x)[first : first + config.block_length]

        return read

    return make


def block_causal(model, prompt_length, config):
    """No cache at all: the window up to the active block, under the block-causal mask."""

    def read(tokens, first, call):
        last = first + config.block_length
        blocks = (np.arange(last) - prompt_length) // config.block_length
        return model.full(tokens[:last], blocks[None] <= blocks[:, None])[0][first:last]

    return read
