"""The reference to be measured against: torch and transformers, float32, GPT-2 124M with random weights.

    python benchmarks/reference_torch.py train              one AdamW step on 4 x 256 tokens
    python benchmarks/reference_torch.py decode --batch 8   64 new tokens after prompts of 32, greedy
    python benchmarks/reference_torch.py load --folder X    the published checkpoint in a folder instead

All speak the protocol of harness.py. `--form` picks how tokens are decoded; the default is the fastest.
"""

import argparse
import os

import torch
from harness import serve
from load import Arrays, serve_loading
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    StaticCache,
)
from transformers import __version__ as transformers_version
from transformers.utils.logging import disable_progress_bar

PROMPT, NEW = 32, 64
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


def decoder(model: GPT2LMHeadModel, batch: int, form: str):
    """NEW tokens a row: by `generate`, or by hand without its bookkeeping; the cache grows, or is static."""
    model.eval()
    prompt = torch.randint(model.config.vocab_size, (batch, PROMPT))
    mask = torch.ones_like(prompt)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    @torch.inference_mode()
    def by_generate() -> None:
        kind = {"cache_implementation": "static"} if form == "generate-static" else {}
        assert model.generate(prompt, attention_mask=mask, **options, **kind).shape == (batch, PROMPT + NEW)

    @torch.inference_mode()
    def by_hand() -> None:
        static = form == "hand-static"
        cache = StaticCache(model.config, max_cache_len=PROMPT + NEW) if static else DynamicCache()
        tokens, out = prompt, []
        for _ in range(NEW):
            logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            out.append(tokens)
        assert torch.cat(out, 1).shape == (batch, NEW)

    return by_generate if form.startswith("generate") else by_hand


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
    parser.add_argument("--batch", type=int, default=1, help="rows to decode")
    parser.add_argument("--form", choices=["generate", "generate-static", "hand", "hand-static"], default="hand")
    parser.add_argument("--folder", help="what to load")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if args.work == "load":
        return serve_loading(loader(args.folder), torch=torch.__version__, transformers=transformers_version)
    model = gpt2()
    parameters = sum(p.numel() for p in model.parameters())
    about = {"torch": torch.__version__, "transformers": transformers_version, "parameters": parameters}
    if args.work == "train":
        tokens = BATCH * LENGTH
        serve(trainer(model), tokens=tokens, flop=6.0 * parameters * tokens, **about)
    else:
        read = 4.0 * (parameters - model.transformer.wpe.weight.numel())  # a token looks up one position
        step = decoder(model, args.batch, args.form)
        serve(step, tokens=NEW * args.batch, bytes=read * NEW, form=args.form, **about)


if __name__ == "__main__":
    main()
