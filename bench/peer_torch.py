"""The same training in PyTorch: a Llama-shaped decoder, compiled, AdamW fused. A step of it for
bench_train.py, a run for bench_quality.py; our own model is llm/model.py."""

import math
import time

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
        for name, p in self.named_parameters():
            if p.dim() > 1:
                to_stream = name.endswith((".out.weight", ".down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * c["n_layer"]) if to_stream else 1))

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


def learn(sizes: dict, batch: int, n_threads: int, seed: int, tokens, windows, moments):
    """Trains until the last of the moments (seconds of steps alone) with what is usual: bf16,
    AdamW at 3e-3, betas .9 and .95, decay .1 of matrices, norms clipped to 1, 3 % warm-up, cosine
    to 5 %. tokens: to learn from; windows (n, n_ctx + 1): to be judged by. Returns (tokens trained
    on, [(seconds, nats per token)])."""
    torch.manual_seed(seed)
    torch.set_num_threads(n_threads)
    model, n_ctx = Llama(sizes), sizes["n_ctx"]
    compiled = torch.compile(model)
    groups = ([p for p in model.parameters() if (p.dim() > 1) == is_matrix] for is_matrix in (1, 0))
    optimizer = torch.optim.AdamW(
        [{"params": p, "weight_decay": d} for p, d in zip(groups, (0.1, 0.0), strict=True)],
        betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    tokens, windows = torch.from_numpy(tokens).long(), torch.from_numpy(windows).long()

    def loss_of(rows):
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def judge() -> float:
        with torch.no_grad():
            parts = windows.split(batch)
            return sum(loss_of(rows).item() * len(rows) for rows in parts) / len(windows)

    def example():
        starts = torch.randint(len(tokens) - n_ctx - 1, (batch, 1))
        return tokens[starts + torch.arange(n_ctx + 1)]

    def rate(share: float) -> float:
        if share < 0.03:
            return 3e-3 * max(0.01, share / 0.03)
        return 3e-3 * (0.525 + 0.475 * math.cos(math.pi * min(1, (share - 0.03) / 0.97)))

    loss_of(example()).backward()  # compiles, as does judge(), and tells AdamW nothing
    optimizer.zero_grad(set_to_none=True)
    judge()
    clock, n_steps, points, ahead = 0.0, 0, [], list(moments)
    while ahead:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(clock / moments[-1])
        loss_of(example()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock, n_steps = clock + time.perf_counter() - start, n_steps + 1
        if clock >= ahead[0]:
            points.append((clock, judge()))
            ahead = [moment for moment in ahead if moment > clock]
    return n_steps * batch * n_ctx, points
