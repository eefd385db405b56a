"""The rule oracle: brute-force truth about operators, to hold the analysis against.

A sample calls one operator (or a few). Its tensor operands become parameters of a module whose
result is the sum of the operator's outputs, weighted with further parameters of the outputs'
shapes: so every axis of every output may move, as long as its weights move along.

- *Incorrect*: the group that the analysis finds has an element under which the real operator, run
  on permuted operands in float64, gives another result.
- *Missing*: exchanging two neighbours along some axes, all at once, changes nothing whatever the
  operands hold, and yet the group does not have that exchange.
"""
