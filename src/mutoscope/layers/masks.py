"""Who may look at whom: boolean attention masks, True where a query may look at a key."""

import torch
from jaxtyping import Bool
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """Every query sees itself and what came before. The queries are the last `num_queries` of the keys' positions."""
    position = torch.arange(num_keys - num_queries, num_keys, device=device)  # (n,)
    return torch.arange(num_keys, device=device) <= position[:, None]
