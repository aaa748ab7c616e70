"""What the kernel lists over RDMA netlink: ``source`` samples, ``client`` and ``messages`` speak nldev,
``reconcile`` corrects the ledger, ``presence`` decides when absence proves an end."""
