"""Networks, and the policy and value function made of them."""
