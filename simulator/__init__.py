"""The simulator: scenarios, a library with NVML's own ABI, and an asynchronous device."""
