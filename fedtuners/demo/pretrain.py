"""Pretrain the demo's tiny Llama on the old intents: ``python -m fedtuners.demo.pretrain``.

Trains the tokenizer and the model from the generator alone, writes a folder that
``AutoModelForCausalLM.from_pretrained`` loads, and prints the scores on held-out slot values. The
loss is on the response only. What the committed weights took and scored is in ``model/README.md``.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedtuners.demo import MODEL_DIR, rows

PROMPT = "{instruction}\n"
VOCABULARY = 1536
BATCH = 64
PEAK_LR = 3e-3
WARMUP = 100

Row = dict[str, str]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which words, digits and spaces are never merged.

    A value then has the same tokens in the command as in the call, and copying it is easy.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"[A-Za-z]+|, |[\s\S]"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=5,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, data: list[Row]) -> list[tuple[list[int], int]]:
    """Token ids of prompt, response and end of each row, with the prompt's length."""
    prompts = tokenizer([PROMPT.format(**row) for row in data])["input_ids"]
    responses = tokenizer([row["output"] for row in data])["input_ids"]
    eos = tokenizer.eos_token_id
    return [(p + r + [eos], len(p)) for p, r in zip(prompts, responses, strict=True)]


def batches(examples: list[tuple[list[int], int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ids and labels, right-padded, rows of like length together."""
    for start in range(0, len(examples), 64 * BATCH):
        block = sorted(examples[start : start + 64 * BATCH], key=lambda example: len(example[0]))
        groups = [block[i : i + BATCH] for i in range(0, len(block), BATCH)]
        for k in torch.randperm(len(groups)).tolist():
            yield collate(groups[k])


def collate(group: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Pad to the longest; labels (-100 where there is no loss) cover the response only."""
    width = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (tokens, prompt) in enumerate(group):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, prompt : len(tokens)] = ids[i, prompt : len(tokens)]
    return ids, labels


def train(model: LlamaForCausalLM, examples: list[tuple[list[int], int]]) -> None:
    """One pass over the examples: AdamW, warm-up, cosine to zero."""
    steps = math.ceil(len(examples) / BATCH)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(step / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    began = time.perf_counter()
    for step, (ids, labels) in enumerate(batches(examples)):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 100 == 0:
            seconds = time.perf_counter() - began
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: list[Row]
) -> float:
    """Share of rows whose greedily generated call is exactly the right one."""
    model.eval()
    prompts = tokenizer([PROMPT.format(**r) for r in data], return_tensors="pt", padding=True)
    prompts.pop("token_type_ids", None)
    out = model.generate(**prompts, max_new_tokens=48, do_sample=False)  # type: ignore[misc]
    answers = tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :], True)
    return sum(a == r["output"] for a, r in zip(answers, data, strict=True)) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--rows", type=int, default=256_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    began = time.perf_counter()
    data = rows("pretrain", args.rows, args.seed)
    tokenizer = build_tokenizer([PROMPT.format(**r) + r["output"] for r in data[:40_000]])
    model = build_model(tokenizer)
    examples = encode(tokenizer, data)
    print(
        f"{model.num_parameters():,} parameters, longest row "
        f"{max(len(ids) for ids, _ in examples)} tokens, mean "
        f"{sum(len(ids) for ids, _ in examples) / len(examples):.1f}",
        flush=True,
    )
    train(model, examples)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{time.perf_counter() - began:.0f} s")
    print(f"old intents {exact_match(model, tokenizer, rows('old', 500, args.seed)):.3f}")
    print(f"new intents {exact_match(model, tokenizer, rows('test', 200, args.seed)):.3f}")


if __name__ == "__main__":
    main()
