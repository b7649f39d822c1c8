"""The claims ledger: each claim of the paper, the measured figure, the verdict, and the command behind it."""

from safebench.analysis.claims.ask import ledger, needed
from safebench.analysis.claims.questions import CLAIMS, MATCHED_TO, matched
from safebench.analysis.claims.verdicts import Claim, Entry, Ledger, Part

__all__ = ["CLAIMS", "MATCHED_TO", "Claim", "Entry", "Ledger", "Part", "ledger", "matched", "needed"]
