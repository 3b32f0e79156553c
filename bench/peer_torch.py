"""The same training step in PyTorch: a Llama-shaped decoder, compiled, AdamW fused. For
bench_train.py; our own model is llm/model.py."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, self.n_kv_head = c["n_head"], c["n_kv_head"]
        self.head_dim = c["n_embd"] // c["n_head"]
        n_qkv = (c["n_head"] + 2 * c["n_kv_head"]) * self.head_dim
        self.attn_norm = nn.RMSNorm(c["n_embd"], eps=1e-5)
        self.ffn_norm = nn.RMSNorm(c["n_embd"], eps=1e-5)
        self.qkv = nn.Linear(c["n_embd"], n_qkv, bias=False)
        self.out = nn.Linear(c["n_embd"], c["n_embd"], bias=False)
        self.gate_up = nn.Linear(c["n_embd"], 2 * c["n_ff"], bias=False)
        self.down = nn.Linear(c["n_ff"], c["n_embd"], bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.n_head, self.n_kv_head, self.n_kv_head), 1)
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        group = self.n_head // self.n_kv_head
        if group > 1:  # repeated by hand, this keeps the fused kernel
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).type_as(x)


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed = nn.Embedding(c["n_vocab"], c["n_embd"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.out_norm = nn.RMSNorm(c["n_embd"], eps=1e-5)
        head_dim = c["n_embd"] // c["n_head"]
        pair = torch.arange(0, head_dim, 2).float() / head_dim
        angles = torch.outer(torch.arange(c["n_ctx"]).float(), 1e4**-pair)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.out_norm(x), self.embed.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def step_of(sizes: dict, batch: int, n_threads: int, rounds: bool):
    """A function that takes one step; the first call compiles."""
    torch.manual_seed(1)
    torch.set_num_threads(n_threads)
    model = Llama(sizes)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens, targets = torch.randint(sizes["n_vocab"], (2, batch, sizes["n_ctx"]))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            loss = compiled(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
