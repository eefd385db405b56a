"""What the oracle says about a sample, for tests."""

from __future__ import annotations

from tests.support.oracle.freedom import missing
from tests.support.oracle.sample import Sample
from tests.support.oracle.trial import Trial, analysed, described, incorrect

ANYTHING = "*"
"""In place of a list of freedoms that are known to be missed: there are many of one kind."""


def faults(sample: Sample) -> list[str]:
    """Everything that is wrong with what the analysis says of a sample.

    The sample is tried with operands that met another parameter before, so that the units are
    those of their elements, and with bare parameters, whose elements the analysis tells apart by
    their strides alone. What is missed is looked for where the sample asks for it; the sample's
    list of what is known to be missed has to be exact.
    """
    trial = Trial(sample)
    symmetry = analysed(trial)
    found = [f"incorrect: {text}" for text in incorrect(trial, symmetry)]
    if sample.overload is not None and str(sample.overload) not in symmetry.operators:
        found.append(f"its rule was not used; these were: {', '.join(symmetry.operators)}")
    if sample.search:
        bare = Trial(sample, plain=True)
        of_bare = analysed(bare)
        found += [f"incorrect for bare parameters: {text}" for text in incorrect(bare, of_bare)]
        if ANYTHING not in sample.missing:
            missed = missing(trial, symmetry)
            new = [text for text in missed if text not in sample.missing]
            found += [f"missing: {text}, at {missed[text]}" for text in new]
            gone = [text for text in sample.missing if text not in missed]
            found += [f"no longer missing, take it off the list: {text}" for text in gone]
    return [*found, f"classes: {described(symmetry)}"] if found else []
