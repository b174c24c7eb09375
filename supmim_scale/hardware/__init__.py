"""What is known of GPUs, and how tensors reach one."""
