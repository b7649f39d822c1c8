"""The claims ledger: each claim of the paper, our figure for it, the verdict, and the command behind it."""

from safebench.evidence.claims.ask import ledger, needed
from safebench.evidence.claims.declared import CLAIMS, MATCHED_TO, matched
from safebench.evidence.claims.verdicts import Claim, Entry, Ledger, Part

__all__ = ["CLAIMS", "MATCHED_TO", "Claim", "Entry", "Ledger", "Part", "ledger", "matched", "needed"]
