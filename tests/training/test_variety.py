"""Shares of distinct replies and bigrams, by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safebench.training.evaluate import distinct_2, distinct_share

token_ids = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=6)


def test_distinct_share_by_hand() -> None:
    assert distinct_share(["yeah", "no", "yeah", "yeah"]) == 0.5
    assert distinct_share(["yeah"] * 4) == 0.25
    assert distinct_share(["a", "b"]) == 1.0


def test_distinct_2_by_hand() -> None:
    # Bigrams 12, 23, 31, 12 and 12, 22: six, of which 12, 23, 31, 22 are distinct.
    assert distinct_2([[1, 2, 3, 1, 2], [1, 2, 2]]) == 4 / 6
    # A collapse across replies counts as one within a reply does.
    assert distinct_2([[1, 2]] * 4) == 0.25
    assert distinct_2([[1, 1, 1, 1]]) == 1 / 3


def test_bigrams_do_not_reach_from_one_reply_into_the_next() -> None:
    assert distinct_2([[1, 2], [1, 2]]) == 0.5


def test_no_bigram_is_no_variety() -> None:
    assert distinct_2([[], [7]]) == 0.0
    assert distinct_2([]) == 0.0


@given(token_ids)
def test_order_of_replies_does_not_matter_and_the_share_is_one(replies: list[list[int]]) -> None:
    share = distinct_2(replies)
    assert 0 <= share <= 1
    assert distinct_2(replies[::-1]) == share
    # The same batch twice has the same bigrams, each twice.
    assert distinct_2(replies + replies) == share / 2
