"""The reference to be measured against: torch and transformers, float32, GPT-2 124M with random weights.

    python benchmarks/reference_torch.py train              one AdamW step on 4 x 256 tokens
    python benchmarks/reference_torch.py decode --case gpt2-greedy-8-32 --folder X    what decode.py has written
    python benchmarks/reference_torch.py load --folder X    the published checkpoint in a folder instead

All speak the protocol of harness.py. `--form` picks how tokens are decoded; the default is the fastest, but for
beams, which are searched by `generate` alone.
"""

import argparse
import os

import numpy as np
import torch
from decode import BEAMS, TEMPERATURE, TOP_P, Case, named, serve_case
from harness import serve
from load import Arrays, serve_loading
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    StaticCache,
)
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

BATCH, LENGTH = 4, 256


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa")
    return GPT2LMHeadModel(config)


def trainer(model: GPT2LMHeadModel):
    """One step: cross-entropy, gradients clipped at 1, fused AdamW with decay on the matrices."""
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(model.config.vocab_size, (BATCH, LENGTH + 1))

    def step() -> None:
        logits = model(tokens[:, :-1], use_cache=False).logits
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def decoder(case: Case, folder: str, form: str):
    """New tokens of prompts: by `generate`, or by hand without its bookkeeping; the cache grows, or is static."""
    kind = AutoModelForCausalLM if case.config.encoder is None else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    options = {"max_new_tokens": case.new, "min_new_tokens": case.new, "pad_token_id": 0}
    options |= {
        "sampled": {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0},
        "beam": {"num_beams": BEAMS, "do_sample": False},
    }.get(case.way, {"do_sample": False})

    @torch.inference_mode()
    def by_generate(prompts: np.ndarray) -> np.ndarray:
        static = {"cache_implementation": "static"} if form == "generate-static" else {}
        prompts = torch.from_numpy(prompts)
        whole = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options, **static)
        return whole[:, -case.new :].numpy()

    @torch.inference_mode()
    def by_hand(prompts: np.ndarray) -> np.ndarray:
        static = form == "hand-static"
        cache = StaticCache(model.config, max_cache_len=case.prompt + case.new) if static else DynamicCache()
        tokens, out = torch.from_numpy(prompts), []
        for _ in range(case.new):
            logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            tokens = drawn(logits) if case.way == "sampled" else logits.argmax(-1, keepdim=True)
            out.append(tokens)
        return torch.cat(out, 1).numpy()

    return by_generate if form.startswith("generate") or case.way == "beam" else by_hand


def drawn(logits: torch.Tensor) -> torch.Tensor:
    """A token [B, 1] from logits [B, V]: of the fewest that hold probability TOP_P."""
    p, order = torch.softmax(logits / TEMPERATURE, -1).sort(-1, descending=True)
    p[p.cumsum(-1) - p > TOP_P] = 0
    return order.gather(-1, torch.multinomial(p, 1))


def loader(folder: str):
    """Its parameters, by the default way to load them: the file is mapped and read when they are used."""
    disable_progress_bar()

    def load() -> Arrays:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert isinstance(model, LlamaForCausalLM)  # its module is imported before the first load
        return [parameter.detach().numpy() for parameter in model.parameters()]

    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["train", "decode", "load"])
    parser.add_argument("--case", type=named, help="what to decode")
    parser.add_argument("--form", choices=["generate", "generate-static", "hand", "hand-static"], default="hand")
    parser.add_argument("--folder", help="what to load")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if args.work == "load":
        return serve_loading(loader(args.folder), torch=torch.__version__, transformers=transformers_version)
    about = {"torch": torch.__version__, "transformers": transformers_version}
    if args.work == "decode":
        return serve_case(args.case, args.folder, decoder(args.case, args.folder, args.form), form=args.form, **about)
    model, tokens = gpt2(), BATCH * LENGTH
    parameters = sum(p.numel() for p in model.parameters())
    serve(trainer(model), tokens=tokens, work=[(6.0 * parameters * tokens, 0.0)], parameters=parameters, **about)


if __name__ == "__main__":
    main()
