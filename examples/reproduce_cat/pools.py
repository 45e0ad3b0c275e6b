"""Which public sets make the pools, where they come from, and how they are cut into parts."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set: what a person must read before using it."""

    files: tuple[str, ...]
    url: str
    licence: str


SOURCES = MappingProxyType(
    {
        "sst2": Source(
            files=("sst2/train.jsonl", "sst2/dev.jsonl"),
            url="https://nlp.stanford.edu/sentiment/ (GLUE's SST-2, phrases)",
            licence="no explicit licence; research use, cite Socher et al. 2013",
        ),
        "agnews": Source(
            files=("agnews/train.jsonl",),
            url="http://groups.di.unipi.it/~gulli/AG_corpus_of_news_articles.html",
            licence="non-commercial research use, with attribution",
        ),
        "scan": Source(
            files=("scan/simple_train.jsonl", "scan/simple_test.jsonl"),
            url="https://github.com/brendenlake/SCAN",
            licence="BSD",
        ),
        "instruction_induction": Source(
            files=("instruction_induction/train.jsonl",),
            url="https://github.com/orhonovich/instruction-induction",
            licence="Apache-2.0",
        ),
        "boolq": Source(
            files=("boolq/train.jsonl",),
            url="https://github.com/google-research-datasets/boolean-questions",
            licence="CC BY-SA 3.0",
        ),
        "rte": Source(
            files=("rte/train.jsonl", "rte/val.jsonl"),
            url="https://gluebenchmark.com (RTE)",
            licence="no explicit licence; research use",
        ),
        "openbookqa": Source(
            files=("openbookqa/train.jsonl", "openbookqa/dev.jsonl"),
            url="https://github.com/allenai/OpenBookQA",
            licence="Apache-2.0 (the code's; the data name none)",
        ),
        "e2e_nlg": Source(
            files=("e2e_nlg/train.jsonl",),
            url="https://github.com/tuetschek/e2e-dataset",
            licence="CC BY-SA 4.0",
        ),
        "wikitext2": Source(
            files=("wikitext2_valid_test/valid.txt",),
            url="https://huggingface.co/datasets/Salesforce/wikitext",
            licence="CC BY-SA 3.0",
        ),
        "wikipedia": Source(
            files=("c4_wiki_demo/wiki_demo.txt",),
            url="https://dumps.wikimedia.org (a few articles, one a line)",
            licence="CC BY-SA",
        ),
        "c4": Source(
            files=("c4_wiki_demo/c4_300.jsonl",),
            url="https://huggingface.co/datasets/allenai/c4 (its first few hundred documents)",
            licence="ODC-BY",
        ),
    }
)
"""Name -> files below --data, and where they are published."""


PARTS = ("test", "calibration", "teacher", "pretrain", "student")
"""What an example is used for, once and for all: the teacher never sees what the student is trained
on, so that its outputs there are those of data that is new to it."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Tasks that one small model learns together."""

    shares: MappingProxyType[str, tuple[float, ...]]
    """Source -> share of it for each of `PARTS`; what is over is left out."""
    max_words: int
    """Longer prompts are cut at their end; longer paragraphs of plain text in pieces."""
    is_text: bool = False
    """Plain text, judged by its next tokens: nothing is generated."""
    eos: bool = True
    """Whether a response ends with EOS. Single labels do without: the row would always be right."""
    max_new_tokens: int = 1
    """Of an answer."""


_TOPICS = Pool(
    shares=MappingProxyType(
        {
            "sst2": (0.03, 0.022, 0.45, 0.06, 0.09),
            "agnews": (0.15, 0.05, 0.40, 0.09, 0.31),
        }
    ),
    max_words=20,
    eos=False,
)
POOLS = MappingProxyType(
    {
        "classification": _TOPICS,
        "classification-unread": _TOPICS,
        "generation": Pool(
            shares=MappingProxyType(
                {
                    "scan": (0.05, 0.02, 0.30, 0.08, 0.20),
                    "instruction_induction": (0.06, 0.04, 0.45, 0.12, 0.33),
                }
            ),
            max_words=40,
            max_new_tokens=60,
        ),
        "pretrained": Pool(
            shares=MappingProxyType(
                {
                    "boolq": (0.25, 0.05, 0.30, 0.10, 0.30),
                    "rte": (0.25, 0.05, 0.30, 0.10, 0.30),
                    "openbookqa": (0.20, 0.05, 0.35, 0.10, 0.30),
                    "e2e_nlg": (0.20, 0.05, 0.35, 0.10, 0.30),
                }
            ),
            max_words=1000,
            max_new_tokens=80,
        ),
        "text": Pool(
            shares=MappingProxyType(
                dict.fromkeys(("wikitext2", "wikipedia", "c4"), (0.2, 0.0, 0.45, 0.1, 0.25))
            ),
            max_words=100,
            is_text=True,
        ),
    }
)
