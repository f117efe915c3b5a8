"""Federated training under attack: aggregators, adversaries, partitions, a stacked simulator; tensors in and out."""
