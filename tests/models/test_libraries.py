"""What the libraries say about themselves stays off the screen, however deep a model's loading is nested."""

from __future__ import annotations

import logging

import pytest
from transformers.utils import logging as transformers_logging

from safebench.models.libraries import quiet_libraries

SAYS = "BertForSequenceClassification LOAD REPORT from: somewhere"


@pytest.fixture
def said():
    """The messages that transformers' loading logs."""
    found: list[str] = []
    logger = transformers_logging.get_logger("transformers.modeling_utils")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger.addHandler(handler)
    yield logger, found
    logger.removeHandler(handler)


def test_the_end_of_an_inner_context_leaves_the_outer_one_quiet(said):
    logger, found = said
    with quiet_libraries():
        with quiet_libraries():
            logger.warning(SAYS)
        logger.warning(SAYS)
        logger.warning("something else")
    assert found == ["something else"]


def test_behind_the_context_the_libraries_speak_again(said):
    logger, found = said
    with quiet_libraries():
        pass
    logger.warning(SAYS)
    assert found == [SAYS]
