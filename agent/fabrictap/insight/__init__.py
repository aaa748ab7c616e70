"""What follows from the ledger: the inventory of what is there now. Under the node's lock."""
