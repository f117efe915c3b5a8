"""Federated training under attack: aggregators, adversaries, partitions and a stacked simulator. Tensors in, tensors out."""
