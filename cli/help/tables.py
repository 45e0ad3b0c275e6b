"""What help shows first: purposes of commands, most used flags, sections of flags, examples.

A flag that no table names appears in the section in which its field stands, and a command without
examples gets one with the flags that it needs.
"""

PURPOSES: dict[str, tuple[str, ...]] = {
    "begin": ("demo", "init", "doctor", "completion"),
    "run the teacher once": ("plan", "precompute", "rollout", "import"),
    "keep and share its store": ("store",),
    "train students": ("train", "status", "export"),
    "measure the cascade": ("predict", "eval", "router"),
}
"""Commands, or the first word of several, by purpose."""

MOST_USED: dict[str, tuple[str, ...]] = {
    "plan": ("teacher", "data", "store", "top_k", "on_long", "probe"),
    "precompute": ("teacher", "data", "store", "top_k", "dtype", "device"),
    "train": ("store", "student", "out", "steps", "objective", "lr"),
    "predict": ("model", "data", "out", "max_new_tokens", "batch_size", "device"),
    "eval": ("small", "large", "out", "rule", "operating_point", "calibration"),
}
"""Six fields of each command with many."""

_CAPTURE = {
    "teacher": "targets",
    "shard_rows": "storage",
    "prompt_column": "columns of the data",
    "eos": "text and chat template",
    "max_length": "odd examples",
    "tokenize_processes": "teacher and device",
    "backend": "another engine or a server",
    "adapter": "teacher and device",
    "token_budget": "batches",
    "executor": "workers",
    "dry_run": "report",
}

SECTIONS: dict[str, dict[str, str]] = {
    "plan": _CAPTURE,
    "precompute": {**_CAPTURE, "sample_responses": "the teacher's own answers as a corpus"},
    "train": {
        "store": "data and models",
        "objective": "objective",
        "match": "students with another tokenizer",
        "delegate": "further terms of the loss",
        "global_batch_size": "batches",
        "lr": "optimizer and schedule",
        "zero_stage": "ranks, memory and numbers",
        "eval_store": "evaluation",
        "lora_rank": "adapters",
        "seed": "run and checkpoints",
        "tensorboard": "log",
    },
    "predict": {
        "model": "data and models",
        "prompt_column": "columns of the data",
        "chat_template": "chat template",
        "task_column": "tasks and metrics",
        "stop": "answers",
        "backend": "another engine or a server",
        "dtype": "device",
        "worker": "workers",
        "limit": "answers",
        "large": "a cascade at the token",
    },
    "eval": {
        "small": "answers to compare",
        "rule": "rules and calibration",
        "chain": "cascade and cost",
        "bleu": "metrics and samples",
        "next_token": "next tokens instead of answers",
    },
}
"""The field at which each section of flags begins."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("caskd demo", "caskd demo --out my-demo --seed 1"),
    "init": (
        "caskd init my-project --data train.jsonl --teacher BIG --student SMALL",
        "caskd init my-project --data train.jsonl --test test.jsonl --teacher BIG --student SMALL",
    ),
    "completion": (
        "caskd completion bash > ~/.local/share/bash-completion/completions/caskd",
        "caskd completion zsh > ~/.zfunc/_caskd",
        "caskd completion fish > ~/.config/fish/completions/caskd.fish",
    ),
    "plan": (
        "caskd plan --teacher BIG --data train.jsonl --store my-store --probe",
        "caskd plan --config caskd.toml --dry-run",
    ),
    "precompute": (
        "caskd precompute --teacher BIG --data train.jsonl --store my-store",
        "caskd precompute --config caskd.toml --worker 3 --num-workers 8",
        "caskd precompute --teacher BIG --data prompts.jsonl --sample-responses answers.jsonl",
    ),
    "rollout": (
        "caskd rollout --model my-student --large BIG --data prompts.jsonl --out traces.jsonl",
    ),
    "store info": (
        "caskd store info my-store",
        "caskd store info my-store --watch",
        "caskd store info my-store --html my-store.html",
        "caskd store info s3://bucket/my-store --json",
    ),
    "store show": ("caskd store show my-store --example 3",),
    "store card": (
        "caskd store card my-store --write",
        "caskd store card my-store --html my-store.html",
    ),
    "store verify": ("caskd store verify my-store --full",),
    "store audit": ("caskd store audit my-store --student my-student",),
    "store push": ("caskd store push my-store s3://bucket/my-store",),
    "store pull": ("caskd store pull s3://bucket/my-store my-store",),
    "store export": ("caskd store export my-store --format parquet --out my-rows",),
    "router fit": (
        "caskd router fit --store my-store --student my-student --label divergent --out my-router",
    ),
    "train": (
        "caskd train --store my-store --student SMALL --out my-run --steps 1000",
        "caskd train --config caskd.toml --resume",
        "caskd train --config caskd.toml --objective xent --out my-baseline",
        "torchrun --nproc-per-node 8 -m caskd.cli train --config caskd.toml",
    ),
    "status": ("caskd status my-run --watch",),
    "export": (
        "caskd export my-run my-student",
        "caskd export my-run my-student --best",
    ),
    "predict": (
        "caskd predict --model my-student --data test.jsonl --out small.parquet",
        "caskd predict --config caskd.toml --model BIG --out large.parquet",
    ),
    "eval": (
        "caskd eval --small small.parquet --large large.parquet --out report",
        "caskd eval --small a.parquet --small b.parquet --large large.parquet --out report "
        "--calibration 0.3 --operating-point 'quality>=0.86'",
    ),
    "doctor": ("caskd doctor", "caskd doctor --url http://localhost:8000"),
}
"""Command lines of each command."""
