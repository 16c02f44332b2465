"""Plans of training runs: memory, time and traffic from the TPU compiler, without TPUs."""
