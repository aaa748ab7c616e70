"""What the hardware counts for each process by itself (mlx5): ``messages`` are those of RDMA netlink's
statistics, ``switched`` remembers where counting was turned on, to turn it off again, ``source`` reads."""
