"""The axis algebra: units, labels, fields, and the ledger of what constrains them."""
