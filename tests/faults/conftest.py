"""What several modules of faults begin with."""

import jaxtyping
import pytest

import stx


@pytest.fixture
def unchecked(monkeypatch):
    """As outside of tests: annotations are not checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")
