"""build_pairs: from data sets to stored training pairs, shard by shard."""

from tasks.pairs.card import write_card
from tasks.pairs.outcome import PairOutcome, SourceOutcome, TooManyRefused
from tasks.pairs.plan import PairPlan, plan_pairs
from tasks.pairs.run import run_pairs

__all__ = ["PairOutcome", "PairPlan", "SourceOutcome", "TooManyRefused", "plan_pairs", "run_pairs", "write_card"]
